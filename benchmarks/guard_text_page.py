"""The page of the guard on real text, written from its measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

PAGE = """# What a stored patch is worth elsewhere

A patch is exact where it was formed. Behind other chunks it is worth less, and a `ReusePolicy` decides whether it is
worth enough: by a **calibration**, where the model has one, else by a **prior** that looks at keys and at the
attention that the patch recorded, and runs nothing. `make guard-text` measures this page again: `{model}` in float32
on a CPU, {texts}. A text is {passages} passages of {tokens} tokens; the last one's patch (10 % of its bytes) is
formed behind the three before it, or behind all {others}, and judged after a drift. KL is of the {behind} next tokens
behind it, in nats, against a full prefill of what stands there; all other chunks stand as prefilled, so it is the
cost of this one patch. A case is harmful above {max_kl} nats.

## What drifts cost

{kinds}

*worse than blind*: reuse costs more than the chunk without its patch. *to the front*: nothing stands before the chunk
any more, so that without the patch it is exact. *back at the end*: of seven antecedents the first two have gone, and
two strangers stand behind the others. *neighbours blind*: the antecedents stand there without their own patches.

## Without a calibration

The prior expects

$$\\text{{KEPT}} + \\text{{LOST}} \\cdot \\text{{lost}}^2 + \\text{{ADDED}} \\cdot \\text{{added}}^2
+ \\text{{MOVED}} \\cdot \\text{{moved}}$$

nats: *lost* is the share of attention (of the
deeper half of the layers) that went to antecedents which are gone, *added* the share that new chunks take, each as
much as the antecedent had that stood as far before the chunk, *moved* the share of those out of order. Where nothing
is left it expects more than without the patch, which is BARE. A reuse is accepted where {margin:g} times the expected
cost is within the budget.

{constants}

What it expects ranks the cases with a Spearman correlation of {rank[prior]:.2f} (where something has changed); it is
{over} what was measured on average.

{by_prior}

It saves {prior_saves:.0%} of the FLOPs of forming every patch anew.

## With a calibration

`kj.calibrate` regresses the logarithm of the KL on that of the change of attention (the sketch's layer here: {layer})
and on that of what the prior expects, with the prior as ten observations, and accepts up to where at most one in a
hundred of the accepted is expected to be harmful; with fewer than 300 drifts, where the regression itself decides,
half of that.

{calibrated}

## Where it fails

{fails}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page."""
    texts = " and ".join(f"{count} texts of `{name}`" for name, count in result["texts"].items())
    ratios = result["prior_over_measured"]
    over = " and ".join(f"{ratio:.2f} times (`{name}`)" for name, ratio in ratios.items())
    given = {
        name: result[name] for name in ("model", "passages", "tokens", "behind", "max_kl", "margin", "layer", "rank")
    }
    return PAGE.format(
        texts=texts,
        others=result["passages"] - 1,
        kinds=_kinds(result["kinds"]),
        constants=_constants(result),
        over=over,
        by_prior=_by_prior(result["prior"]),
        prior_saves=result["prior_saves"],
        calibrated=_calibrated(result),
        fails=_fails(result),
        **given,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _kinds(kinds: Sequence[Mapping[str, Any]]) -> str:
    head = ["drift", "cases", "reuse", "without the patch", "expected by the prior", "harmful", "worse than blind"]
    rows = [
        [
            *(kind["kind"], kind["cases"], *(f"{kind[name]:.4f}" for name in ("kl", "blind", "prior"))),
            *(f"{kind[name]:.0%}" for name in ("harmful", "worse_than_blind")),
        ]
        for kind in kinds
    ]
    return _table(
        [*head, "accepted by the prior"],
        [[*row, f"{k['accepted_by_prior']:.0%}"] for row, k in zip(rows, kinds, strict=True)],
    )


def _constants(result: Mapping[str, Any]) -> str:
    fitted = result["constants_fitted"]
    names = list(result["constants"])
    rows = [["in use", *(f"{result['constants'][name]:g}" for name in names)]]
    rows += [[f"fitted to `{corpus}`", *(f"{values[name]:g}" for name in names)] for corpus, values in fitted.items()]
    return _table(["nats", *names], rows)


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["interval_95"]
    return f"{found['share']:.3f} ({low:.3f}–{high:.3f}) of {found['of']}"


HEAD = ("harmless accepted (95 %)", "accepted within budget (95 %)", "the same where something changed")


def _judged(found: Mapping[str, Any]) -> list[str]:
    changed = found["changed"]
    both = f"{changed['harmless_accepted']['share']:.3f}; {changed['accepted_within_budget']['share']:.3f}"
    return [_share(found["harmless_accepted"]), _share(found["accepted_within_budget"]), both]


def _by_prior(found: Mapping[str, Any]) -> str:
    rows = [[name, each["cases"], f"{each['harmful']:.0%}", *_judged(each)] for name, each in found.items()]
    return _table(["corpus", "cases", "harmful", *HEAD], rows)


def _calibrated(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"`{each['on']}`, {each['drifts']} drifts",
            f"`{each['held_out']}`",
            *_judged(each),
            f"{each['rank']:.2f}",
            f"{each['saves']:.0%}",
        ]
        for each in result["calibrated"]
    ]
    rows += [
        [f"half of the texts, {each['drifts']} drifts", "the others", *_judged(each), f"{each['rank']:.2f}", "–"]
        for each in result["halves"]
    ]
    return _table(["calibrated on", "held out", *HEAD, "rank correlation", "FLOPs saved"], rows)


def _fails(result: Mapping[str, Any]) -> str:
    missed = result["missed"]
    kinds: dict[str, int] = {}
    for each in missed:
        kinds[each["kind"]] = kinds.get(each["kind"], 0) + 1
    named = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    worst = max((each["kl"] for each in missed), default=0.0)
    ways = [*result["calibrated"], *result["halves"]]
    within = min(each["accepted_within_budget"]["share"] for each in ways)
    harmless = [each["harmless_accepted"]["share"] for each in ways]
    return f"""- Without a calibration {len(missed)} of the accepted cases are harmful: {named or "none"}; the worst
  costs {worst:.3f} nats. The prior knows nothing of what a text says: whether the next words depend on
  the antecedent that is gone. It is of one small language model; the embedded models, whose pages refer
  to one another, lose nats with an antecedent and have calibrations of their own.
- With one, the smallest share within the budget is {within:.3f}, and {min(harmless):.2f} to {max(harmless):.2f} of
  what is harmless is accepted. Texts differ more than cases of one text do: a calibration on other text than what
  is served is as safe as the two are alike.
- Each patch is judged by itself. In a window of many reused patches their errors add up; the budget is of each.
"""
