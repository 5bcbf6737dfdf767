"""The page of long sessions."""

from collections.abc import Mapping, Sequence
from typing import Any

PAGE = """# Long sessions

`make bench-session` measures this again. Traces over {items} items, of which a window has room for some:
passages of {tokens} tokens of Python's documentation for `smollm2-135m`, pages with facts and references for the
embedded models. In *zipf* an item comes with a probability that falls as one over its rank; in *slide* items come one
after the other, and every third turn looks back at one of the last {far}. At every {every}th turn the window is asked,
and the next-token distributions at the {answer} tokens of the reference's greedy answer are compared.

The reference is a window in which every chunk is run behind those that stand there when it comes, and is dropped when
it leaves: a KV cache that slides, and reuses nothing but what still stands. *default* is a session as it is; *exact
only* takes a stored patch only where nothing has changed (`ReusePolicy(max_kl=1e-9)`), and forms one otherwise, so its
KL is what low rank costs; *blind* adds chunks as they were encoded.

## What comes back, and what it is served with

| window | session | turns | returning | no forward | in the window | no patch | stored patch | fresh |
|---|---|---|---|---|---|---|---|---|
{served}

## What that costs

*Returning*: turns whose item came before; *no forward*: the share of these that took none; *room*: items that a window
has room for. KL in nats: mean, 99th percentile and largest of the turns that were asked. *worse*: turns whose answer is
further from the reference than blind reuse's by more than 0.01 nats. FLOPs are shares of what others run: prefilling
the window at each turn, a prefix cache (which runs what stands behind the first change), and the cache that slides.

| window | session | KL | 99 % | largest | worse | FLOPs, of prefill | prefix cache | sliding cache |
|---|---|---|---|---|---|---|---|---|
{costs}

Beside a full prefill of what stands in the window at that moment, which knows nothing of what has left, all of them are
further away, because what has left is still in what it left behind:

| window | session | KL | 99 % | worse |
|---|---|---|---|---|
{present}
{recalls}"""

RECALLS = """
## Recall to any place

`{model}`: {n} passages come back to the front, the middle and the end of a window of {half} that has slid on, each of
{tokens} tokens. KL to a full prefill of that window over the {behind} tokens that go on behind it: {default:.4f} nats
on average, {blind:.4f} with the passage as it was encoded; at worst {worse:.4f} more than that ({front} at the front,
where it stands bare). They were served with {actions}; {forwards:.2f} forwards a recall, those behind the passage
included.
"""


def page_of(results: Sequence[dict[str, Any]], numbers: Mapping[str, int]) -> str:
    """The page of several models; ``numbers`` are the sizes that it names."""
    served: list[list[str]] = []
    costs: list[list[str]] = []
    present: list[list[str]] = []
    for result in results:
        for each in result["traces"]:
            start = [f"`{result['model']}`, {each['trace']}, room {each['window']}"]
            flops = each["flops"]
            for name in (*each["sessions"], "blind"):
                own = each["sessions"].get(name)
                kl, now = (each["blind"][kind] if own is None else own[kind] for kind in ("kl", "present"))
                worse = (
                    ["–", "–"] if own is None else [f"{own['worse_by_0.01'][kind]:.0%}" for kind in ("kl", "present")]
                )
                shares = [f"{flops[name] / flops[whole]:.1%}" for whole in ("full prefill", "prefix cache", "no reuse")]
                spread = [f"{kl[part]:.4f}" for part in ("mean", "p99", "max")]
                costs.append([*start, name, *spread, worse[0], *shares])
                present.append([*start, name, f"{now['mean']:.3f}", f"{now['p99']:.3f}", worse[1]])
                if own is not None:
                    actions = own["actions"]
                    kinds = ("nothing", "no patch", "stored patch", "fresh patch")
                    counts = [str(actions.get(kind, 0)) for kind in kinds]
                    counts[1] = str(actions.get("no patch", 0) + actions.get("rotation", 0))
                    shown = [name, str(each["turns"]), str(own["returning"]), f"{own['without_forward']:.2f}"]
                    served.append([*start, *shown, *counts])
    tables = {"served": served, "costs": costs, "present": present}
    rows = {name: "\n".join(f"| {' | '.join(row)} |" for row in table) for name, table in tables.items()}
    rows["recalls"] = "".join(_recalled(result, numbers) for result in results if "recalls" in result)
    return PAGE.format(**numbers, **rows)


def _recalled(result: Mapping[str, Any], numbers: Mapping[str, int]) -> str:
    own = result["recalls"]
    return RECALLS.format(
        model=result["model"],
        n=own["default"]["n"],
        half=numbers["half"],
        tokens=numbers["tokens"],
        behind=numbers["behind"],
        default=own["default"]["mean"],
        blind=own["blind"]["mean"],
        worse=own["worse_than_blind"],
        front=sum(not row["place"] for row in own["rows"]),
        actions=", ".join(f"{action}: {count}" for action, count in sorted(own["actions"].items())),
        forwards=own["forwards"],
    )
