"""Attention compiled for an H200 that is not here: decoding over chunks where they lie, and of a chunk to itself.

    python -m benchmarks.kernels_h200

writes ``"h200"`` into docs/results/kernels.json. It takes the environment that `.ci/newest` makes: jax 0.11 or newer,
which the kernel needs, and JAX's CUDA plug-in; beside it cuDNN (nvidia-cudnn-cu13), on the library path.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.ahead import hlo
from eval.ahead.chips import Target, compile_for, target
from models.blocks.softmax import Keys, attention
from pallas_kernels.chunk_attention.gpu import chunk_attention_gpu
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.chunk_attention.shapes import SHAPES

DECODED = ("qwen2.5-vl-7b decode", "llava-1.5-7b decode", "D = 64 decode", "D = 96 decode")
BACKENDS = {"mosaic_gpu": chunk_attention_gpu, "xla": chunk_attention_reference}
PREFILLED = (1024, 4096)
HEADS = 28
GROUPS = 4
DIM = 128


def by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention by cuDNN, as jax.nn calls it."""
    return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True, implementation="cudnn")[0]


def by_xla(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same as a decoder's forward calls it."""
    tokens = len(q)
    part = Keys(k, v, jnp.ones(tokens, bool), np.arange(1, tokens + 1, dtype=np.int32))
    return attention(q, [part], DIM**-0.5).out


def moved(on: Target, function: Any, arguments: tuple[Any, ...], ideal: int) -> dict[str, Any]:
    """Bytes of a program, over the ideal, and temporaries."""
    program = compile_for(on, function, arguments)
    count = hlo.hbm_bytes(program.as_text())
    return {
        "hbm_bytes": count,
        "ratio": count / ideal,
        "temporaries": program.memory_analysis().temp_size_in_bytes,
    }


def measure() -> dict[str, Any]:
    """Bytes, over those of every argument and result once, and temporaries, by shape and backend."""
    on = target("h200")
    here = jax.NamedSharding(on.mesh, jax.P())
    rows = []
    for name in DECODED:
        shape = SHAPES[name]
        call = jax.tree.map(lambda x: x.update(sharding=here), shape.call())
        out = 2 * shape.queries * shape.heads * (shape.free * shape.width // shape.rot)
        ideal = out + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(call))
        row: dict[str, Any] = {"shape": name, "ideal": ideal}
        row |= {backend: moved(on, function, (call,), ideal) for backend, function in BACKENDS.items()}
        rows.append(row)
    itself = []
    for tokens in PREFILLED:
        shapes = [(tokens, heads, DIM) for heads in (HEADS, GROUPS, GROUPS)]
        given = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in shapes)
        ideal = 2 * (2 * given[0].size + given[1].size + given[2].size)
        both = {"cudnn": moved(on, by_cudnn, given, ideal), "xla": moved(on, by_xla, given, ideal)}
        itself.append({"tokens": tokens, "ideal": ideal, **both})
    versions = {name: version(name) for name in ("jax", "jax-cuda13-plugin", "nvidia-cudnn-cu13")}
    return {"decoding": rows, "itself": itself, "versions": versions}


SECTION = """Compiled for an H200 without one (`python -m benchmarks.kernels_h200`), with jax {jax}: one token over
chunks where they lie, by `chunk_attention`.

| | kernel | XLA |
|---|---|---|
{rows}

Each cell: HBM bytes over the ideal; temporaries. Both kernels are compared with float64 in interpret mode. Of
`relocate_patch` no register is spilled; of `chunk_attention`, whose sums fill a thread's registers, up to 256 bytes a
thread for every tile of 64 tokens. It serves decoding in bfloat16 over grouped heads of 64, 96 and 128 that rotate
whole, in half-split pairs; latents (MLA), more queries and other heads are XLA's.

Causal attention of a chunk to itself ({heads} query heads, {groups} KV heads of {dim}), by cuDNN through `jax.nn` and
by XLA, as prefill has it today:

| tokens | cuDNN | XLA |
|---|---|---|
{itself}

cuDNN is not called yet: the log-sum-exp that it gives is rounded to bfloat16, so that parts (a window, and the chunk
behind it) cannot be merged; nothing but a chunk or a picture by itself is one part."""


def section(measured: dict[str, Any]) -> str:
    """The results as text of docs/performance.md."""
    rows = [f"| {row['shape']} | {_cell(row['mosaic_gpu'])} | {_cell(row['xla'])} |" for row in measured["decoding"]]
    itself = [f"| {row['tokens']} | {_cell(row['cudnn'])} | {_cell(row['xla'])} |" for row in measured["itself"]]
    return SECTION.format(
        jax=measured["versions"]["jax"],
        rows="\n".join(rows),
        itself="\n".join(itself),
        heads=HEADS,
        groups=GROUPS,
        dim=DIM,
    )


def _cell(of: dict[str, Any]) -> str:
    return f"{of['ratio']:.2f}; {of['temporaries'] / 1e6:.1f} MB"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compile decoding over chunks where they lie for an H200.")
    parser.add_argument("--json", type=Path, default=Path("docs/results/kernels.json"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text())
    result["h200"] = measure()
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
