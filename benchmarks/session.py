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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from benchmarks.session_page import page_of
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
EVERY = 6
TURNS = 300
WINDOW = 8
"""Items that a window has room for, unless another number is asked for."""

TOKENS = 96
"""Of a passage."""

ANSWER = 8
"""Tokens of the reference's greedy answer at which distributions are compared."""

LOOK_BACK = 3
"""Every third turn of a sliding trace looks back."""

FAR = 12
"""At most so many items are looked back over."""

BEHIND = 32
"""Tokens of the text that goes on behind a window to which a passage came back."""

ROOM = 128
"""Slots for a question and its answer in the windows that reuse nothing."""

POLICIES: dict[str, kj.ReusePolicy | None] = {"default": None, "exact only": kj.ReusePolicy(max_kl=1e-9)}
"""What is compared: a session as it is, and stored patches behind what they were formed behind alone."""

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
    """Asks windows of the same chunks the same thing: a question, or how a known text goes on."""

    def __init__(self, vlm: Any, asked: str | np.ndarray, reference: kj.Window) -> None:
        self._vlm = vlm
        if isinstance(asked, str):
            tail = vlm.tail(asked)
            ids = np.asarray(tail.inputs["tokens"])[: int(tail.length)].tolist()
            answer = kj.generate(vlm, reference, asked, max_new_tokens=ANSWER, keep=False).tokens
            self._tail = segment_of(vlm, Tokens.of([*ids, *answer[:-1]])) if answer else tail
            at = np.arange(len(ids) - 1, len(ids) - 1 + ANSWER, dtype=np.int32)
        else:
            self._tail = segment_of(vlm, Tokens.of(asked))
            at = np.arange(len(asked), dtype=np.int32)
        self._at = np.minimum(at, int(self._tail.length) - 1)
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


def measure(
    vlm: Any,
    items: Sequence[Item],
    kind: str,
    *,
    turns: int,
    every: int,
    seed: int,
    progress: Callable[[str], None],
    room: int = WINDOW,
) -> dict[str, Any]:
    """One trace with every policy."""
    encoded = [each.content if isinstance(each.content, kj.Chunk) else kj.encode(vlm, each.content) for each in items]
    empty = kj.Window.empty(vlm, 64).preamble.chunk
    capacity = aligned(empty.length) + room * aligned(max(chunk.length for chunk in encoded))
    sessions = {name: kj.Session(vlm, capacity, policy=policy) for name, policy in POLICIES.items()}
    order = trace(kind, turns, seed)
    known: set[int] = set()
    rows: list[dict[str, Any]] = []
    flops: dict[str, float] = defaultdict(float)
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
            kept = _window(vlm, capacity + ROOM, ((running[key], None) for key in window.keys))
            blind = _window(vlm, capacity, ((chunk, None) for chunk in chunks))
            for name, reference in (("kl", kept), ("present", kj.prefill(vlm, chunks, capacity=capacity + ROOM))):
                asking = Asking(vlm, item.question, reference)
                row[name] = {"blind": asking.kl(blind)}
                for other, session in sessions.items():
                    assert session.keys == window.keys
                    row[name][other] = asking.kl(session.window)
        rows.append(row)
        progress(f"{kind}: turn {turn + 1}/{turns}")
    return {
        "trace": kind,
        "turns": turns,
        "window": room,
        "rows": rows,
        "flops": dict(flops),
        **summary(rows, list(sessions)),
    }


