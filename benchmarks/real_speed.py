"""A real language model on this machine's CPU, beside the same weights in transformers on torch, in one run.

`make bench-real` measures anew and writes that section of docs/performance.md. Prefill (`benchmarks.decoding` has what
follows it), and what reuse saves: a chunk's KV moved and patched against running the chunk again, and how often a chunk
is looked at until forming its patch has paid. Times are medians of calls taken in turns; read the ratios. In f32, and
in each further dtype of ``--dtypes`` with the weights of both in it.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks.attention import cores, in_turns, without_broken_torchvision
from eval.tasks.text.corpus import read
from eval.tasks.text.reader import Reader
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.forward import run
from kamera_jax.handle import copied
from kamera_jax.inference.encode import encode_segment, run_chunk
from models import load
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.packaged import packaged

MODEL = "smollm2-135m"

PREFILLED = (256, 512, 1024, 2048, 4096, 8192)
"""Tokens that are run from nothing."""

CHUNKS = (128, 256, 512)
"""Tokens of a chunk that is reused, and of the chunk before it."""

SECTION = """
## Prefill on a CPU, beside torch

`make bench-real` measures this: {model} on {cores} cores, {dtypes}, from nothing; medians of calls taken in turns with
transformers {transformers} on torch {torch}. Ratios are torch's time over ours.

| tokens | {head} |
|---|{line}|
{rows}

Moving and patching a chunk behind another of as many tokens, against running it there:

| tokens | {reuse_head} |
|---|{line}|
{reuse_rows}
"""

DTYPES = ("float32", "bfloat16")
"""Of parameters and KV, ours and torch's. What the first gives is the result; those of others stand in it by name."""


