"""Which calls the kept kernels serve, and why not the others."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

SPLASH_DTYPES = ("bfloat16", "float32")
SPLASH_WIDTH = 256
"""The widest head of keys or values for which a tile of both fits beside its scores in the memory of a core."""


def splash_refusal(keys: int, values: int, dtypes: Sequence[Any] = ()) -> str | None:
    """Why the TPU's splash attention cannot serve heads of these widths in arrays of these dtypes, or None."""
    if wrong := {str(jnp.dtype(dtype)) for dtype in dtypes} - set(SPLASH_DTYPES):
        return f"splash attention needs arrays in {' or '.join(SPLASH_DTYPES)}, not {', '.join(sorted(wrong))}"
    if len({jnp.dtype(dtype) for dtype in dtypes}) > 1:
        return "splash attention needs queries, keys and values in one dtype"
    if max(keys, values) > SPLASH_WIDTH or keys % 8:
        return f"splash attention serves heads of up to {SPLASH_WIDTH}, keys in multiples of 8; not {keys} and {values}"
    return None
