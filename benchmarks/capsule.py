"""The reconstruction of KVCapsule by itself: `python -m benchmarks.capsule measure | page`.

`make results-capsule` runs both. Beside all other codecs it stands in `benchmarks.compression`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

import kamera_jax as kj
from benchmarks import section
from benchmarks.compression import BASIS_SEED, measured
from eval.tasks.binding import Binding
from kamera_jax.compress.basis import of_model
from kamera_jax.compress.codec import Shape, codec
from kamera_jax.compress.stage import PARTS
from models import load

ATTENTION = "gqa"
LIMIT = 8
"""Contexts of each of three seeds."""

METHODS = (
    *("patch:10%", "capsule:0.4", "capsule:0.4+patch:10%", "capsule:0.4:0+patch:10%", "capsule:0.4:-0.3+patch:10%"),
    *("capsule:0.6+patch:10%", "capsule:0.4+kivi:4+patch:10%", "capsule:0.6+kivi:4+patch:10%"),
    "pca:0.5+kivi:4+patch:10%",
)

SHARES = ("capsule:0.25", "capsule:0.4", "capsule:0.4:0", "capsule:0.6")
CONTEXTS = 12
"""Of which rows are compared, of a seed that neither training nor an evaluation has."""


def left() -> list[dict[str, Any]]:
    """What is left of the variance of keys and of values, by layer: of keys with the network, and without."""
    vlm = load(f"kamera-tiny-{ATTENTION}", dtype="float32")
    task = Binding()
    contexts = [task.draw(outline) for outline in task.outline([BASIS_SEED + 1], CONTEXTS)]
    chunks = [kj.encode(vlm, item) for context in contexts for item in context.items]
    trained = of_model(vlm.spec, vlm.fingerprint).capsule
    assert trained is not None
    nothing = replace(trained, second=trained.second * 0, second_bias=trained.second_bias * 0)
    rows = []
    for name in SHARES:
        row: dict[str, Any] = {"codec": name}
        for kind, basis in (("network", trained), ("neighbours", nothing)):
            lost: dict[str, Any] = dict.fromkeys(PARTS, 0.0)
            had: dict[str, Any] = dict.fromkeys(PARTS, 0.0)
            for chunk in chunks:
                by = codec(name)
                shape = Shape.of(chunk.kv, vlm.spec)
                leaves = by.encode(chunk.kv, chunk.length, shape.heads, basis.arrays)
                back = by.decode(leaves, chunk.length, shape, "float32", basis.arrays)
                for part in PARTS:
                    x, y = (np.asarray(getattr(kv, part)[:, : chunk.length], np.float64) for kv in (chunk.kv, back))
                    lost[part] += ((x - y) ** 2).sum((1, 2))
                    had[part] += ((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2))
            row[f"keys_{kind}"] = (lost["rot"] / had["rot"]).tolist()
            row["values"] = (lost["free"] / had["free"]).tolist()
        rows.append(row)
    return rows


def table(result: dict[str, Any]) -> str:
    """The tables of the page's section."""
    model = result["model"]
    two = model["methods"][0]["samples"]
    lines = [
        f"`{model['model']}`, {model['contexts']} contexts of `binding`, {two} questions of two hops:",
        "",
        "| method | one hop | two hops | KL | all that is stored, of KV in 16 bits | once for the model |",
        "|---|---|---|---|---|---|",
    ]
    for row in model["methods"]:
        once = f"{row['model_bytes'] / 1024:,.0f} KiB" if row["model_bytes"] else "–"
        figures = f"{row['one_hop']} | {row['two_hops']} | {row['kl']:.4f} | {row['total_share']:.1%}"
        lines.append(f"| `{row['method']}` | {figures} | {once} |")

    def layers(values: list[float]) -> str:
        return " ".join(f"{value:.2f}" for value in values)

    lines += [
        "",
        "What is left of the variance, layer by layer, on pages and passages that nothing was trained on:",
        "",
        "| codec | keys, with the network | keys between their neighbours alone | values |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row['codec']}` | {layers(row['keys_network'])} | {layers(row['keys_neighbours'])} | "
        f"{layers(row['values'])} |"
        for row in result["left"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the page's section."""

    def figures(options: Any) -> dict[str, Any]:
        return {"left": left(), "model": measured(ATTENTION, options.limit, METHODS)}

    section.command(__doc__, "capsule", "results-capsule", LIMIT, figures, table)


if __name__ == "__main__":
    main()
