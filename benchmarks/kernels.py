"""What the kernels cost: CPU times, HBM bytes of programs compiled for TPUs, and GPU times where there is one.

`make bench-kernels` writes docs/results/kernels.json and docs/performance.md; a part that this machine cannot measure
keeps what was measured elsewhere.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import compiled, kernels_h200
from eval.commands.bench import side_by_side
from kamera_jax import patch
from kamera_jax.kv import Factors, KVSpec, Segment
from kamera_jax.rope import RopeSpec, inverse_frequencies
from kamera_jax.window.reuse import write
from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import init_params
from models.forward import forward
from pallas_kernels import chunk_attention, relocate_patch_into
from pallas_kernels.chunk_attention import shapes as attention_shapes
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.chunk_attention.tpu import chunk_attention_tpu
from pallas_kernels.relocate_patch.reference import relocate_patch_reference
from pallas_kernels.relocate_patch.shapes import SHAPES, Shape
from pallas_kernels.relocate_patch.tpu import relocate_patch_tpu
from pallas_kernels.relocate_patch.tpu_into import relocate_patch_into_tpu

TPUS = ("v5e", "v6e")
RELOCATED = ("qwen2.5-vl-7b", "qwen2.5-vl-7b long", "kimi-vl", "deepseek-v3")
ATTENDED = ("qwen2.5-vl-7b decode", "qwen2.5-vl-7b prefill", "kimi-vl decode", "deepseek-v3 decode")
CHUNK = 1024
RANK = 32
"""Tokens of the CPU's chunk, and components of its patch."""


def cpu(runs: int = 5) -> dict[str, Any]:
    """A chunk of 1024 tokens put into a window by its patch, and by running it there: 8 layers of width 1024, f32."""
    rope = RopeSpec(tuple(inverse_frequencies(128, 1e4).tolist()), 128)
    config = DecoderConfig(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        rms_norm_eps=1e-6,
        attention=GroupedQuery(heads=8, kv_heads=4, head_dim=128),
        rope=rope,
        tie_word_embeddings=True,
    )
    params = {"text": init_params(text_declaration(config), jax.random.key(0))}
    rot, free, heads = config.attention.kv_widths
    spec = KVSpec(8, rot, free, heads, rope, "float32", "benchmark")
    tokens = jax.random.randint(jax.random.key(1), (CHUNK,), 0, config.vocab_size)
    chunk = Segment({"tokens": tokens}, jnp.arange(CHUNK, dtype=jnp.float32)[None], jnp.int32(CHUNK)).at(CHUNK)
    state = write(spec.empty_state(2 * CHUNK), 0, forward(config, params, chunk.at(-CHUNK), None).kv, None,
                  chunk.at(-CHUNK).positions, CHUNK, rope)  # fmt: skip
    canonical, conditioned = (jax.jit(partial(forward, config))(params, chunk, seen).kv for seen in (None, state))
    factors = jax.jit(partial(patch.fit, rank=RANK))(conditioned, canonical, CHUNK)

    def run_there(params: Any, state: Any) -> Any:
        return write(state, CHUNK, forward(config, params, chunk, state).kv, None, chunk.positions, CHUNK, rope)

    def apply(state: Any, factors: Factors) -> Any:
        return write(state, CHUNK, canonical, factors, chunk.positions, CHUNK, rope)

    states = {"re-prefill": state, "apply": jax.tree.map(jnp.copy, state)}
    jitted = {
        "re-prefill": partial(jax.jit(run_there, donate_argnums=1), params),
        "apply": lambda state: jitted_apply(state, factors),
    }
    jitted_apply = jax.jit(apply, donate_argnums=0)

    def step(name: str) -> Any:
        states[name] = jitted[name](states[name])
        return states[name].rot

    seconds = side_by_side({name: partial(step, name) for name in states}, runs)
    return {
        "tokens": CHUNK,
        "rank": RANK,
        "apply_ms": 1e3 * seconds["apply"],
        "reprefill_ms": 1e3 * seconds["re-prefill"],
        "ratio": seconds["re-prefill"] / seconds["apply"],
    }


