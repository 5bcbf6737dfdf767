"""Chunks that keep the KV of some of their tokens: what an evicting codec leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.kv import bucket

CODEC = "kept"


def keep(chunk, rows, codec=CODEC):
    """The chunk with the KV of these tokens alone, in a bucket of their number."""
    padded = bucket(len(rows))

    def taken(array, axis):
        there = np.take(np.asarray(array), rows, axis=axis)
        widths = [(0, padded - len(rows)) if i == axis else (0, 0) for i in range(there.ndim)]
        return jnp.asarray(np.pad(there, widths))

    return chunk.keeping(
        kv=jax.tree.map(lambda leaf: taken(leaf, 1), chunk.kv),
        positions=taken(chunk.positions, 1),
        length=len(rows),
        codec=codec,
    )


def half(chunk, seed=0):
    """A random half of the tokens."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(chunk.length, chunk.length // 2, replace=False))
