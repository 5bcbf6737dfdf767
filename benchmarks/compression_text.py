"""Codecs on the KV of a real language model: `python -m benchmarks.compression_text measure | page`.

`make results-compression-text` runs both. Two passages of real text stand in a window, and the next tokens behind them
are compared with those of full prefill. What is measured once for the model is measured on another text.
"""

import importlib
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import kamera_jax as kj
from benchmarks import section
from benchmarks.compression import bytes_of
from benchmarks.patch_text import segment_of
from eval import evaluate
from kamera_jax.inference.encode import encode_segment
from models import load

MODEL = "smollm2-135m"
TASK = "continuation:tokens=128,corpus=docstrings"
SEEDS = (0, 1, 2)
LIMIT = 2
"""Contexts of each seed, of 256 tokens and 32 that go on: all of it takes some minutes of two cores."""

BASIS_PASSAGES = 16
BASIS_TOKENS = 256
"""Of each passage of Python's documentation, for ``pca``; the task's text is docstrings of other packages."""

LETTERS = 4000
"""That have as many tokens, and fewer than the model is for."""

METHODS = (
    *("patch:10%", "patch:25%", "int8+patch:10%"),
    *("kivi:4", "kivi:4+patch:10%", "kivi:2+patch:10%", "kivi:2:channel+patch:10%"),
    *("saw:4+patch:10%", "turbo:4+patch:10%", "turbo:2+patch:10%"),
    *("pca:0.5+kivi:4+patch:10%", "xkv:1:32+kivi:4+patch:10%", "mixed:0.25:4:2+patch:10%"),
    *("kvzip:0.5+patch:10%", "copy:4", "copy:2"),
)


def _passages(vlm: Any) -> Iterator[kj.Chunk]:
    """The beginnings of what Python's ``help()`` says of its language."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        segment = vlm.prepare(topics[name][:LETTERS].rstrip())
        if segment.length >= BASIS_TOKENS:
            yield encode_segment(vlm, segment_of(np.asarray(segment.inputs["tokens"])[:BASIS_TOKENS]))


def measured(limit: int = LIMIT) -> dict[str, Any]:
    """Every method on the language model, whose KV is in 16 bits."""
    vlm = load(MODEL, dtype="bfloat16")
    kj.calibrate_codec(vlm, islice(_passages(vlm), BASIS_PASSAGES))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = evaluate(TASK, vlm, methods=METHODS, limit=limit, seeds=SEEDS, repeats=0, output=run)
        scores = json.loads((run / "results.json").read_text(encoding="utf-8"))["scores"]
    assert not result.scores.get("failed"), result
    rows = []
    for name, own in scores["methods"].items():
        each = own["hops"]["1"]
        cost = own["cost"]
        row = {"method": name, **{measure: each[measure] for measure in ("accuracy", "nll", "kl")}, "eta": own["eta"]}
        row |= {"patch_share": cost["bytes_share"], "total_share": cost["total_share"], "samples": each["samples"]}
        rows.append(row | {"model_bytes": cost.get("model_bytes", 0)})
    return {"model": MODEL, "task": TASK, "contexts": scores["contexts"], "methods": rows}


def table(result: dict[str, Any]) -> str:
    """The table of the page's section."""
    lines = [
        f"`{result['model']}` in bf16, `{result['task']}`: {result['contexts']} contexts, "
        f"{result['methods'][0]['samples']} next tokens.",
        "",
        "| method | next token right | nll | KL | η | patches, of the KV | all that is stored, of KV in 16 bits "
        "| once for the model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["methods"]:
        lines.append(
            f"| `{row['method']}` | {row['accuracy']:.3f} | {row['nll']:.3f} | {row['kl']:.4f} | {row['eta']:.2f} | "
            f"{bytes_of(row)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the page's section."""
    section.command(__doc__, "text", "results-compression-text", LIMIT, lambda options: measured(options.limit), table)


if __name__ == "__main__":
    main()
