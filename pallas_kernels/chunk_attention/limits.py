"""What the kernels serve, known without importing them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Heads, ScaledInt8, Unpack
from pallas_kernels.dispatch import not_hopper
from pallas_kernels.relocate_patch.chunk import PairLayout
from pallas_kernels.relocate_patch.gpu_call import RANKS, ROWS
from pallas_kernels.relocate_patch.limits import DTYPES, HEAD_DIMS, transposed

GPU_HEAD_DIMS = (64, 96, 128)
"""Of keys and values, for which the sums of a tile fit in a thread's registers."""


INT8_ROWS = 32
"""Rows of a tile of int8 on a TPU."""


def tpu_refusal(
    heads: Heads, pairs: int, dtypes: Sequence[Any] = (), *, tokens: int = ROWS, unpack: Unpack | None = None
) -> str | None:
    """Why ``"pallas_tpu"`` cannot serve these heads in arrays of these dtypes, or None.

    Args:
        heads: of the call.
        pairs: of a head that rotate.
        dtypes: of the call's arrays, but for packed ones.
        tokens: T of every chunk.
        unpack: of a chunk that is packed.
    """
    if wrong := {str(jnp.dtype(dtype)) for dtype in dtypes} - set(DTYPES):
        return f"it needs arrays in {' or '.join(DTYPES)}, not {', '.join(sorted(wrong))}"
    if heads.rotated not in HEAD_DIMS:
        return f"it needs keys whose head dim D is in {HEAD_DIMS}, not {heads.rotated}"
    if pairs % 8 or heads.value % 16:
        return f"it needs R/2 in multiples of 8 and values in multiples of 16, not {pairs} and {heads.value}"
    if unpack is None:
        return None
    if not isinstance(unpack, ScaledInt8):
        return f"it reads chunks as they are, or in int8, and not packed as {unpack} unpacks them"
    if heads.latent:
        return "it reads latents (MLA) as they are, and none that are packed"
    if tokens % INT8_ROWS or any(transposed(heads.groups * width) for width in (heads.rotated, heads.value)):
        return (
            f"it reads int8 of chunks with room for a multiple of {INT8_ROWS} tokens, and features in whole lanes, not "
            f"{tokens} and {heads.groups} heads of {heads.rotated} and {heads.value}"
        )
    return None


def gpu_refusal(
    heads: Heads, pairs: int, dtypes: Sequence[Any] = (), *, layout: PairLayout, rows: int, tokens: int, rank: int
) -> str | None:
    """Why ``"mosaic_gpu"`` cannot serve a call on an NVIDIA GPU, or None; `dispatch` looks at jax and platform.

    Args:
        heads: of the call.
        pairs: of a head that rotate.
        dtypes: of the call's arrays.
        layout: of the pairs.
        rows: queries of a KV head, together.
        tokens: T of every chunk.
        rank: room for components of their patches; 0 for none.
    """
    if reason := not_hopper():
        return reason
    if wrong := {str(jnp.dtype(dtype)) for dtype in dtypes} - {"bfloat16"}:
        return f"it takes arrays in bfloat16, not {', '.join(sorted(wrong))}"
    if heads.latent:
        return "it serves heads of keys and values, and no latents (MLA)"
    if not {heads.rotated, heads.value} <= set(GPU_HEAD_DIMS):
        return f"it is built for heads of {GPU_HEAD_DIMS}, and these are {heads.rotated} and {heads.value} wide"
    if layout != "half" or 2 * pairs != heads.rotated:
        return f"it rotates whole heads in half-split pairs, not {2 * pairs} dims of {heads.rotated} ({layout})"
    if rows > ROWS:
        return f"it is for decoding: up to {ROWS} queries of a KV head together, not {rows}"
    if tokens % ROWS:
        return f"it takes chunks with room for a multiple of {ROWS} tokens, not {tokens}"
    if rank > RANKS[-1]:
        return f"it takes patches of up to {RANKS[-1]} components, not {rank}"
    return None
