"""`kamera bench relocate | attention | e2e`: what the operators and a look-back take on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from eval.commands.bench import side_by_side
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import source_of
from kamera_jax.forward import preamble_chunk
from kamera_jax.inference.encode import encode_segment, run_chunk
from kamera_jax.kv import bucket_of_slots
from kamera_jax.window.window import aligned
from models.blocks.softmax import Keys, attention
from pallas_kernels import chunk_attention, relocate_patch_into
from pallas_kernels.chunk_attention import shapes as attention_shapes
from pallas_kernels.relocate_patch import shapes as relocation_shapes

RELOCATED = ("qwen2.5-vl-3b", "kimi-vl")
TOKENS = (256, 1024)
"""Shapes that relocation is measured at by default, and tokens of their chunks."""

ATTENDED = ("qwen2.5-vl-3b decode", "kimi-vl decode")
"""Shapes that attention to chunks where they lie is measured at by default."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how many are done, and how many there are."""


class ShapeError(ValueError):
    """A shape that is not in the table, or a size that an operation cannot have."""


def _known(name: str, table: Any) -> Any:
    if name not in table:
        raise ShapeError(f"--shape is {name!r:.60}; expected one of {', '.join(table)}")
    return table[name]


def _filled(struct: jax.ShapeDtypeStruct, rank: int, key: int) -> jax.Array:
    if struct.dtype == jnp.int32:
        return jnp.full(struct.shape, rank, jnp.int32)
    return jax.random.normal(jax.random.key(key), struct.shape, jnp.float32).astype(struct.dtype)


def _about(rows: list[dict[str, Any]], runs: int, dtype: str) -> dict[str, Any]:
    return {
        "rows": rows,
        "runs": runs,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "versions": {"kamera-jax": kj.__version__, "jax": version("jax")},
    }


