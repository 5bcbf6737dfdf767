"""Decoding over chunks where they lie, compiled for an H200 that is not here: the kernel beside XLA.

    python -m benchmarks.kernels_h200

writes ``"h200"`` into docs/results/kernels.json. It takes the environment that `.ci/newest` makes: jax 0.11 or newer,
which the kernel needs, and JAX's CUDA plug-in.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from eval.ahead import hlo
from eval.ahead.chips import compile_for, target
from pallas_kernels.chunk_attention.gpu import chunk_attention_gpu
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.chunk_attention.shapes import SHAPES

DECODED = ("qwen2.5-vl-7b decode", "llava-1.5-7b decode", "D = 64 decode", "D = 96 decode")
BACKENDS = {"mosaic_gpu": chunk_attention_gpu, "xla": chunk_attention_reference}


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
        for backend, function in BACKENDS.items():
            program = compile_for(on, function, (call,))
            moved = hlo.hbm_bytes(program.as_text())
            temporaries = program.memory_analysis().temp_size_in_bytes
            row[backend] = {"hbm_bytes": moved, "ratio": moved / ideal, "temporaries": temporaries}
        rows.append(row)
    return {"decoding": rows, "versions": {"jax": jax.__version__, "plug-in": version("jax-cuda13-plugin")}}


SECTION = """Compiled for an H200 without one, with jax {jax}: one token over chunks where they lie, by `chunk_attention`.

| | kernel | XLA |
|---|---|---|
{rows}

Each cell: HBM bytes over the ideal; temporaries. Both kernels are compared with float64 in interpret mode. Of
`relocate_patch` no register is spilled; of `chunk_attention`, whose sums fill a thread's registers, up to 256 bytes a
thread for every tile of 64 tokens. It serves decoding in bfloat16 over grouped heads of 64, 96 and 128 that rotate
whole, in half-split pairs; latents (MLA), more queries and other heads are XLA's."""


def section(measured: dict[str, Any]) -> str:
    """The results as text of docs/performance.md."""
    rows = [f"| {row['shape']} | {_cell(row['mosaic_gpu'])} | {_cell(row['xla'])} |" for row in measured["decoding"]]
    return SECTION.format(jax=measured["versions"]["jax"], rows="\n".join(rows))


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
