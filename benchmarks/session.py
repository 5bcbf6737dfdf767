"""What a session serves again, what that saves, and what it costs: long traces of items that come back.

Items come by Zipf's law, or one after the other with looks back at what has left. At each turn an item is added; at
some of them the window is asked. Sessions with different policies go through the same trace, and their answers are
compared with those of two windows that reuse nothing: one in which every chunk that comes is run behind those that
stand there, and is dropped when it leaves (a KV cache that slides), and one that is prefilled from nothing each time.

python -m benchmarks.session measure --model smollm2-135m --json docs/results/session-smollm2.json
python -m benchmarks.session page docs/results/session-*.json --page docs/sessions.md
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from eval.run import metrics
from eval.tasks.text.corpus import read
from eval.tasks.text.reader import Reader
from eval.tasks.tokens import Tokens, segment_of
from eval.tiny.episodes import Recipe, draw_page, question_text
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from eval.tiny.pages import render
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.forward import run
from kamera_jax.inference.encode import encode_segment, run_chunk
from kamera_jax.window.window import aligned
from models import load

ITEMS = 30
TURNS = 300
WINDOW = 8
"""Items that a window has room for."""

TOKENS = 96
"""Of a passage."""

ANSWER = 8
"""Tokens of the reference's greedy answer at which distributions are compared."""

LOOK_BACK = 3
"""Every third turn of a sliding trace looks back."""

FAR = 12
"""At most so many items are looked back over."""

ROOM = 128
"""Slots for a question and its answer in the windows that reuse nothing."""

TRACES = ("zipf", "slide")


@dataclass(frozen=True)
class Item:
    """Something to add, and a question about it."""

    content: Any
    question: str


def trace(kind: str, turns: int, seed: int) -> list[int]:
    """Which item comes at each turn."""
    rng = np.random.default_rng((seed, TRACES.index(kind)))
    if kind == "zipf":
        shares = 1.0 / np.arange(1, ITEMS + 1)
        names = rng.permutation(ITEMS)
        return [int(names[i]) for i in rng.choice(ITEMS, turns, p=shares / shares.sum())]
    found: list[int] = []
    new = 0
    for turn in range(turns):
        if turn % LOOK_BACK == LOOK_BACK - 1 and new > 1:
            found.append((new - 1 - int(rng.integers(1, min(FAR, new)))) % ITEMS)
        else:
            found.append(new % ITEMS)
            new += 1
    return found


def texts(vlm: Any, seed: int) -> list[Item]:
    """Passages of Python's documentation, each asked for its longest word."""
    reader = Reader(vlm, read("pydoc"))
    found = []
    for ids in reader.chosen(seed, TOKENS)[:ITEMS]:
        words = sorted(set(reader.text(ids).split()), key=lambda word: (-len(word), word))
        word = next(word for word in words if word.isalpha())
        segment = segment_of(vlm, Tokens.of(ids))
        found.append(Item(encode_segment(vlm, segment), f"What is said about {word}?"))
    return found


def pages_of(seed: int) -> list[Item]:
    """Pages with facts and references, of which one is asked for."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(ITEMS):
        glyphs = [int(glyph) for glyph in rng.permutation(len(NAMES))[:6]]
        entries: dict[int, tuple[str, int]] = {}
        for glyph in glyphs[:3]:
            entries[glyph] = ("fact", int(rng.integers(len(COLOUR_NAMES))))
        for glyph in glyphs[3:]:
            target = int(rng.choice([other for other in range(len(NAMES)) if other not in glyphs]))
            entries[glyph] = ("reference", target)
        found.append(Item(render(draw_page(rng, Recipe(), entries)), question_text(glyphs[3])))
    return found


class Asking:
    """Asks windows of the same chunks the same question."""

    def __init__(self, vlm: Any, question: str, reference: kj.Window) -> None:
        self._vlm = vlm
        tail = vlm.tail(question)
        ids = np.asarray(tail.inputs["tokens"])[: int(tail.length)].tolist()
        answer = kj.generate(vlm, reference, question, max_new_tokens=ANSWER, keep=False).tokens
        self._tail = segment_of(vlm, Tokens.of([*ids, *answer[:-1]])) if answer else tail
        last = int(self._tail.length)
        self._at = np.minimum(np.arange(len(ids) - 1, len(ids) - 1 + ANSWER, dtype=np.int32), last - 1)
        self._full = self.logits(reference)

    def logits(self, window: kj.Window) -> jax.Array:
        """Next-token logits at the answer's tokens, f32[n, V]."""
        base = np.float32(window.next_position)
        found = run(self._vlm.params, self._tail, window.state, self._at, base, forward=self._vlm.forward).logits
        assert found is not None
        return found

    def kl(self, window: kj.Window) -> float:
        """Mean KL(reference ‖ window) over the answer's tokens, in nats."""
        return float(metrics.kl(self._full, self.logits(window)).mean())


