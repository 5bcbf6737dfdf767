"""Real calls of chunk_attention: one table for tests and benchmarks."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Call, Heads, ScaledInt8, heads_of
from pallas_kernels.relocate_patch.chunk import PairLayout, Patch


@dataclass(frozen=True)
class Shape:
    """One call.

    Attributes:
        queries: query tokens.
        heads: N.
        rot: Fr.
        free: Ff.
        width: of one query: D, or R + Dr in MLA's absorbed form.
        chunks: C.
        tokens: T of every chunk.
        rank: m; 0 for no patch.
        axes: position axes A.
        pairs: rotated pairs of a head, R / 2.
        layout: of the pairs.
    """

    queries: int
    heads: int
    rot: int
    free: int
    width: int
    chunks: int
    tokens: int
    rank: int
    axes: int
    pairs: int
    layout: PairLayout = "half"

    @property
    def kv_values(self) -> int:
        """Numbers in the KV of all chunks."""
        return self.chunks * self.tokens * (self.rot + self.free)

    def arguments(self, dtype: Any = jnp.bfloat16, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Arrays of the call, by name of `pallas_kernels.chunk_attention`."""
        chunks = self.chunks
        tokens = self.tokens
        rank = self.rank
        arrays = {
            "q": ((self.queries, self.heads, self.width), dtype),
            "rot": ((chunks, tokens, self.rot), dtype),
            "free": ((chunks, tokens, self.free), dtype),
            "positions": ((chunks, self.axes, tokens), jnp.float32),
            "inv_freq": ((self.axes, self.pairs), jnp.float32),
            "lengths": ((chunks,), jnp.int32),
            "bases": ((chunks,), jnp.float32),
        }
        if rank:
            arrays |= {
                "u": ((chunks, rank, tokens), dtype),
                "v": ((chunks, rank, self.rot + self.free), dtype),
                "ranks": ((chunks,), jnp.int32),
            }
        return {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, (shape, kind) in arrays.items()}

    def in_int8(self, dtype: Any = jnp.bfloat16) -> Call:
        """`call` whose keys and values are int8, with their scales."""
        call = self.call(dtype)
        codes = {
            name: jax.ShapeDtypeStruct(array.shape, jnp.int8)
            for name, array in (("rot", call.rot), ("free", call.free))
        }
        scales = {"rot_scale": (self.chunks, 1, self.rot), "free_scale": (self.chunks, 1, self.tokens)}
        packed = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in scales.items()}
        return replace(call, **codes, packed=packed, unpack=ScaledInt8())

    @property
    def split(self) -> Heads:
        """How q, rot and free split into heads."""
        heads = heads_of((self.queries, self.heads, self.width), self.rot, self.free)
        assert heads is not None
        return heads

    def call(self, dtype: Any = jnp.bfloat16) -> Call:
        """The call as a backend takes it, its chunks being all there are."""
        arrays: dict[str, Any] = dict(self.arguments(dtype))
        patch = Patch(arrays.pop("u"), arrays.pop("v"), arrays.pop("ranks")) if self.rank else None
        arrays["first"] = jax.ShapeDtypeStruct((), jnp.int32)
        return Call(
            **arrays,
            patch=patch,
            heads=self.split,
            scale=self.width**-0.5,
            rope_scale=1.0,
            layout=self.layout,
        )


def _grouped(
    queries: int,
    heads: int,
    groups: int,
    dim: int,
    chunks: int,
    tokens: int,
    rank: int,
    *,
    axes: int = 1,
    pairs: int | None = None,
) -> Shape:
    width = groups * dim
    return Shape(queries, heads, width, width, dim, chunks, tokens, rank, axes, pairs or dim // 2)


def _latent(queries: int, heads: int, chunks: int, tokens: int, rank: int) -> Shape:
    return Shape(queries, heads, 64, 512, 576, chunks, tokens, rank, axes=1, pairs=32, layout="interleaved")


SHAPES: dict[str, Shape] = {
    "qwen2.5-vl-7b decode": _grouped(1, 28, 4, 128, 64, 512, 32, axes=3),
    "qwen2.5-vl-7b decode, no patch": _grouped(1, 28, 4, 128, 64, 512, 0, axes=3),
    "qwen2.5-vl-7b prefill": _grouped(512, 28, 4, 128, 16, 1024, 32, axes=3),
    "qwen2.5-vl-3b decode": _grouped(1, 16, 2, 128, 64, 384, 32, axes=3),
    "llava-1.5-7b decode": _grouped(1, 32, 32, 128, 8, 640, 32),
    "llava-1.5-7b prefill": _grouped(512, 32, 32, 128, 8, 640, 32),
    "kimi-vl decode": _latent(1, 16, 64, 512, 32),
    "kimi-vl prefill": _latent(512, 16, 16, 1024, 32),
    "deepseek-v3 decode": _latent(1, 128, 64, 512, 64),
    "D = 64 decode": _grouped(1, 32, 8, 64, 16, 512, 16),
    "D = 80 prefill": _grouped(256, 32, 8, 80, 8, 512, 32, pairs=16),
    "D = 96 decode": _grouped(4, 32, 8, 96, 16, 256, 32),
    "D = 256 prefill": _grouped(256, 16, 8, 256, 8, 512, 64),
    "short chunks": _grouped(32, 28, 4, 128, 64, 64, 8),
    "kimi-vl short chunks": _latent(4, 16, 64, 32, 8),
    "shortest chunks": _grouped(32, 28, 4, 128, 64, 16, 8),
}
