"""chunk_attention on NVIDIA Hopper GPUs (``"mosaic_gpu"``): what a call's arrays become; `limits` says which it serves.

The kernel itself is in `gpu_kernel`, imported when it is first used: what it is written with came with jax 0.11.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Call
from pallas_kernels.chunk_attention.gpu_call import RANKS, ROWS, Operands, Shape, stages
from pallas_kernels.chunk_attention.reference import UNSEEN, finish


def chunk_attention_gpu(call: Call, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.chunk_attention`; `pallas_kernels.chunk_attention.limits.gpu_refusal` has answered None.

    Args:
        call: the call.
        interpret: parameters of Mosaic GPU's interpret mode, for tests.
    """
    from pallas_kernels.chunk_attention.gpu_kernel import attend

    heads = call.heads
    queries = call.q.shape[0]
    rows = queries * heads.per_group
    patch = _patch(call)
    rank = 0 if patch is None else patch[0].shape[1]
    room = stages(heads.rotated, heads.value, rank)
    shape = Shape(-(-rows // 8) * 8, heads.rotated, heads.value, rank, call.scale, call.rope_scale, room)
    outs, lses = attend(_operands(call, patch), shape, interpret)
    # The chunks' states become one; what had no token weighs nothing.
    highest = jnp.maximum(lses.max(0), UNSEEN / 2)
    weights = jnp.exp(lses - highest[None])
    out, lse = finish(highest, weights.sum(0), (weights[..., None] * outs).sum(0))

    def by_query(x: jax.Array) -> jax.Array:
        x = x[:, :rows].reshape(heads.groups, heads.per_group, queries, -1)
        return x.transpose(2, 0, 1, 3).reshape(queries, heads.queries, -1)

    return by_query(out).astype(call.q.dtype), by_query(lse[..., None])[..., 0]


def _operands(call: Call, patch: tuple[jax.Array, jax.Array] | None) -> Operands:
    """Queries by KV head in whole tiles, and where every token stands."""
    heads = call.heads
    q = call.q.reshape(call.q.shape[0], heads.groups, heads.per_group, -1).transpose(1, 2, 0, 3)
    q = q.reshape(heads.groups, -1, call.q.shape[-1])
    q = jnp.pad(q, ((0, 0), (0, ROWS - q.shape[1]), (0, 0)))
    positions = call.positions + call.bases[:, None, None]
    place = jnp.concatenate([call.first.reshape(1), call.lengths])
    return Operands(q, call.rot, call.free, positions, call.inv_freq, place, patch)


def _patch(call: Call) -> tuple[jax.Array, jax.Array] | None:
    """The C chunks' u and v: zero past ranks and lengths, which a multiply reads, and as deep as one goes."""
    if call.patch is None:
        return None
    chunks = call.lengths.shape[0]
    u, v = (jax.lax.dynamic_slice_in_dim(x, call.first, chunks) for x in (call.patch.u, call.patch.v))
    used = jnp.arange(u.shape[1], dtype=jnp.int32)[None, :] < call.patch.ranks[:, None]
    valid = jnp.arange(u.shape[2], dtype=jnp.int32)[None, :] < call.lengths[:, None]
    u = jnp.where(used[:, :, None] & valid[:, None, :], u, jnp.zeros((), u.dtype))
    v = jnp.where(used[:, :, None], v, jnp.zeros((), v.dtype))
    depth = next(each for each in RANKS if each >= u.shape[1])
    u, v = (jnp.pad(x, ((0, 0), (0, depth - x.shape[1]), (0, 0))) for x in (u, v))
    return u, v
