"""Real calls of relocate_patch: one table for tests and benchmarks."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.relocate_patch.chunk import Cache, Chunk, PairLayout, Patch


@dataclass(frozen=True)
class Shape:
    """One call.

    Attributes:
        layers, tokens: L and T.
        heads, head_dim, rotary_dim, layout: of rot; heads is G, 1 for MLA's k_pe.
        free: width of free, Ff.
        rank: m, 0 without a patch.
    """

    layers: int
    tokens: int
    heads: int
    head_dim: int
    free: int
    rank: int
    rotary_dim: int
    layout: PairLayout = "half"

    @property
    def options(self) -> dict[str, int | str]:
        """Keyword arguments of the call."""
        return {"rotary_dim": self.rotary_dim, "layout": self.layout}

    def arguments(self, dtype: Any = jnp.bfloat16) -> tuple[jax.ShapeDtypeStruct | None, ...]:
        """Arrays of the call: (rot, free, cos, sin, u, v, ranks, length)."""
        rot = jax.ShapeDtypeStruct((self.layers, self.tokens, self.heads * self.head_dim), dtype)
        free = jax.ShapeDtypeStruct((self.layers, self.tokens, self.free), dtype)
        table = jax.ShapeDtypeStruct((self.tokens, self.head_dim), jnp.float32)
        length = jax.ShapeDtypeStruct((), jnp.int32)
        if not self.rank:
            return rot, free, table, table, None, None, None, length
        u = jax.ShapeDtypeStruct((self.layers, self.rank, self.tokens), dtype)
        v = jax.ShapeDtypeStruct((self.layers, self.rank, rot.shape[-1] + self.free), dtype)
        return rot, free, table, table, u, v, jax.ShapeDtypeStruct((self.layers,), jnp.int32), length

    def cache(self, slots: int, dtype: Any = jnp.bfloat16, page: int | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(cache_rot, cache_free, place) of a cache of so many slots."""
        rows = (slots,) if page is None else (slots // page, page)
        place = () if page is None else (self.tokens // page,)
        return (
            jax.ShapeDtypeStruct((self.layers, *rows, self.heads * self.head_dim), dtype),
            jax.ShapeDtypeStruct((self.layers, *rows, self.free), dtype),
            jax.ShapeDtypeStruct(place, jnp.int32),
        )

    def chunk(self, dtype: Any = jnp.bfloat16) -> Chunk:
        """The call as a backend takes it."""
        arrays: tuple[Any, ...] = self.arguments(dtype)
        rot, free, cos, sin, u, v, ranks, length = arrays
        patch = Patch(u, v, ranks) if self.rank else None
        return Chunk(rot, free, cos, sin, patch, length, self.rotary_dim, self.layout)

    def into(
        self, slots: int, dtype: Any = jnp.bfloat16, page: int | None = None
    ) -> tuple[Cache, jax.ShapeDtypeStruct, Chunk]:
        """A call that writes into a cache of so many slots, as a backend takes it."""
        arrays: tuple[Any, ...] = self.cache(slots, dtype, page)
        return Cache(*arrays[:2]), arrays[2], self.chunk(dtype)

    def ideal_bytes(self, dtype: Any = jnp.bfloat16) -> int:
        """What must cross HBM: every argument read once, rot and free written once."""
        arguments = [x for x in self.arguments(dtype) if x is not None]
        return sum(x.size * jnp.dtype(x.dtype).itemsize for x in (*arguments, *arguments[:2]))


SHAPES = {
    "qwen2.5-vl-7b": Shape(28, 4096, 4, 128, 512, 32, 128),
    "qwen2.5-vl-7b long": Shape(28, 32768, 4, 128, 512, 32, 128),
    "qwen2.5-vl-3b": Shape(36, 4096, 2, 128, 256, 32, 128),
    "kimi-vl": Shape(27, 4096, 1, 64, 512, 32, 64, "interleaved"),
    "deepseek-v3": Shape(61, 8192, 1, 64, 512, 64, 64, "interleaved"),
    "llava-1.5-7b": Shape(32, 640, 32, 128, 4096, 32, 128),
    "llava-onevision-0.5b": Shape(24, 1024, 2, 64, 128, 16, 64),
    "phi-3.5-vision": Shape(32, 1024, 32, 96, 3072, 32, 96),
    "moondream-2": Shape(24, 768, 32, 64, 2048, 32, 32),
    "phi-2": Shape(32, 1024, 32, 80, 2560, 32, 32),
    "paligemma-3b": Shape(18, 256, 1, 256, 256, 32, 256),
    "qwen2.5-vl-7b blind": Shape(28, 4096, 4, 128, 512, 0, 128),
}
"""By the backbone whose attention has these dimensions."""
