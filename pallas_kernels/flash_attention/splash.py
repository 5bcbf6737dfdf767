"""Attention to one part of the keys by JAX's splash attention for TPUs, with its log-sum-exp."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

LANES = 128
CAUSAL_ROWS = 512
ROWS = 1024
KEYS = 1024
KEYS_AT_ONCE = 512
"""Most rows of queries in a tile, with and without causality, and most keys: keys are read once for each tile of rows,
and of a causal part no more than the diagonal's tiles are computed for nothing."""

NOTHING = -1e30
"""A log-sum-exp below this is of a row that sees no key."""


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    *,
    causal: bool,
    scale: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Grouped-query attention to the keys that are seen; no mask of [T, S] is made.

    Hidden keys are of another segment than the queries. Without causality the queries that share a KV head are rows of
    one matrix, so that keys are read no more often than the rows of all of them ask for.

    Args:
        q: rotated queries [T, N, D].
        k: rotated keys [S, G, D].
        v: values [S, G, Dv].
        seen: which keys are seen at all, bool[S].
        causal: whether query t sees no more than the first t + 1 keys.
        scale: factor on the scores.
        interpret: as `jax.experimental.pallas.pallas_call` takes it.

    Returns:
        ``(out, lse)``: out [T, N, Dv] of the dtype of ``v``, and the log-sum-exp of the scores f32[T, N]; what a row
        that sees no key gets is 0 and -inf.
    """
    tokens, heads, width = q.shape
    slots, groups, values = v.shape
    # The kernel has no factor of its own.
    q = (q.astype(jnp.float32) * scale).astype(k.dtype)
    if causal:
        rows = q.swapaxes(0, 1)
    else:
        rows = q.reshape(tokens, groups, -1, width).transpose(1, 2, 0, 3).reshape(groups, -1, width)
    height = rows.shape[1]
    block_rows, padded_rows = _tiles(height, CAUSAL_ROWS if causal else ROWS)
    block_keys, padded_keys = _tiles(slots, KEYS)
    rows = jnp.pad(rows, ((0, 0), (0, padded_rows - height), (0, 0)))
    k, v = (jnp.pad(x.swapaxes(0, 1), ((0, 0), (0, padded_keys - slots), (0, 0))) for x in (k, v))
    shape = (padded_rows, padded_keys)
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * len(rows)),
        block_sizes=splash.BlockSizes(
            block_q=block_rows,
            block_kv=block_keys,
            block_kv_compute=block_keys if block_keys % KEYS_AT_ONCE else KEYS_AT_ONCE,
        ),
        save_residuals=True,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = splash.SegmentIds(
        q=jnp.ones(padded_rows, jnp.int32), kv=jnp.pad(seen.astype(jnp.int32), (0, padded_keys - slots))
    )
    out, (lse,) = kernel(rows, k, v, segment_ids=segments)

    def by_query(x: jax.Array) -> jax.Array:
        x = x[:, :height].reshape(groups, heads // groups, tokens, -1)
        return x.transpose(2, 0, 1, 3).reshape(tokens, heads, -1)

    lse = by_query(lse[..., None])[..., 0]
    nothing = lse < NOTHING
    return jnp.where(nothing[..., None], 0.0, by_query(out)).astype(v.dtype), jnp.where(nothing, -jnp.inf, lse)


def _tiles(count: int, most: int) -> tuple[int, int]:
    """The size of equal tiles, in multiples of a TPU's lanes, of at most ``most``; and what they hold together."""
    tiles = math.ceil(count / most)
    size = math.ceil(count / tiles / LANES) * LANES
    return size, tiles * size
