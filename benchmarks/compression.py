"""Chunks in few bits beside each other at their bytes: `python -m benchmarks.compression measure | page`.

`make results-compression` runs both.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from eval import evaluate
from eval.report import style
from eval.report.readme import put
from eval.report.run_tables import cell
from eval.tasks.binding import Binding
from kamera_jax.kv import KV
from models import load
from models.hub.basis import BASIS, save_basis
from models.registry import CHECKPOINTS

ATTENTIONS = ("gqa", "mla", "mha")
LIMIT = 25
"""Contexts of each of three seeds."""

METHODS = (
    *("patch:5%", "patch:10%", "int8+patch:10%"),
    *("kivi:4", "kivi:4+patch:10%", "kivi:2+patch:10%", "kivi:2:channel+patch:10%"),
    *("saw:4+patch:10%", "saw:2+patch:10%"),
    *("turbo:4+patch:10%", "turbo:3+patch:10%", "turbo:2+patch:10%", "turbo:2+patch:5%"),
    *("turbo:1+patch:10%", "turbo:1+patch:8%", "turbo:1+patch:6%"),
    *("pca:0.5+patch:10%", "pca:0.5+kivi:4+patch:10%", "pca:0.25+patch:10%"),
    *("pca:0.25+kivi:4+patch:10%", "pca:0.25+kivi:4+patch:8%", "pca:0.25+kivi:2+patch:10%"),
    *("capsule:0.4", "capsule:0.4+patch:10%", "capsule:0.6+patch:10%"),
    *("capsule:0.4+kivi:4+patch:10%", "capsule:0.6+kivi:4+patch:10%"),
    *("xkv:1:16+patch:10%", "xkv:1:16+kivi:4+patch:10%", "xkv:5:32+kivi:4+patch:10%"),
    *("mixed:0.25:4:2+patch:10%", "mixed:0.25:4:1+patch:10%"),
    *("copy:8", "copy:4", "copy:2", "copy:1", "copy:1:channel"),
)

BASIS_SEED = 70_000_000
"""Far from the seeds of training and of every evaluation."""

BASIS_CONTEXTS = 100

TRAINED = ("gqa",)
"""Models of which the network of ``capsule``, and how questions ask, is kept beside the weights."""

STORAGES = ("exact", "int8", "kivi:4", "kivi:2", "saw:4", "turbo:4", "turbo:2")
CHUNKS = 1000
SHAPE = (4, 128, 512)
"""Layers, tokens and features of keys and of values of each chunk that is stored: 1 MiB in 16 bits."""

MARKS = {
    "exact": (style.BLACK, "o"),
    "int8": (style.GREY, "s"),
    "kivi": (style.BLUE, "^"),
    "saw": (style.GREEN, "v"),
    "turbo": (style.ORANGE, "D"),
    "pca": (style.SKY, "P"),
    "xkv": (style.VERMILION, "X"),
    "capsule": (style.VERMILION, "h"),
    "mixed": (style.YELLOW, "*"),
    "copy": (style.PURPLE, "x"),
}
"""Colours and markers, by what stores the chunks."""


def measured(attention: str, limit: int, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Every method on one embedded model, whose KV is in 16 bits, that what is kept of the model suffices for."""
    methods = [name for name in methods if attention in TRAINED or not ("capsule" in name or ":measured" in name)]
    vlm = load(f"kamera-tiny-{attention}", dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        result = evaluate("binding", vlm, methods=methods, limit=limit, repeats=0, output=Path(folder) / "run")
        report = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    assert not result.scores.get("failed"), result
    scores = report["scores"]
    rows = []
    for name, own in scores["methods"].items():
        one = own["hops"]["1"]
        two = own["hops"]["2"]
        rows.append(
            {"method": name, "one_hop": cell(one), "two_hops": cell(two), "accuracy": two["accuracy"]}
            | {"kl": two["kl"], "eta": own["eta"], "patch_share": own["cost"]["bytes_share"]}
            | {"total_share": own["cost"]["total_share"], "computed_share": 1 - own["cost"]["tokens_avoided_share"]}
            | {"samples": two["samples"]}
            | {"model_bytes": own["cost"].get("model_bytes", 0)}
        )
    return {"model": f"kamera-tiny-{attention}", "contexts": scores["contexts"], "methods": rows}


def basis(attention: str, capsule: bool = False) -> kj.CodecBasis:
    """What codecs take of an embedded model, of pages and passages that no evaluation asks about.

    Of the model whose file stays small it has what is trained for capsule too, and how questions ask; of others if that
    is asked for.
    """
    vlm = load(f"kamera-tiny-{attention}", dtype="float32")
    task = Binding()
    contexts = [task.draw(outline) for outline in task.outline([BASIS_SEED], BASIS_CONTEXTS)]
    chunks = (kj.encode(vlm, item) for context in contexts for item in context.items)
    whole = capsule or attention in TRAINED
    questions = [question.text for context in contexts for question in context.questions] if whole else []
    return kj.calibrate_codec(vlm, chunks, capsule=whole, questions=questions)


def _chunks() -> list[kj.Chunk]:
    """Chunks of random KV under keys of their own, made by hand: no model is asked."""
    layers, tokens, width = SHAPE
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2, layers, tokens, width)).astype(np.float32)
    positions = jnp.arange(tokens, dtype=jnp.float32)[None]
    made = []
    for number in range(CHUNKS):
        kv = KV(*(jnp.asarray(np.roll(part, number, 1), jnp.bfloat16) for part in shared))
        key = f"{number:064x}"
        made.append(kj.Chunk(kv, positions, tokens, float(tokens), "benchmark", key=key, content=key, lineage=key))
    return made


