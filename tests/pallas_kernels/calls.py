"""Random calls of relocate_patch, and how close a result must come to float64."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import rope
from kamera_jax.rope import RopeSpec
from pallas_kernels.relocate_patch.chunk import Chunk, Patch
from tests import oracles

tables = jax.jit(rope.tables, static_argnums=0)


def spec(head_dim=16, rotary_dim=None, **fields):
    return RopeSpec(tuple(rope.inverse_frequencies(rotary_dim or head_dim, 1e4).tolist()), head_dim, **fields)


@dataclass(frozen=True)
class Call:
    """A shape: RoPE, heads, width of free, layers, tokens, rank and dtype."""

    rope: RopeSpec
    heads: int
    free: int
    layers: int = 3
    tokens: int = 16
    rank: int = 4
    dtype: object = jnp.float32

    @property
    def options(self):
        return {"rotary_dim": self.rope.rotary_dim, "layout": self.rope.layout}

    def draw(self, seed=0):
        """Random (rot, free, positions, u, v, ranks)."""
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return jnp.asarray(rng.standard_normal(shape), self.dtype)

        width = self.heads * self.rope.head_dim
        rot = normal(self.layers, self.tokens, width)
        free = normal(self.layers, self.tokens, self.free)
        # Small angles: what f32 loses in an angle is not what is tested here.
        positions = jnp.asarray(rng.integers(0, 8, (self.rope.axes, self.tokens)) / 4, jnp.float32)
        if not self.rank:
            return rot, free, positions, None, None, None
        u = normal(self.layers, self.rank, self.tokens)
        v = normal(self.layers, self.rank, width + self.free)
        ranks = jnp.asarray(rng.integers(0, self.rank + 1, self.layers), jnp.int32)
        return rot, free, positions, u, v, ranks

    def expected(self, drawn, length):
        """(rot, free) in float64."""
        rot, free, positions, *patch = drawn
        return oracles.relocate(self.rope, rot, free, positions, length, *patch)

    def operands(self, drawn):
        """Arguments of the public call."""
        rot, free, positions, *patch = drawn
        return rot, free, *tables(self.rope, positions), *patch

    def chunk(self, drawn, length):
        """What a backend takes."""
        rot, free, cos, sin, *factors = self.operands(drawn)
        patch = Patch(*factors) if self.rank and factors[0] is not None else None
        return Chunk(rot, free, cos, sin, patch, jnp.int32(length), **self.options)


def poisoned(drawn, length):
    """The same call with NaN or infinity wherever nothing may be read: past the length, and past a layer's rank."""
    rot, free, positions, u, v, ranks = drawn

    def spoil(array, where, value):
        # In numpy: nothing is compiled for it.
        return jnp.asarray(np.where(where, np.asarray(value, array.dtype), np.asarray(array)))

    padding = np.arange(rot.shape[1]) >= length
    rot, free = (spoil(x, padding[None, :, None], np.nan) for x in (rot, free))
    positions = spoil(positions, padding[None, :], np.nan)
    if u is not None:
        unused = np.arange(u.shape[1])[None, :] >= np.asarray(ranks)[:, None]
        u = spoil(u, unused[..., None] | padding[None, None, :], np.nan)
        v = spoil(v, unused[..., None], np.inf)
    return rot, free, positions, u, v, ranks


def close(given, expected, dtype):
    """Relative error 2e-5 per layer in f32; in narrower dtypes one rounding, each value within one ulp."""
    for array, wanted in zip(given, expected, strict=True):
        assert array.dtype == dtype and array.shape == wanted.shape
        if dtype == jnp.float32:
            assert oracles.relative(array, wanted).max() <= 2e-5
        else:
            rounded = wanted.astype(dtype).astype(np.float64)
            ulp = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(np.maximum(np.abs(rounded), 1e-30)))
            assert (np.abs(np.asarray(array, np.float64) - rounded) <= ulp).all()


def caches(call, slots, page=None, seed=1):
    """Caches with NaN and infinities among their values: what is kept must be kept bit by bit."""
    rng = np.random.default_rng(seed)
    rows = (slots,) if page is None else (slots // page, page)

    def one(width):
        values = rng.standard_normal((call.layers, *rows, width))
        values[rng.random(values.shape) < 0.01] = np.nan
        values[rng.random(values.shape) < 0.01] = np.inf
        return jnp.asarray(values, call.dtype)

    return one(call.heads * call.rope.head_dim), one(call.free)


def placed(call, cached, place, given, expected, length):
    """Assert that ``given`` are the caches with ``length`` rows of ``expected`` at ``place``, and nothing else new."""
    slots = slots_of(cached[0], place, length)
    wrote = []
    for before, after in zip(cached, given, strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        before, after = (np.asarray(x).reshape(call.layers, -1, x.shape[-1]) for x in (before, after))
        kept = np.ones(before.shape[1], bool)
        kept[slots] = False
        # As bits: a NaN equals itself.
        assert before[:, kept].tobytes() == after[:, kept].tobytes()
        wrote.append(jnp.asarray(after[:, slots]))
    close(wrote, [rows[:, :length] for rows in expected], call.dtype)


def slots_of(cache, place, length):
    tokens = np.arange(length)
    if np.ndim(place) == 0:
        return int(place) + tokens
    page = cache.shape[2]
    return np.asarray(place)[tokens // page] * page + tokens % page