def _donating(call: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """A call without arguments that hands its result to the next one, whose buffers it takes."""
    kept = [state]

    def once() -> Any:
        kept[0] = call(kept[0])
        return kept[0]

    return once


def relocate(
    names: Sequence[str] = RELOCATED,
    *,
    tokens: Sequence[int] = TOKENS,
    dtype: str = "float32",
    runs: int = 5,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Milliseconds of writing a chunk, rotated and patched, into a window it fills, in turns with copying as much.

    Args:
        names: of `pallas_kernels.relocate_patch.shapes.SHAPES`.
        tokens: of the chunks.
        dtype: of KV and patch.
        runs: of each call, of which the median counts.
        progress: see `Progress`.

    Returns:
        What ``--json`` writes: of each row the bytes that must be moved (``ideal``), and both calls' GB/s by them.

    Raises:
        ShapeError: there is no shape of that name.
    """
    chosen = [replace(_known(name, relocation_shapes.SHAPES), tokens=count) for name in names for count in tokens]
    rows = []
    for done, shape in enumerate(chosen):
        name = names[done // len(tokens)]
        progress(name, done, len(chosen))
        structs = [x for x in shape.arguments(dtype)[:-1] if x is not None]
        arrays = [_filled(struct, shape.rank, number) for number, struct in enumerate(structs)]
        cache = tuple(_filled(struct, 0, 0) for struct in shape.cache(shape.tokens, dtype)[:2])
        place = partial(relocate_patch_into, **shape.options)
        call = jax.jit(lambda cache, arrays, place=place: place(*cache, 0, *arrays), donate_argnums=0)
        ideal = shape.ideal_bytes(dtype)
        words = jnp.zeros(ideal // 8, jnp.float32)  # read and written: as many bytes as the ideal
        copy = jax.jit(lambda x: x + 1, donate_argnums=0)
        seconds = side_by_side(
            {
                "relocate": _donating(lambda cache, call=call, arrays=arrays: call(cache, arrays), cache),
                "copy": _donating(copy, words),
            },
            runs,
        )
        rows.append(
            {
                "shape": name,
                "layers": shape.layers,
                "tokens": shape.tokens,
                "rank": shape.rank,
                "ideal": ideal,
                "ms": 1e3 * seconds["relocate"],
                "gb_s": ideal / seconds["relocate"] / 1e9,
                "copy_gb_s": ideal / seconds["copy"] / 1e9,
            }
        )
    progress("", len(chosen), len(chosen))
    return _about(rows, runs, dtype)


def attend(
    names: Sequence[str] = ATTENDED,
    *,
    tokens: int = 512,
    slots: int = 2048,
    dtype: str = "float32",
    runs: int = 5,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Milliseconds of attention: to chunks where they lie, and of a prefill's tokens to a window and themselves.

    Args:
        names: of `pallas_kernels.chunk_attention.shapes.SHAPES`; the prefill has their heads.
        tokens, slots: of the prefill, and of the window before it.
        dtype: of queries and KV.
        runs: of each call, of which the median counts.
        progress: see `Progress`.

    Returns:
        What ``--json`` writes: of each row the bytes that must be moved and the FLOPs, and GB/s and GFLOP/s by them.

    Raises:
        ShapeError: there is no shape of that name.
    """
    chosen = [(name, _known(name, attention_shapes.SHAPES)) for name in names]
    rows = []
    for done, (name, shape) in enumerate(chosen):
        progress(name, done, len(chosen))
        structs = shape.arguments(dtype)
        arrays = {each: _filled(struct, shape.rank, number) for number, (each, struct) in enumerate(structs.items())}
        arrays["lengths"] = jnp.full((shape.chunks,), shape.tokens, jnp.int32)
        heads = shape.split
        in_place = jax.jit(partial(chunk_attention, scale=shape.width**-0.5, layout=shape.layout))
        q = _filled(jax.ShapeDtypeStruct((tokens, shape.heads, shape.width), dtype), 0, 0)
        kv = [
            _filled(jax.ShapeDtypeStruct((rows_, heads.groups, width), dtype), 0, rows_)
            for rows_ in (slots, tokens)
            for width in (shape.width, heads.value)
        ]

        def prefill(q: Any, k: Any, v: Any, own_k: Any, own_v: Any, scale: float = shape.width**-0.5) -> Any:
            past = Keys(k, v, jnp.ones(len(k), bool))
            # Of numpy, as a model's forward gives it: so a kernel for causal attention may serve the call.
            own = Keys(own_k, own_v, jnp.ones(len(own_k), bool), np.arange(1, len(own_k) + 1, dtype=np.int32))
            return attention(q, [past, own], scale).out

        calls = {
            "chunks in place": partial(in_place, **arrays),
            "prefill": partial(jax.jit(prefill), q, *kv),
        }
        seconds = side_by_side(calls, runs)
        products = 2.0 * shape.heads * (shape.width + heads.value)
        read = sum(x.nbytes for x in arrays.values()) + q.dtype.itemsize * shape.queries * shape.heads * heads.value
        counted = {
            "chunks in place": (read, products * shape.queries * shape.chunks * shape.tokens),
            "prefill": (q.nbytes + sum(x.nbytes for x in kv), products * tokens * (slots + (tokens + 1) / 2)),
        }
        for kind, took in seconds.items():
            ideal, flops = counted[kind]
            rows.append(
                {
                    "shape": name,
                    "kind": kind,
                    "queries": shape.queries if kind != "prefill" else tokens,
                    "keys": shape.chunks * shape.tokens if kind != "prefill" else slots + tokens,
                    "ideal": ideal,
                    "flops": flops,
                    "ms": 1e3 * took,
                    "gb_s": ideal / took / 1e9,
                    "gflop_s": flops / took / 1e9,
                }
            )
    progress("", len(chosen), len(chosen))
    return _about(rows, runs, dtype)


def look_back(
    vlm: Backbone,
    *,
    tokens: Sequence[int] = TOKENS,
    before: int | None = None,
    rank: int | None = None,
    runs: int = 5,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Milliseconds to the first answer token about a chunk that comes back: by reuse and by running it again, in turns.

    The chunk is of random tokens, and stands behind another one. Both ways end with the question's forward.

    Args:
        vlm: the model.
        tokens: of the chunks.
        before: tokens of the chunk before; as many as the chunk's own by default.
        rank: of the patch; the default size by default.
        runs: of each way, of which the median counts.
        progress: see `Progress`.

    Returns:
        What ``--json`` writes.

    Raises:
        ValueError: a chunk does not fit the model's length, or the rank is below 1.
    """
    rows = []
    for done, count in enumerate(tokens):
        progress(f"{count} tokens", done, len(tokens))
        ahead = count if before is None else before
        earlier, chunk = (encode_segment(vlm, _random(vlm, each, seed)) for seed, each in enumerate((ahead, count)))
        slots = sum(map(aligned, (preamble_chunk(vlm).length, ahead, count)))
        window = kj.append(kj.Window.empty(vlm, bucket_of_slots(slots)), earlier)
        patch = kj.form_patch(vlm, chunk, context=window, rank=rank)
        seconds = side_by_side(
            {
                "reuse": partial(_reused, vlm, window, chunk, patch),
                "reprefill": partial(_prefilled, vlm, window, chunk),
            },
            runs,
        )
        rows.append(
            {
                "tokens": count,
                "before": ahead,
                "reuse_ms": 1e3 * seconds["reuse"],
                "reprefill_ms": 1e3 * seconds["reprefill"],
                "ratio": seconds["reprefill"] / seconds["reuse"],
                "patch_share": patch.nbytes / chunk.nbytes,
            }
        )
    progress("", len(tokens), len(tokens))
    return _about(rows, runs, vlm.spec.dtype) | {"layers": vlm.spec.layers}


QUESTION = "What does it say?"


def _reused(vlm: Backbone, window: kj.Window, chunk: kj.Chunk, patch: kj.Patch) -> Any:
    return kj.query(vlm, kj.append(window, chunk, patch), QUESTION).argmax()


def _prefilled(vlm: Backbone, window: kj.Window, chunk: kj.Chunk) -> Any:
    return kj.query(vlm, kj.append(window, run_chunk(vlm, window, source_of(chunk))[0]), QUESTION).argmax()


def _random(vlm: Any, count: int, seed: int) -> Any:
    """A segment of so many random tokens."""
    words = vlm.params["text"]["embed"]["w"].shape[0]
    ids = np.random.default_rng(seed).integers(0, words, count)
    return segment_of(vlm, Tokens.of(ids))
