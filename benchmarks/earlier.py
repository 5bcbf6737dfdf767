"""Earlier measurements of codecs beside those of this repository: `python -m benchmarks.earlier FOLDER --page FILE`.

The earlier ones are of a model of the same shape as kamera-tiny-gqa (5 layers, 64 features of keys and of values) and
of one like kamera-tiny-mla, on the plain condition of `binding`, three pages of 62 tokens: 160 questions of 40 contexts
for what quantises or has few components, 80 of 20 contexts for what keeps fewer rows. They were made by other code,
before this repository had codecs, and are given here as data, to the digits that were kept.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.report.readme import put
from kamera_jax.compress.codec import Shape, codec
from kamera_jax.identity import SELECTS

RESULTS = ("compression", "selection")
"""What it is made of, by the names of the files."""

ERRORS = {"all": 0.02, "fewer": 0.05}
"""Standard errors of the earlier accuracies: of chunks that keep all rows, 160 questions, and fewer rows, 80."""

TOKENS = 62
LAYERS = 5
SHAPES = {"kamera-tiny-gqa": Shape(64, 64, 2, LAYERS), "kamera-tiny-mla": Shape(32, 128, 1, LAYERS)}

RANK = "patches of 10 % are of fewer components than 12, and in eight bits"
GROUPS = "values by token; earlier by channel"
AGAIN = "the model was trained anew since"
TRAINED = f"{AGAIN}, and one bit is at its edge"
HEADS = "one choice for all layers and heads; earlier one for each head"
QUERIES = f"{HEADS}, of the question's queries"


class Earlier(NamedTuple):
    """An earlier figure, and what is nearest to it here.

    Attributes:
        model: here.
        what: was measured.
        method: here.
        one: one-hop accuracy; None where it was not kept.
        two: two-hop accuracy.
        kl: KL to full prefill at the first answer token over two hops, in nats; None where it was not kept.
        bits: of a number, scales included; None where no codec packed.
        differs: what is not the same here, which is said where figures differ by more than their errors.
    """

    model: str
    what: str
    method: str
    one: float | None
    two: float
    kl: float | None = None
    bits: float | None = None
    differs: str = RANK


def _gqa(what: str, method: str, two: float, kl: float, bits: float | None = None, **more: Any) -> Earlier:
    """Of chunks that keep all rows."""
    return Earlier("kamera-tiny-gqa", what, method, more.pop("one", None), two, kl, bits, **more)


def _fitted(codec: str, two: float, kl: float, bits: float, what: str = "") -> Earlier:
    """Of a codec, with patches of rank 12 that were fitted to what comes back."""
    return _gqa(f"{what or f'`{codec}`'}, patches of rank 12", f"{codec}+patch:10%", two, kl, bits)


def _rows(what: str, selection: str, one: float, two: float, differs: str = HEADS) -> Earlier:
    """Of a share of the rows of full prefill's KV, which a patch gives back nearly."""
    return Earlier("kamera-tiny-gqa", what, f"{selection}+patch:10%", one, two, differs=differs)


def _mla(codec: str, two: float = 1.0) -> Earlier:
    return Earlier("kamera-tiny-mla", f"`{codec}`, patches of rank 12", f"{codec}+patch:10%", None, two)


