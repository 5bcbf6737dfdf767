"""KV for codecs, and ways to send it through one."""

import jax.numpy as jnp
import numpy as np

from kamera_jax.compress.codec import Shape, codec
from kamera_jax.kv import KV

SHAPES = {"gqa": Shape(64, 64, 2, 5), "mla": Shape(32, 128, 1, 5), "mha": Shape(96, 96, 4, 5)}
PARTS = ("rot", "free")
ROWS = 48
LENGTH = 41


def kv_of(shape, dtype=jnp.float32, seed=0, rows=ROWS):
    """KV whose channels are mixed and have sizes that fall, so that few components tell."""
    rng = np.random.default_rng(seed)

    def part(width):
        mix = np.random.default_rng(width).normal(size=(shape.layers, width, width)) * 0.9 ** np.arange(width)[:, None]
        return jnp.asarray(rng.normal(size=(shape.layers, rows, width)) @ mix + mix[:, :1], dtype)

    return KV(part(shape.rot), part(shape.free))


def through(name, kv, length, shape, basis=None):
    by = codec(name)
    arrays = {} if basis is None else basis.arrays
    leaves = by.encode(kv, length, shape.heads, arrays)
    return by.decode(leaves, length, shape, kv.rot.dtype, arrays)


def valid(kv, part, length=LENGTH):
    return np.asarray(getattr(kv, part)[:, :length], np.float64)