def policies(vlm: Any) -> dict[str, kj.ReusePolicy | None]:
    """What is compared: the default, and patches behind what they were formed behind alone."""
    return {"default": None, "exact only": kj.ReusePolicy(max_kl=1e-9)}


def measure(
    vlm: Any,
    items: Sequence[Item],
    kind: str,
    *,
    turns: int,
    every: int,
    seed: int,
    progress: Callable[[str], None],
    compared: dict[str, kj.ReusePolicy | None] | None = None,
) -> dict[str, Any]:
    """One trace with every policy."""
    compared = policies(vlm) if compared is None else compared
    encoded = [each.content if isinstance(each.content, kj.Chunk) else kj.encode(vlm, each.content) for each in items]
    empty = kj.Window.empty(vlm, 64).preamble.chunk
    capacity = aligned(empty.length) + WINDOW * aligned(max(chunk.length for chunk in encoded))
    sessions = {name: kj.Session(vlm, capacity, policy=policy) for name, policy in compared.items()}
    order = trace(kind, turns, seed)
    known: set[int] = set()
    rows: list[dict[str, Any]] = []
    flops = Counter()
    before: tuple[str, ...] = ()
    running: dict[str, kj.Chunk] = {}
    for turn, number in enumerate(order):
        item = items[number]
        row: dict[str, Any] = {"turn": turn, "returning": number in known}
        known.add(number)
        encoding = 0.0 if row["returning"] else forward_flops(vlm, encoded[number].length, empty.length)
        flops["blind"] += encoding
        for name, session in sessions.items():
            session.add(encoded[number])
            served = session.last[0]
            estimate = _finite(served.estimate_kl)
            row[name] = {"action": served.action.value, "estimate": estimate, "reused": served.reused}
            flops[name] += encoding + sum(each.flops for each in session.last)
        window = sessions["default"].window
        flops["no reuse"] += _ran(vlm, running, window, encoded[number])
        flops["full prefill"] += _prefill_flops(vlm, window, 0)
        kept = 0
        while kept < min(len(before), len(window.keys)) and before[kept] == window.keys[kept]:
            kept += 1
        flops["prefix cache"] += _prefill_flops(vlm, window, kept)
        before = window.keys
        if turn % every == every - 1:
            chunks = [entry.chunk for entry in window.entries]
            kept = _window(vlm, capacity + ROOM, [running[key] for key in window.keys])
            blind = _window(vlm, capacity, chunks)
            for name, reference in (("kl", kept), ("present", kj.prefill(vlm, chunks, capacity=capacity + ROOM))):
                asking = Asking(vlm, item.question, reference)
                row[name] = {"blind": asking.kl(blind)}
                for other, session in sessions.items():
                    assert session.keys == window.keys
                    row[name][other] = asking.kl(session.window)
        rows.append(row)
        progress(f"{kind}: turn {turn + 1}/{turns}")
    return {"trace": kind, "turns": turns, "rows": rows, "flops": dict(flops), **summary(rows, list(sessions))}


def _window(vlm: Any, capacity: int, chunks: Sequence[kj.Chunk]) -> kj.Window:
    window = kj.Window.empty(vlm, capacity)
    for chunk in chunks:
        window = kj.append(window, chunk, donate=True)
    return window


def _ran(vlm: Any, running: dict[str, kj.Chunk], window: kj.Window, new: kj.Chunk) -> float:
    """Go on with the chunks as they are run where nothing is reused; the FLOPs of that."""
    for key in set(running) - set(window.keys):
        del running[key]
    if new.key in running:
        return 0.0
    before = [running[key] for key in window.keys if key != new.key]
    running[new.key] = run_chunk(vlm, _window(vlm, window.capacity, before), new)[0]
    return forward_flops(vlm, new.length, window.tokens - new.length)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _prefill_flops(vlm: Backbone, window: kj.Window, kept: int) -> float:
    """FLOPs of running a window's chunks but for the first ``kept``."""
    total = 0.0
    before = window.preamble.chunk.length
    for place, entry in enumerate(window.entries):
        if place >= kept:
            total += forward_flops(vlm, entry.chunk.length, before)
        before += entry.chunk.length
    return total


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Shares of actions and the KL of answers."""
    found: dict[str, Any] = {"sessions": {}}
    asked = [row for row in rows if "kl" in row]
    blind = {name: np.array([row[name]["blind"] for row in asked]) for name in ("kl", "present")}
    found["blind"] = {name: _spread(kls) for name, kls in blind.items()}
    returning = [row for row in rows if row["returning"]]
    for name in names:
        kls = {kind: np.array([row[kind][name] for row in asked]) for kind in blind}
        actions = Counter(row[name]["action"] for row in returning)
        found["sessions"][name] = {
            "returning": len(returning),
            "without_forward": float(np.mean([row[name]["reused"] for row in returning])),
            "actions": dict(actions),
            **{kind: _spread(own) for kind, own in kls.items()},
            "worse_than_blind": {kind: float((own - blind[kind]).max()) for kind, own in kls.items()},
            "worse_by_0.01": {kind: float((own > blind[kind] + 0.01).mean()) for kind, own in kls.items()},
        }
    return found


def _spread(values: np.ndarray) -> dict[str, float]:
    spread = {"mean": values.mean(), "p99": np.quantile(values, 0.99), "max": values.max()}
    return {**{name: float(value) for name, value in spread.items()}, "n": len(values)}


PAGE = """# Long sessions