FIGURES: tuple[Earlier, ...] = (
    Earlier("kamera-tiny-gqa", "full prefill", "full", None, 1.0),
    Earlier("kamera-tiny-gqa", "blind reuse", "blind", None, 0.106),
    Earlier("kamera-tiny-gqa", "patches of rank 12", "patch:10%", None, 1.0),
    _gqa("full prefill's KV in four bits", "copy:4", 1.0, 0.0, 5.0),
    _gqa("full prefill's KV in two bits", "copy:2", 1.0, 0.0003, 3.0),
    _gqa("full prefill's KV in one bit", "copy:1", 0.838, 0.78, 2.0, one=0.70, differs=GROUPS),
    _gqa("the same, values by channel", "copy:1:channel", 0.838, 0.78, 2.0, one=0.70, differs=TRAINED),
    _fitted("int8", 1.0, 0.0, 8.5),
    _fitted("kivi:4", 1.0, 0.0, 5.0),
    _fitted("saw:4", 1.0, 0.0, 5.0),
    _fitted("turbo:4", 1.0, 0.0004, 4.5),
    _fitted("turbo:3", 0.994, 0.017, 3.5),
    _fitted("kivi:2", 0.994, 0.030, 3.0),
    _fitted("kivi:2:channel", 0.994, 0.064, 3.0),
    _fitted("saw:2", 0.994, 0.04, 3.0),
    _fitted("turbo:2", 0.994, 0.09, 2.5),
    _fitted("xkv:1:16", 1.0, 0.0006, 8.1, "own SVD of rank 16"),
    _fitted("pca:0.5", 1.0, 0.0, 8.0, "half of the components"),
    _fitted("pca:0.5+kivi:4", 1.0, 0.0, 2.3, "half of the components in four bits"),
    _fitted("pca:0.25", 1.0, 0.0, 4.0, "a quarter of the components"),
    _rows("half the rows, KVzip's replay, one choice", "kvzip:0.5", 1.0, 1.0, AGAIN),
    _rows("a quarter, KVzip's replay, one choice", "kvzip:0.25", 0.78, 0.78, AGAIN),
    _rows("half, KeyDiff by head", "keydiff:0.5", 0.98, 1.0),
    _rows("a quarter, KeyDiff by head", "keydiff:0.25", 0.88, 0.71),
    _rows("half, leverage by head", "leverage:0.5", 1.0, 0.98),
    _rows("a quarter, leverage by head", "leverage:0.25", 0.80, 0.69),
    _rows("half, large keys by head", "knorm:0.5", 1.0, 1.0),
    _rows("a quarter, large keys by head", "knorm:0.25", 0.95, 0.83),
    _rows("half, expected attention of own queries", "expected:0.5", 0.98, 0.48),
    _rows("a quarter, expected attention of own queries", "expected:0.25", 0.78, 0.31),
    _rows("half, expected attention of questions", "expected:0.5:measured", 0.98, 0.53),
    _rows("a quarter, expected attention of questions", "expected:0.25:measured", 0.73, 0.40),
    _rows("half, TriAttention's centres of questions", "tri:0.5", 0.98, 0.74, QUERIES),
    _rows("a quarter, TriAttention's centres of questions", "tri:0.25", 0.83, 0.44, QUERIES),
    _rows("a quarter, KVzip by head, merged by pivot", "kvzip:0.25+merge:pivot", 0.93, 0.86),
    _rows("a quarter, KVzip by head, merged by average", "kvzip:0.25+merge:average", 0.83, 0.81),
    _rows("a quarter, KVzip by head, merged, weighted", "kvzip:0.25+merge:weighted", 0.80, 0.74),
    _rows("a quarter, KVzip by head, values merged", "kvzip:0.25+merge:values", 0.93, 0.86),
    Earlier("kamera-tiny-mla", "full prefill", "full", None, 1.0),
    Earlier("kamera-tiny-mla", "blind reuse", "blind", None, 0.150),
    *map(_mla, ("int8", "kivi:4", "kivi:2", "saw:2", "turbo:3", "pca:0.5+kivi:4")),
)


def bits_of(figure: Earlier) -> float | None:
    """Bits of a number here, of pages as long as the earlier ones; None where nothing packs the chunks."""
    name, _, _ = figure.method.partition("+patch")
    name = name.replace("copy", "kivi")
    if figure.bits is None or name in ("full", "blind"):
        return None
    shape = SHAPES[figure.model]
    return 8 * codec(name).nbytes(TOKENS, LAYERS, shape, "bfloat16") / (TOKENS * LAYERS * (shape.rot + shape.free))


def _split(cell: str) -> tuple[float, float]:
    """An accuracy and its standard error, as tables have them."""
    value, _, error = cell.partition(" ± ")
    return float(value), float(error or 0)


def differs(figure: Earlier, row: Mapping[str, Any]) -> bool:
    """Whether an accuracy here is not the earlier one, by more than two standard errors of their difference."""
    own = ERRORS["fewer" if figure.method.partition(":")[0] in SELECTS else "all"]
    for earlier, cell in ((figure.one, row["one_hop"]), (figure.two, row["two_hops"])):
        value, error = _split(cell)
        if earlier is not None and abs(earlier - value) > 2 * math.hypot(own, error):
            return True
    return False


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of the page, of what ``compression.json`` and ``selection.json`` hold; the first that has a row."""
    measured: dict[tuple[str, str], Mapping[str, Any]] = {}
    for result in results:
        for model in result["models"]:
            for row in model["methods"]:
                measured.setdefault((model["model"], row["method"]), row)
    lines = [
        "| earlier | one hop / two hops (KL), bits | here | one hop / two hops (KL), bits | |",
        "|---|---|---|---|---|",
    ]
    missing = []
    for figure in FIGURES:
        attention = figure.model.removeprefix("kamera-tiny-")
        row = measured.get((figure.model, figure.method))
        if row is None:
            missing.append(f"`{figure.method}` ({attention})")
            continue
        one = "–" if figure.one is None else f"{figure.one:.3f}"
        kl = "" if figure.kl is None else f" ({figure.kl:.4f})"
        bits = "" if figure.bits is None else f", {figure.bits:.1f}"
        own = bits_of(figure)
        one_here, two_here = (_split(row[name])[0] for name in ("one_hop", "two_hops"))
        here = f"{one_here:.3f} / {two_here:.3f} ({row['kl']:.4f})" + ("" if own is None else f", {own:.1f}")
        verdict = f"differs: {figure.differs}" if differs(figure, row) else "within the errors"
        lines.append(
            f"| {attention}: {figure.what} | {one} / {figure.two:.3f}{kl}{bits} | `{figure.method}` | {here} | "
            f"{verdict} |"
        )
    if missing:
        lines += ["", f"Not measured here yet: {', '.join(missing)}."]
    return "\n".join(lines)


def main() -> None:
    """Write the page's section anew; nothing is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the folder with compression.json and selection.json")
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    results = [json.loads((options.results / f"{name}.json").read_text(encoding="utf-8")) for name in RESULTS]
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(put(text, "earlier", table(results), "pages"), encoding="utf-8")


if __name__ == "__main__":
    main()