def stored() -> list[dict[str, Any]]:
    """A library of many chunks by each storage: bytes on the disk, and seconds to put and to get one."""
    chunks = _chunks()
    rows = []
    for storage in STORAGES:
        with tempfile.TemporaryDirectory() as folder:
            with kj.ChunkLibrary.open(folder, mode="a") as library:
                library.put(chunks[0], storage=storage)  # compiles
                start = time.perf_counter()
                library.put_many(chunks, storage=storage)
                putting = (time.perf_counter() - start) / CHUNKS
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            library = kj.ChunkLibrary.open(folder)
            library.get(chunks[0].key)
            start = time.perf_counter()
            for chunk in chunks[1:]:
                library.get(chunk.key).kv.rot.block_until_ready()
            getting = (time.perf_counter() - start) / (CHUNKS - 1)
        rows.append({"storage": storage, "bytes": size, "put_s": putting, "get_s": getting})
    return rows


def family(name: str) -> str:
    """What stores the chunks of a method."""
    kind = name.partition("+")[0].partition(":")[0]
    return kind if kind in MARKS else "exact"


def bytes_of(row: dict[str, Any]) -> str:
    """Cells of a method: its patches and all that is stored, of the KV, and what is stored once for the model."""
    patches = f"{row['patch_share']:.1%}" if row["patch_share"] else "–"
    once = f"{row['model_bytes'] / 1024:,.0f} KiB" if row.get("model_bytes") else "–"
    return f"{patches} | {row['total_share']:.1%} | {once}"


def table(result: dict[str, Any]) -> str:
    """The tables of the page."""
    lines = []
    for model in result["models"]:
        two = model["methods"][0]["samples"]
        lines += [
            f"`{model['model']}`, {model['contexts']} contexts, {two} questions of two hops:",
            "",
            "| method | one hop | two hops | KL | η | patches, of the KV | all that is stored, of KV in 16 bits "
            "| once for the model |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in model["methods"]:
            lines.append(
                f"| `{row['method']}` | {row['one_hop']} | {row['two_hops']} | {row['kl']:.4f} | {row['eta']:.3f} | "
                f"{bytes_of(row)} |"
            )
        lines.append("")
    layers, tokens, width = SHAPE
    lines += [
        f"A library of {CHUNKS:,} chunks of {layers} layers, {tokens} tokens and {width} features of keys and of "
        "values, random bf16, by how they are stored:",
        "",
        "| storage | MB on the disk | of exact | put, ms each | get, ms each |",
        "|---|---|---|---|---|",
    ]
    exact = result["stored"][0]["bytes"]
    lines += [
        f"| `{row['storage']}` | {row['bytes'] / 1e6:,.0f} | {row['bytes'] / exact:.1%} | {1e3 * row['put_s']:.2f} | "
        f"{1e3 * row['get_s']:.2f} |"
        for row in result["stored"]
    ]
    return "\n".join(lines)


def plot(models: list[dict[str, Any]], path: Path) -> None:
    """Two-hop accuracy and KL against all that is stored, a column for each model."""
    with style.drawing(path, 4.6) as figure:
        panels = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False)
        for place, (column, model) in enumerate(zip(panels.T, models, strict=True)):
            column[0].set_title(style.lettered(place, model["model"].removeprefix("kamera-tiny-"), len(models)))
            for kind, (colour, marker) in MARKS.items():
                rows = [row for row in model["methods"] if family(row["method"]) == kind and row["method"] != "full"]
                shares = [100 * row["total_share"] for row in rows]
                for axes, values in zip(column, ([r["accuracy"] for r in rows], [r["kl"] for r in rows]), strict=True):
                    axes.plot(shares, np.maximum(values, 1e-5), marker, color=colour, label=kind, alpha=0.85)
            column[0].set_ylim(0, 1.05)
            column[1].set_yscale("log")
            column[1].set_xlabel("all that is stored, %")
        panels[0, 0].set_ylabel("two-hop accuracy")
        panels[1, 0].set_ylabel("KL to full, nats")
        style.legend(figure, panels[0], columns=5)


def main() -> None:
    """Measure, or write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    measure = parts.add_parser("measure")
    measure.add_argument("--json", type=Path, required=True)
    measure.add_argument("--limit", type=int, default=LIMIT)
    measure.add_argument("--only", choices=ATTENTIONS, nargs="*", default=ATTENTIONS)
    measure_basis = parts.add_parser("basis")
    measure_basis.add_argument("--only", choices=ATTENTIONS, nargs="*", default=ATTENTIONS)
    measure_basis.add_argument("--capsule", action="store_true", help="all that is kept of some models alone")
    page = parts.add_parser("page")
    page.add_argument("json", type=Path)
    page.add_argument("--page", type=Path, required=True)
    page.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "basis":
        for attention in options.only:
            save_basis(CHECKPOINTS / f"kamera-tiny-{attention}" / BASIS, basis(attention, options.capsule))
        return
    if options.part == "measure":
        models = [measured(attention, options.limit) for attention in options.only]
        result = {"models": models, "stored": stored()}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return
    result = json.loads(options.json.read_text(encoding="utf-8"))
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(put(text, "measured", table(result), "results-compression"), encoding="utf-8")
    plot(result["models"], options.plot)


if __name__ == "__main__":
    main()