def tpu() -> list[dict[str, Any]]:
    """HBM bytes, temporaries and aliasing of programs compiled for TPUs, none being here."""
    rows = []
    for target in TPUS:
        for name in RELOCATED:
            shape = SHAPES[name]
            into = shape.into(shape.tokens)
            programs = {
                "relocate_patch": (relocate_patch_tpu, (shape.chunk(),), ()),
                "relocate_patch_into": (relocate_patch_into_tpu, into, (0,)),
                "relocate_patch, xla": (relocate_patch_reference, (shape.chunk(),), ()),
            }
            for op, (backend, arguments, donate) in programs.items():
                program = compiled.compile_for(target, backend, *arguments, donate=donate)
                cached = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(into[0]))
                rows.append(
                    _row(target, op, name, program, shape.ideal_bytes())
                    | ({"aliased": compiled.aliased(program) / cached} if donate else {})
                )
        for name in ATTENDED:
            shape = attention_shapes.SHAPES[name]
            out = 2 * shape.queries * shape.heads * shape.width
            ideal = sum(x.size * x.dtype.itemsize for x in shape.arguments().values()) + out
            for op, backend in (
                ("chunk_attention", chunk_attention_tpu),
                ("chunk_attention, xla", chunk_attention_reference),
            ):
                program = compiled.compile_for(target, backend, shape.call())
                rows.append(_row(target, op, name, program, ideal) | {"kv_bytes": 2 * shape.kv_values})
    return rows


def _row(target: str, op: str, name: str, program: Any, ideal: int) -> dict[str, Any]:
    moved = compiled.hbm_bytes(program)
    return {
        "target": target,
        "op": op,
        "shape": name,
        "ideal": ideal,
        "hbm_bytes": moved,
        "ratio": moved / ideal,
        "temporaries": compiled.temporaries(program),
    }


