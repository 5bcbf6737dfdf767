"""Screens that differ in one region: what running the changed rows alone gives, beside encoding and the old chunk.

python -m benchmarks.renewal --json docs/results/renewal.json --page docs/similar.md
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks.renewal_page import table
from eval.commands.main import ATTENTIONS, EMBEDDED
from eval.report.readme import put
from eval.tasks.text import corpus
from eval.tasks.text.seen import PageReader
from eval.tasks.tokens import Tokens, segment_of
from eval.tiny import pages
from eval.tiny.episodes import question_text
from eval.tiny.glyphs import COLOUR_NAMES, COLOURS, NAMES
from kamera_jax.forward import _run, run
from kamera_jax.inference import renewing
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import Segment
from kamera_jax.transfer import to_device
from models import load
from models.ports.smol_vl.pages import page_of
from models.vlm import VisionLanguageModel

SEED = 97_000_000
"""Far from every seed of training and of the other measurements."""

EXTRAS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Shares of the tokens that are run beside those that changed."""

REGIONS = ((1, 1), (2, 3), (3, 5))
"""Rows and columns of cells that change, of a page of 6 x 10."""

ROWS = 6
COLUMNS = 10
VALUES = 4
"""Glyphs of a region that change their colour, at most; as many references elsewhere lead to them."""

STEADY = 6
"""Facts elsewhere."""

TEXT = "kamera-smol-vl"
TEXT_TOKENS = 96
TEXT_REGIONS = (4, 12)
"""Tokens in a row that change, of a page of text."""

QUOTED = 8
"""Tokens that a quotation begins with; the next ones are asked for."""

SERIES = 6
"""Screens that each differ from the one before."""

TIMED = ((96, 8), (384, 24))
"""Tokens of pages whose time is measured, and how many of them change."""

ROUNDS = 9


@dataclass(frozen=True)
class Asked:
    """A question of a screen: its kind, the answer now, and the answer on the screen before."""

    kind: str
    text: str
    answer: str
    before: str


def screen(rng: np.random.Generator, region: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[Asked]]:
    """A page of cells, the same page with other colours in a region, and questions about both.

    Beside the region stand facts that stay (``"kept"``), and behind it references that stay and lead to what changed
    (``"leads"``): the answer to these is another, though nothing is seen there that is.
    """
    height, width = region
    top = int(rng.integers(ROWS - height + 1))
    left = int(rng.integers(COLUMNS - width + 1))
    inside = np.zeros((ROWS, COLUMNS), bool)
    inside[top : top + height, left : left + width] = True
    places = rng.permutation(np.flatnonzero(inside))[:VALUES]
    outside = rng.permutation(np.flatnonzero(~inside))
    glyphs = iter(rng.permutation(len(NAMES)).tolist())
    old = rng.integers(0, pages.BACKGROUNDS, ROWS * COLUMNS)
    new = old.copy()
    changed = []
    asked = []
    for place in places:
        glyph = next(glyphs)
        before, after = (int(each) for each in rng.permutation(len(COLOURS))[:2])
        old[place] = pages.fact(glyph, before)
        new[place] = pages.fact(glyph, after)
        changed.append((glyph, COLOUR_NAMES[after], COLOUR_NAMES[before]))
        asked.append(Asked("changed", question_text(glyph), *changed[-1][1:]))
    behind = [place for place in outside if place > places.max()][: len(places)]
    for place, (target, now, before) in zip(behind, changed, strict=False):
        glyph = next(glyphs)
        old[place] = new[place] = pages.reference(glyph, target)
        asked.append(Asked("leads", question_text(glyph), now, before))
    for place in [place for place in outside if place not in behind][:STEADY]:
        glyph = next(glyphs)
        colour = int(rng.integers(len(COLOURS)))
        old[place] = new[place] = pages.fact(glyph, colour)
        asked.append(Asked("kept", question_text(glyph), COLOUR_NAMES[colour], COLOUR_NAMES[colour]))
    return old.reshape(ROWS, COLUMNS), new.reshape(ROWS, COLUMNS), asked