`make bench-session` measures this again. {turns} turns over {items} items, of which a window has room for {window}:
passages of {tokens} tokens of Python's documentation for `smollm2-135m`, pages with facts and references for the
embedded models. In *zipf* an item comes with a probability that falls as one over its rank; in *slide* items come one
after the other, and every third turn looks back at one of the last {far}. Every third turn the window is asked, and the
next-token distributions at the {answer} tokens of the reference's greedy answer are compared.

The reference is a window in which every chunk is run behind those that stand there when it comes, and is dropped when
it leaves: a KV cache that slides, and reuses nothing but what still stands. *default* is a session as it is; *exact
only* takes a stored patch only where nothing has changed (`ReusePolicy(max_kl=1e-9)`), and forms one otherwise, so its
KL is what low rank costs; *blind* adds chunks as they were encoded.

## What comes back, and what it is served with

| model | trace | session | returning items | without a forward | in the window | no patch | stored patch | fresh |
|---|---|---|---|---|---|---|---|---|
{served}

## What that costs

KL in nats: mean, 99th percentile and largest of the turns that were asked. *worse*: turns whose answer is further from
the reference than blind reuse's by more than 0.01 nats. FLOPs are shares of what others run: prefilling the window at
each turn, a prefix cache (which runs what stands behind the first change), and the cache that slides.

| model | trace | session | KL | 99 % | largest | worse | FLOPs, of prefill | of a prefix cache | of a sliding cache |
|---|---|---|---|---|---|---|---|---|---|
{costs}

Beside a full prefill of what stands in the window at that moment, which knows nothing of what has left, all of them are
further away, because what has left is still in what it left behind:

| model | trace | session | KL | 99 % | worse |
|---|---|---|---|---|---|
{present}
"""


def page_of(results: Sequence[dict[str, Any]]) -> str:
    """The page of several models."""
    served: list[list[str]] = []
    costs: list[list[str]] = []
    present: list[list[str]] = []
    for result in results:
        for each in result["traces"]:
            start = [f"`{result['model']}`", each["trace"]]
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
                    served.append([*start, name, str(own["returning"]), f"{own['without_forward']:.2f}", *counts])
    tables = {"served": served, "costs": costs, "present": present}
    rows = {name: "\n".join(f"| {' | '.join(row)} |" for row in table) for name, table in tables.items()}
    numbers = {"items": ITEMS, "window": WINDOW, "tokens": TOKENS, "far": FAR, "answer": ANSWER}
    return PAGE.format(turns=results[0]["traces"][0]["turns"], **numbers, **rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sessions serve again.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="go through the traces with one model")
    one.add_argument("--model", default="smollm2-135m")
    one.add_argument("--turns", type=int, default=TURNS)
    one.add_argument("--every", type=int, default=3, help="ask at every so-manieth turn")
    one.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--json", type=Path, required=True)
    page = commands.add_parser("page", help="write the page of results")
    page.add_argument("results", type=Path, nargs="+")
    page.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "page":
        results = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
        options.page.write_text(page_of(results), encoding="utf-8")
        return
    vlm = load(options.model)
    items = pages_of(options.seed) if vlm.architecture.media else texts(vlm, options.seed)
    start = time.perf_counter()

    def progress(what: str) -> None:
        if what.endswith(("0/" + str(options.turns), f"{options.turns}/{options.turns}")):
            print(f"{options.model}, {what}, {time.perf_counter() - start:.0f} s", flush=True)

    results = [
        measure(vlm, items, kind, turns=options.turns, every=options.every, seed=options.seed, progress=progress)
        for kind in options.traces
    ]
    options.json.write_text(json.dumps({"model": options.model, "traces": results}, indent=1) + "\n", encoding="utf-8")
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))


if __name__ == "__main__":
    main()