def recalls(vlm: Any, cases: int, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Passages that come back to any place of a sliding window, beside the same with the passage as it was encoded.

    The text goes on behind the window's last passage; the reference is a full prefill of the window.
    """
    rng = np.random.default_rng((seed, cases))
    ids = Reader(vlm, read("pydoc")).whole.ids
    start = int(rng.integers(len(ids) // 4))
    passages = [ids[place : place + TOKENS] for place in range(start, len(ids) - TOKENS, TOKENS)]
    chunks = [encode_segment(vlm, segment_of(vlm, Tokens.of(each))) for each in passages[: 3 * cases + WINDOW + FAR]]
    capacity = aligned(vlm.preamble.length) + WINDOW // 2 * aligned(TOKENS)
    session = kj.Session(vlm, capacity)
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < cases:
        for _ in range(3 if rows else WINDOW // 2 + FAR // 2):
            session.add(chunks[number])
            number += 1
            place = int(rng.integers(WINDOW // 2 - 1)) if len(rows) % 4 else 0
        key = session.evicted[-int(rng.integers(1, FAR // 2))]
        had = {entry.chunk.key: entry.patch for entry in session.window.entries}
        session.recall(key, at=place + 1)
        there = [entry.chunk for entry in session.window.entries]
        blind = _window(vlm, capacity, [(each, had.get(each.key)) for each in there])
        behind = start + number * TOKENS
        asking = Asking(vlm, ids[behind : behind + BEHIND], kj.prefill(vlm, there, capacity=capacity))
        kl = {"blind": asking.kl(blind), "default": asking.kl(session.window)}
        (served,) = [each for each in session.last if each.came]
        forwards = sum(not each.reused for each in session.last)
        rows.append({"place": session.keys.index(key), "action": served.action.value, "forwards": forwards, **kl})
        progress(f"recall: turn {len(rows)}/{cases}")
    worse = np.array([row["default"] - row["blind"] for row in rows])
    found = {name: _spread(np.array([row[name] for row in rows])) for name in ("blind", "default")}
    return {
        **found,
        "rows": rows,
        "actions": dict(Counter(row["action"] for row in rows)),
        "forwards": float(np.mean([row["forwards"] for row in rows])),
        "worse_than_blind": float(worse.max()),
    }


def _window(vlm: Any, capacity: int, pairs: Iterable[tuple[kj.Chunk, kj.Patch | None]]) -> kj.Window:
    window = kj.Window.empty(vlm, capacity)
    for chunk, patch in pairs:
        window = kj.append(window, chunk, patch, donate=True)
    return window


def _ran(vlm: Any, running: dict[str, kj.Chunk], window: kj.Window, new: kj.Chunk) -> float:
    """Go on with the chunks as they are run where nothing is reused; the FLOPs of that."""
    for key in set(running) - set(window.keys):
        del running[key]
    if new.key in running:
        return 0.0
    before = [(running[key], None) for key in window.keys if key != new.key]
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


NUMBERS = {
    "items": ITEMS,
    "every": EVERY,
    "half": WINDOW // 2,
    "tokens": TOKENS,
    "far": FAR,
    "answer": ANSWER,
    "behind": BEHIND,
}
"""Sizes that the page names."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sessions serve again.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="go through the traces with one model")
    one.add_argument("--model", default="smollm2-135m")
    one.add_argument("--turns", type=int, default=TURNS)
    one.add_argument("--every", type=int, default=EVERY, help="turns from one question to the next")
    one.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    one.add_argument("--window", type=int, default=WINDOW, help="items that a window has room for")
    one.add_argument("--recalls", type=int, default=0, help="so many recalls to any place, on a language model")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--json", type=Path, required=True)
    page = commands.add_parser("page", help="write the page of results")
    page.add_argument("results", type=Path, nargs="+")
    page.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "page":
        results = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
        options.page.write_text(page_of(results, NUMBERS), encoding="utf-8")
        return
    vlm = load(options.model)
    items = pages_of(options.seed) if vlm.architecture.media else texts(vlm, options.seed)
    start = time.perf_counter()

    def progress(what: str) -> None:
        if what.endswith(("0/" + str(options.turns), f"{options.turns}/{options.turns}")):
            print(f"{options.model}, {what}, {time.perf_counter() - start:.0f} s", flush=True)

    results = [
        measure(
            vlm,
            items,
            kind,
            turns=options.turns,
            every=options.every,
            seed=options.seed,
            progress=progress,
            room=options.window,
        )
        for kind in options.traces
    ]
    written: dict[str, Any] = {"model": options.model, "traces": results}
    if options.recalls:
        written["recalls"] = recalls(vlm, options.recalls, options.seed, progress)
    options.json.write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
