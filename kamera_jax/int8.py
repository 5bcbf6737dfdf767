"""Symmetric int8: whole numbers from -127 to 127, and the scale each group of them is multiplied by.

The one quantiser of patches, on the device, and of stored KV, on the host. The groups are the caller's choice.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp

LARGEST = 127
"""The largest whole number; -128 stays unused, so that both signs reach equally far."""


def quantised(values: Any, axis: int, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """The nearest int8 of values, and the f32 scale of each group, its largest absolute value over `LARGEST`.

    Args:
        values: floating point, of any shape.
        axis: values along it share a scale.
        xp: ``jax.numpy``, or ``numpy`` for arrays on the host.

    Returns:
        int8 of the same shape, and scales with an ``axis`` of 1; 0 where all values are 0.
    """
    values = values.astype(xp.float32)
    scale = xp.abs(values).max(axis=axis, keepdims=True) / xp.float32(LARGEST)
    # Of a scale below the normal numbers of f32 a value may be more than 127.
    rounded = xp.clip(xp.round(values / xp.where(scale > 0, scale, xp.float32(1))), -LARGEST, LARGEST)
    return rounded.astype(xp.int8), scale


def restored(codes: Any, scale: Any, dtype: Any) -> Any:
    """The values in ``dtype``, to within half a scale."""
    return (codes * scale).astype(dtype)
