"""What the kernel serves, known without importing it."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Heads
from pallas_kernels.relocate_patch.limits import DTYPES, HEAD_DIMS


def tpu_refusal(heads: Heads, pairs: int, dtypes: Sequence[Any] = ()) -> str | None:
    """Why ``"pallas_tpu"`` cannot serve these heads in arrays of these dtypes, or None."""
    if wrong := {str(jnp.dtype(dtype)) for dtype in dtypes} - set(DTYPES):
        return f"it needs arrays in {' or '.join(DTYPES)}, not {', '.join(sorted(wrong))}"
    if heads.rotated not in HEAD_DIMS:
        return f"it needs keys whose head dim D is in {HEAD_DIMS}, not {heads.rotated}"
    if pairs % 8 or heads.value % 16:
        return f"it needs R/2 in multiples of 8 and values in multiples of 16, not {pairs} and {heads.value}"
    return None