def kl(reference: np.ndarray, other: np.ndarray) -> float:
    """KL(reference ‖ other) of next-token logits, in nats."""
    a, b = (np.asarray(jax.nn.log_softmax(jnp.asarray(each, jnp.float32)), np.float64) for each in (reference, other))
    return float((np.exp(a) * (a - b)).sum())


def kv_error(ours: kj.Chunk, theirs: kj.Chunk) -> float:
    """Relative difference of KV, keys and values together."""
    a, b = (np.asarray(each.kv.features, np.float64) for each in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def variants(vlm: VisionLanguageModel, old: kj.Chunk, segment: Segment) -> Iterator[tuple[str, kj.Chunk, int]]:
    """By name chunks that may stand for a screen, and how many rows were run for each."""
    yield "stale", old, 0
    for extra in EXTRAS:
        made = kj.renew(vlm, old, segment, extra=extra)
        yield f"{extra:g}", made.chunk, len(made.rows)


class Scores:
    """Answers and their KL, by variant and kind of question."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        self.rows: dict[str, list[tuple[float, float]]] = {}

    def add(self, name: str, kind: str, right: bool, stale: bool, distance: float) -> None:
        self.values.setdefault((name, kind), []).append((float(right), float(stale), distance))

    def add_rows(self, name: str, rows: int, length: int, error: float) -> None:
        self.rows.setdefault(name, []).append((rows / length, error))

    def result(self) -> dict[str, Any]:
        """Means of everything, by variant."""
        found: dict[str, Any] = {}
        for (name, kind), values in self.values.items():
            right, stale, distance = np.mean(values, axis=0)
            cell = {"accuracy": float(right), "says_old": float(stale), "kl": float(distance)}
            found.setdefault(name, {"kinds": {}})["kinds"][kind] = {"questions": len(values), **cell}
        for name, values in self.rows.items():
            share, error = np.mean(values, axis=0)
            found[name] |= {"rows": float(share), "kv_error": float(error)}
            found[name]["encoded"] = float(np.mean([each[0] == 1 for each in values]))
        return found


def of_screens(vlm: VisionLanguageModel, region: tuple[int, int], count: int) -> dict[str, Any]:
    """The variants over screens in which a region of that size changes."""
    scores = Scores()
    moved: dict[str, list[float]] = {"unchanged": [], "changed": []}
    for number in range(count):
        rng = np.random.default_rng((SEED, region[0], region[1], number))
        cells, after, asked = screen(rng, region)
        old = kj.encode(vlm, pages.render(cells))
        segment = vlm.prepare(pages.render(after))
        exact = encode_segment(vlm, segment)
        for name, values in zip(moved, _moved(old, segment, cells != after), strict=True):
            moved[name] += values
        reference = _answers(vlm, exact, asked)
        for name, chunk, rows in [("exact", exact, exact.length), *variants(vlm, old, segment)]:
            scores.add_rows(name, rows, exact.length, kv_error(chunk, exact))
            for ask, ours, theirs in zip(asked, _answers(vlm, chunk, asked), reference, strict=True):
                said = vlm.decode([int(ours.argmax())]).strip().lower()
                stale = said == ask.before != ask.answer
                scores.add(name, ask.kind, said == ask.answer, stale, kl(theirs, ours))
    return {
        "region": list(region),
        "screens": count,
        "tokens": exact.length,
        "moved": _spread(moved["unchanged"], moved["changed"]),
        "variants": scores.result(),
    }


def _moved(old: kj.Chunk, new: Segment, differs: np.ndarray) -> tuple[list[float], list[float]]:
    """By how much embeddings moved: of cells that are the same, and of others."""
    assert old.source is not None
    media = np.asarray(old.source.inputs["is_media"])[: old.length]
    grid = renewing.deviations(old.source, new)[media].reshape(-1, COLUMNS)
    around = (len(grid) - ROWS) // 2  # some towers see pages padded to a square
    own = grid[around : around + ROWS]
    rest = np.delete(grid, np.arange(around, around + ROWS), axis=0)
    return [*own[~differs].tolist(), *rest.reshape(-1).tolist()], own[differs].tolist()


def _spread(unchanged: Sequence[float], changed: Sequence[float]) -> dict[str, dict[str, float]]:
    return {
        "unchanged": {"largest": max(unchanged), "p99": float(np.quantile(unchanged, 0.99))},
        "changed": {"least": min(changed), "median": statistics.median(changed)},
    }


def _answers(vlm: VisionLanguageModel, chunk: kj.Chunk, asked: Sequence[Asked]) -> list[np.ndarray]:
    window = kj.append(kj.Window.empty(vlm, 256), chunk)
    return [np.asarray(kj.query(vlm, window, each.text)) for each in asked]


def series(vlm: VisionLanguageModel, count: int) -> list[dict[str, Any]]:
    """A series of screens: each made from the one before, or from the first, or kept as the first was."""
    steps: list[dict[str, list[tuple[float, float]]]] = [{} for _ in range(SERIES)]
    for number in range(count):
        rng = np.random.default_rng((SEED, 1, number))
        cells, _, _ = screen(rng, REGIONS[1])
        first = last = kj.encode(vlm, pages.render(cells))
        for step in steps:
            top = int(rng.integers(ROWS - 1))
            left = int(rng.integers(COLUMNS - 2))
            cells = cells.copy()
            cells[top : top + 2, left : left + 3] = rng.integers(pages.BACKGROUNDS, pages.N_CELLS, (2, 3))
            segment = vlm.prepare(pages.render(cells))
            exact = encode_segment(vlm, segment)
            chain = kj.renew(vlm, last, segment)
            direct = kj.renew(vlm, first, segment)
            last = chain.chunk
            for name, chunk, rows in (
                ("chain", chain.chunk, len(chain.rows)),
                ("from_first", direct.chunk, len(direct.rows)),
                ("stale", first, 0),
            ):
                step.setdefault(name, []).append((kv_error(chunk, exact), rows / exact.length))
    return [
        {
            name: dict(zip(("kv_error", "rows"), np.mean(values, axis=0).tolist(), strict=True))
            for name, values in each.items()
        }
        for each in steps
    ]


def of_text(vlm: VisionLanguageModel, region: int, count: int) -> dict[str, Any]:
    """Pages of text in which some tokens in a row are others: how quotations of the page go on."""
    scores = Scores()
    reader = PageReader(vlm, corpus.read("docstrings"))
    passages = reader.chosen(0, TEXT_TOKENS)
    moved: dict[bool, list[float]] = {False: [], True: []}
    for number in range(count):
        ids, others = passages[2 * number : 2 * number + 2]
        at = int(np.random.default_rng((SEED, 2, region, number)).integers(QUOTED, TEXT_TOKENS // 2))
        after = ids.copy()
        after[at : at + region] = others[:region]
        old = kj.encode(vlm, page_of(vlm, ids.tolist()))
        segment = vlm.prepare(page_of(vlm, after.tolist()))
        exact = encode_segment(vlm, segment)
        assert old.source is not None
        for token, other, distance in zip(ids, after, renewing.deviations(old.source, segment), strict=True):
            moved[token != other].append(float(distance))
        spans = {"changed": (at, region), "kept": (at + region + QUOTED, 24)}
        reference = {kind: _quoted(vlm, exact, after, *span) for kind, span in spans.items()}
        for name, chunk, rows in [("exact", exact, exact.length), *variants(vlm, old, segment)]:
            scores.add_rows(name, rows, exact.length, kv_error(chunk, exact))
            for kind, (start, length) in spans.items():
                for place, (ours, theirs) in enumerate(
                    zip(_quoted(vlm, chunk, after, start, length), reference[kind], strict=True)
                ):
                    said = int(ours.argmax())
                    token = int(after[start + place])
                    before = int(ids[start + place])
                    scores.add(name, kind, said == token, said == before != token, kl(theirs, ours))
    return {
        "region": [region],
        "screens": count,
        "tokens": exact.length,
        "moved": _spread(moved[False], moved[True]),
        "variants": scores.result(),
    }


def _quoted(vlm: VisionLanguageModel, chunk: kj.Chunk, ids: np.ndarray, start: int, length: int) -> np.ndarray:
    """Logits of the tokens of a page from ``start`` on, behind the page and a quotation that begins before them."""
    window = kj.append(kj.Window.empty(vlm, 256), chunk)
    tail = segment_of(vlm, Tokens.of(ids[start - QUOTED : start + length - 1]))
    asked = np.arange(QUOTED - 1, QUOTED + length - 1, dtype=np.int32)
    base = np.float32(window.next_position)
    output = run(vlm.params, tail, window.state, asked, base=base, forward=vlm.forward)
    return np.asarray(output.logits)


def times(vlm: VisionLanguageModel, tokens: int, changed: int) -> dict[str, Any]:
    """Seconds of encoding a prepared page, and of renewing it, in turns; and of preparing it, which both take."""
    passages = PageReader(vlm, corpus.read("docstrings")).chosen(0, tokens)
    ids = passages[0].copy()
    old = kj.encode(vlm, page_of(vlm, ids.tolist()))
    ids[8 : 8 + changed] = passages[1][:changed]
    image = page_of(vlm, ids.tolist())
    segment = vlm.prepare(image)
    calls = {
        "prepare": lambda: vlm.prepare(image).inputs,
        "encode": lambda: encode_segment(vlm, segment).kv,
        "changed": lambda: kj.renew(vlm, old, segment, extra=0).chunk.kv,
        "renew": lambda: kj.renew(vlm, old, segment).chunk.kv,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            if round_:  # the first compiles
                seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["encode"], strict=True))
        for name in ("changed", "renew")
    }
    made = {"changed": kj.renew(vlm, old, segment, extra=0), "renew": kj.renew(vlm, old, segment)}
    whole = flops(vlm, old, old.length)
    counted = {name: flops(vlm, old, len(each.rows)) / whole for name, each in made.items()}
    counted["renew"] += renewing.LAYERS / vlm.spec.layers
    return {
        "tokens": old.length,
        "replaced": changed,
        "median_s": middle,
        "least_s": {name: min(each) for name, each in seconds.items()},
        "of_encoding": ratios,
        "rows": {name: len(each.rows) for name, each in made.items()},
        "flops": counted,
    }


def flops(vlm: VisionLanguageModel, chunk: kj.Chunk, rows: int) -> float:
    """FLOPs of the compiled program that runs so many rows, of all rows of that which encodes; one layer of each."""
    segment = chunk.source
    assert segment is not None
    if rows == chunk.length:
        state, base = renewing._behind(vlm, chunk)
        sent, at = to_device((segment, np.float32(base)))
        lowered = _run.lower(vlm.params, sent, state, None, at, forward=vlm.forward)
    else:
        given, how = renewing._call(vlm, chunk, segment, np.arange(rows, dtype=np.int32))
        lowered = renewing._run_rows.lower(*given, **how)
    counted: Any = lowered.compile().cost_analysis()
    return float(counted["flops"])


def measure(screens: int, texts: int) -> dict[str, Any]:
    models = []
    for attention in ATTENTIONS:
        vlm = load(EMBEDDED + attention)
        rows = [of_screens(vlm, region, screens) for region in REGIONS]
        models.append({"model": EMBEDDED + attention, "regions": rows, "series": series(vlm, screens)})
    vlm = load(TEXT)
    models.append({"model": TEXT, "regions": [of_text(vlm, region, texts) for region in TEXT_REGIONS]})
    return {
        "tolerance": renewing.TOLERANCE,
        "extra": renewing.EXTRA,
        "extras": list(EXTRAS),
        "models": models,
        "times": {"model": TEXT, "rounds": ROUNDS, "pages": [times(vlm, *each) for each in TIMED]},
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screens", type=int, default=16, help="of each size of region and model")
    parser.add_argument("--texts", type=int, default=8, help="pages of text of each size of region")
    parser.add_argument("--json", type=Path, default=Path("docs/results/renewal.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/similar.md"))
    options = parser.parse_args()
    result = measure(options.screens, options.texts)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = put(options.page.read_text(encoding="utf-8"), "measured", table(result), "bench-renewal")
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