def gpu(runs: int = 50) -> dict[str, Any]:
    """Times on a GPU: relocation against a copy and against XLA, and decoding over 64 chunks where they lie."""
    key = jax.random.key(0)

    def filled(struct: jax.ShapeDtypeStruct) -> jax.Array:
        if struct.dtype == jnp.int32:
            return jnp.full(struct.shape, RANK, jnp.int32)
        return jax.random.normal(key, struct.shape, jnp.float32).astype(struct.dtype)

    big = jnp.zeros((2 << 30,), jnp.uint8)
    copy = jax.jit(lambda x: x + jnp.uint8(1), donate_argnums=0)

    def timed(step: Callable[[Any], Any], state: Any) -> float:
        state = jax.block_until_ready(step(step(state)))
        start = time.perf_counter()
        for _ in range(runs):
            state = step(state)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / runs

    bandwidth = 2 * big.nbytes / timed(copy, big)
    result: dict[str, Any] = {"copy_gb_s": bandwidth / 1e9, "relocate": []}
    for name in RELOCATED:
        shape: Shape = SHAPES[name]
        rot, free, cos, sin, u, v, ranks, _ = (filled(x) for x in shape.arguments() if x is not None)
        caches = [filled(x) for x in shape.cache(shape.tokens)[:2]]
        row: dict[str, Any] = {"shape": name, "ideal": shape.ideal_bytes()}
        for implementation in (None, "xla"):
            place = partial(relocate_patch_into, **shape.options, implementation=implementation)
            chunk = (rot, free, cos, sin, u, v, ranks)
            call = jax.jit(lambda cache, place=place, chunk=chunk: place(*cache, 0, *chunk), donate_argnums=0)
            seconds = timed(call, jax.tree.map(jnp.copy, tuple(caches)))
            row["xla_ms" if implementation else "ms"] = 1e3 * seconds
        row["of_copy"] = row["ideal"] / (1e-3 * row["ms"]) / bandwidth
        result["relocate"].append(row)
    shape = attention_shapes.SHAPES["qwen2.5-vl-7b decode"]
    call = {name: filled(x) for name, x in shape.arguments().items()}
    call |= {"lengths": jnp.full((shape.chunks,), shape.tokens, jnp.int32)}

    def in_place(q: jax.Array) -> jax.Array:
        return chunk_attention(**(call | {"q": q}), scale=0.1)[0]

    def materialised(q: jax.Array) -> jax.Array:
        same = {k: v for k, v in call.items() if k not in ("u", "v", "ranks", "q")}
        keys = same["rot"].reshape(1, -1, shape.rot // shape.width, shape.width)
        values = same["free"].reshape(keys.shape)
        return jax.nn.dot_product_attention(q[None], keys, values, scale=0.1)[0]

    result["decode_in_place_ms"] = 1e3 * timed(jax.jit(in_place), call["q"])
    result["decode_materialised_ms"] = 1e3 * timed(jax.jit(materialised), call["q"])
    result["device"] = jax.devices()[0].device_kind
    return result


PAGE = """# Performance

`make bench-kernels` measures again what this machine can measure. Bytes are those of the optimised program, at the
boundaries of what XLA runs as one; *ideal* reads every argument once and writes every result once. jax {jax}.

## CPU

A chunk of {tokens} tokens enters a window of a random 8-layer, 1024-wide decoder (f32) by a rank-{rank} patch, and by
being run there, in turns: **{apply_ms:.1f} ms against {reprefill_ms:.0f} ms, {ratio:.0f} times faster**.

## TPU, compiled without one

| | | {heads} |
|---|---|{rules}
{rows}

Each cell: HBM bytes over the ideal; temporaries. `relocate_patch_into` writes into a donated cache, all of it aliased.
XLA is the fallback for calls that no kernel serves; its `chunk_attention` keeps one chunk in memory at a time.

## GPU

{gpu}
"""

NO_GPU = """Not measured yet: no GPU was available; `python -m benchmarks.kernels --only gpu` on a machine with one
fills this in."""


def page(result: dict[str, Any]) -> str:
    """The measurements as the beginning of docs/performance.md; see `benchmarks.performance_page`."""
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["tpu"]:
        rows.setdefault((row["op"], row["shape"]), {})[row["target"]] = row
    lines = []
    for (op, shape), by_target in sorted(rows.items()):
        name, _, fallback = op.partition(", ")
        cells = " | ".join(_cell(by_target[target]) for target in TPUS)
        lines.append(f"| `{name}`{', XLA' if fallback else ''} | {shape} | {cells} |")
    gpu_text = _gpu_text(result["gpu"]) if "gpu" in result else NO_GPU
    return PAGE.format(
        jax=result["versions"]["jax"],
        **result["cpu"],
        heads=" | ".join(TPUS),
        rules="---|" * len(TPUS),
        rows="\n".join(lines),
        gpu=f"{gpu_text}\n\n{kernels_h200.section(result['h200'])}",
    )


def _cell(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3f}; {row['temporaries'] / 1e6:.1f} MB" if row["temporaries"] else f"{row['ratio']:.3f}; 0"


def _gpu_text(measured: dict[str, Any]) -> str:
    lines = [
        f"{measured['device']}; a copy moves {measured['copy_gb_s']:.0f} GB/s in the same run.",
        "",
        "| shape | ms | of the copy's bandwidth | XLA, ms |",
        "|---|---|---|---|",
        *(f"| {r['shape']} | {r['ms']:.3f} | {r['of_copy']:.0%} | {r['xla_ms']:.3f} |" for r in measured["relocate"]),
        "",
        f"Decoding over 64 chunks of 512 tokens in place: {measured['decode_in_place_ms']:.3f} ms; attention over the "
        f"same KV materialised: {measured['decode_materialised_ms']:.3f} ms.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the kernels.")
    parser.add_argument("--only", choices=("cpu", "tpu", "gpu"), help="measure one part and keep the others")
    parser.add_argument("--json", type=Path, default=Path("docs/results/kernels.json"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    parts = {"cpu": cpu, "tpu": tpu, **({"gpu": gpu} if jax.default_backend() == "gpu" else {})}
    if arguments.only and arguments.only not in parts:
        parser.error("there is no GPU here")
    for name in [arguments.only] if arguments.only else parts:
        result[name] = parts[name]()
    result["versions"] = {"jax": version("jax")}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
