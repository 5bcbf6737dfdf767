"""Canonical KV in eight bits: keys with a scale for every channel, values with a scale for every token.

Un-rotated keys have channels that are large in every token, and values have tokens that are (KIVI, arXiv 2402.02750);
a scale along the other axis would spend the eight bits on them.
"""

from collections.abc import Mapping

import numpy as np

from kamera_jax import int8
from kamera_jax.record import Arrays

LARGEST = int8.LARGEST


def quantised(rot: np.ndarray, free: np.ndarray, length: int) -> Arrays:
    """KV [L, T, ·] as leaves of a row: int8, and f32 scales [L, 1, Fr] of ``rot`` and [L, T, 1] of ``free``.

    Rows past ``length`` count as 0.
    """
    leaves: Arrays = {}
    for name, kv, axis in (("kv.rot", rot, 1), ("kv.free", free, 2)):
        values = kv.astype(np.float32)
        values[:, length:] = 0
        leaves[name], leaves[f"{name}_scale"] = int8.quantised(values, axis, np)
    return leaves


def restored(leaves: Mapping[str, np.ndarray], dtype: np.dtype) -> Arrays:
    """``kv.rot`` and ``kv.free`` as they were, to within half a step of their scale."""
    return {name: int8.restored(leaves[name], leaves[f"{name}_scale"], dtype) for name in ("kv.rot", "kv.free")}