def add_dtypes(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtypes``."""
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=DTYPES, metavar="NAME", help=f"of {', '.join(DTYPES)}, in order"
    )


def transformers_model(folder: Path, dtype: str = DTYPES[0]) -> Any:
    """The same weights in transformers."""
    import torch

    without_broken_torchvision()
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(cores())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def agreement(vlm: Any, peer: Any, ids: np.ndarray) -> dict[str, float]:
    """The largest difference of logits, of their range, and of the loss in nats."""
    import torch

    segment = segment_of(vlm, Tokens.of(ids))
    at = jnp.arange(len(ids), dtype=jnp.int32)
    ours = np.asarray(run(vlm.params, segment, None, at, forward=vlm.forward).logits, np.float64)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(ids)[None].long()).logits[0].double().numpy()
    losses = [_loss(logits, ids) for logits in (ours, theirs)]
    return {
        "tokens": len(ids),
        "logits": float(np.abs(ours - theirs).max() / np.ptp(theirs)),
        "loss": losses[0],
        "loss_difference": abs(losses[0] - losses[1]),
    }


def _loss(logits: np.ndarray, ids: np.ndarray) -> float:
    rows = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(ids) - 1), ids[1:]]))


def beside_torch(vlm: Any, peer: Any, ids: np.ndarray, runs: int) -> list[dict[str, Any]]:
    """Prefill; ``ratio`` is torch's time over ours."""
    import torch

    def theirs(tokens: np.ndarray) -> Any:
        with torch.no_grad():
            return peer(torch.from_numpy(tokens)[None].long(), logits_to_keep=1, use_cache=True).logits.float().numpy()

    def ours(tokens: np.ndarray) -> Any:
        segment = segment_of(vlm, Tokens.of(tokens))
        at = jnp.asarray([len(tokens) - 1], jnp.int32)
        return run(vlm.params, segment, None, at, forward=vlm.forward)

    rows = []
    for count in PREFILLED:
        seconds = in_turns({"torch": partial(theirs, ids[:count]), "ours": partial(ours, ids[:count])}, runs)["clock"]
        rows.append({"what": "prefill", "tokens": count, **seconds, "ratio": seconds["torch"] / seconds["ours"]})
    return rows


def reuse(vlm: Any, ids: np.ndarray, runs: int) -> list[dict[str, Any]]:
    """Moving and patching a chunk, its forward, and forming its patch, in seconds."""
    rows = []
    for count in CHUNKS:
        before, chunk = (
            encode_segment(vlm, segment_of(vlm, Tokens.of(ids[start : start + count]))) for start in (0, count)
        )
        window = kj.append(kj.Window.empty(vlm, 2 * count + 64), before)
        patch = kj.form_patch(vlm, chunk, context=window)
        # A session hands its buffers on: what is timed writes the chunk and copies no window.
        copies = [window.keeping(state=copied(window.state)) for _ in range(runs + 1)]
        jax.block_until_ready([each.state for each in copies])
        seconds = in_turns(
            {
                "reuse": lambda c=chunk, p=patch, own=copies: kj.append(own.pop(), c, p, donate=True).state,
                "prefill": lambda w=window, c=chunk: run_chunk(vlm, w, c)[0].kv,
                "form": lambda w=window, c=chunk: jax.tree.leaves(kj.form_patch(vlm, c, context=w).factors),
            },
            runs,
        )["clock"]
        saved = seconds["prefill"] - seconds["reuse"]
        rows.append(
            {
                "tokens": count,
                **seconds,
                "prefill_over_reuse": seconds["prefill"] / seconds["reuse"],
                "looks_until_forming_pays": seconds["form"] / saved if saved > 0 else None,
                "patch_bytes": patch.nbytes,
                "chunk_bytes": chunk.nbytes,
            }
        )
    return rows


def parts_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was measured, by dtype."""
    return {result.get("dtype", DTYPES[0]): result} | {name: result[name] for name in DTYPES[1:] if name in result}


def section(result: dict[str, Any]) -> str:
    """What was measured, for docs/performance.md."""
    parts = parts_of(result)
    prefill = [
        [f"{1e3 * row['torch']:,.0f} | {1e3 * row['ours']:,.0f} | {row['ratio']:.2f}" for row in part["beside_torch"]]
        for part in parts.values()
    ]
    reused = [
        [f"{1e3 * row['prefill']:,.0f} | {1e3 * row['reuse']:,.1f} | {row['prefill_over_reuse']:.0f}" for row in rows]
        for rows in (part["reuse"] for part in parts.values())
    ]
    counts = [row["tokens"] for row in result["beside_torch"]]
    line = "|".join(["---"] * 3 * len(parts))
    return SECTION.format(
        model=result["model"],
        cores=result["cores"],
        dtypes=" and ".join(parts),
        head=" | ".join(f"{name}: torch, ms | ours, ms | ratio" for name in parts),
        line=line,
        rows=_lines(counts, prefill),
        reuse_head=" | ".join(f"{name}: run, ms | moved, ms | ratio" for name in parts),
        reuse_rows=_lines([row["tokens"] for row in result["reuse"]], reused),
        **result["versions"],
    )


def _lines(counts: Sequence[int], columns: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {count:,} | {' | '.join(cells)} |" for count, *cells in zip(counts, *columns, strict=True))


def measured(dtype: str, runs: int) -> dict[str, Any]:
    """What is measured in a dtype."""
    vlm = load(MODEL, dtype=dtype)
    ids = np.asarray(Reader(vlm, read("pydoc")).whole.ids[: max(PREFILLED)])
    with hub_folder(packaged("smollm2")) as folder:
        peer = transformers_model(folder, dtype)
    return {
        "dtype": dtype,
        "agreement": agreement(vlm, peer, ids),
        "beside_torch": beside_torch(vlm, peer, ids, runs),
        "reuse": reuse(vlm, ids, runs),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a real language model beside torch.")
    parser.add_argument("--runs", type=int, default=7, help="of which the median is kept")
    parser.add_argument("--json", type=Path, default=Path("docs/results/real-speed.json"))
    add_dtypes(parser)
    arguments = parser.parse_args()
    first, *others = (measured(dtype, arguments.runs) for dtype in arguments.dtypes)
    result = {
        "model": MODEL,
        "cores": cores(),
        **first,
        **dict(zip(arguments.dtypes[1:], others, strict=True)),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
