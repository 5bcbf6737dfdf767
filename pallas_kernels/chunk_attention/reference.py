"""The jnp reference of chunk_attention, and its ``"xla"`` backend: one chunk at a time."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Call
from pallas_kernels.relocate_patch.chunk import PairLayout
from pallas_kernels.relocate_patch.reference import low_rank

UNSEEN = -1e30
"""Below every score; finite, so that the difference of two is no NaN."""


def tables(positions: jax.Array, inv_freq: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every pair, f32[T, R/2], at positions f32[A, T]; inv_freq f32[A, R/2] is zero on other axes."""
    angles = sum(positions[axis][:, None] * inv_freq[axis][None, :] for axis in range(inv_freq.shape[0]))
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, layout: PairLayout) -> jax.Array:
    """Heads f32[T, G, D] rotated by tables [T, R/2]; dims past R stay."""
    pairs = cos.shape[-1]
    first = slice(0, pairs)
    second = slice(pairs, 2 * pairs)
    if layout == "interleaved":
        first = slice(0, 2 * pairs, 2)
        second = slice(1, 2 * pairs, 2)
    a = x[..., first]
    b = x[..., second]
    cos = cos[:, None, :]
    sin = sin[:, None, :]
    x = x.at[..., first].set(a * cos - b * sin)
    return x.at[..., second].set(b * cos + a * sin)


def chunk_attention_reference(call: Call) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.chunk_attention`."""
    heads = call.heads
    queries = call.q.shape[0]
    # A KV head's queries share one axis: plain batched matrix products, which every backend runs well.
    rows = call.q.reshape(queries, heads.groups, heads.per_group, -1).transpose(1, 2, 0, 3)
    rows = rows.reshape(heads.groups, -1, call.q.shape[-1])
    chunks = {
        "index": jnp.arange(call.lengths.shape[0], dtype=jnp.int32),
        "positions": call.positions,
        "length": call.lengths,
        "base": call.bases,
    }
    if call.patch is not None:
        chunks |= {"rank": call.patch.ranks}
    if call.bias is not None:
        chunks |= {"bias": call.bias}
    # Zero, and varying over every mesh axis the arguments vary over, as a scan under shard_map asks of its state.
    start = (jnp.isnan(rows[..., 0]).astype(jnp.int32) * 0 + call.lengths[0] * 0).astype(jnp.float32)
    state = (start + UNSEEN, start, jnp.broadcast_to(start[..., None], (*start.shape, heads.value)))
    (highest, total, weighted), _ = jax.lax.scan(partial(_attend, call, rows), state, chunks)
    out, lse = finish(highest, total, weighted)
    out = out.reshape(heads.queries, queries, -1).transpose(1, 0, 2)
    return out.astype(call.q.dtype), lse.reshape(heads.queries, queries).T


def _attend(
    call: Call, rows: jax.Array, state: tuple[jax.Array, ...], chunk: dict[str, jax.Array]
) -> tuple[tuple[jax.Array, ...], None]:
    """One step of the running softmax over chunks: the highest score, the sum of weights, the weighted values."""
    highest, total, weighted = state
    dtype = call.q.dtype
    precision = "highest" if dtype == jnp.float32 else "default"
    keys, values = _keys_and_values(call, chunk)
    valid = jnp.arange(keys.shape[0], dtype=jnp.int32) < chunk["length"]
    # What lies past the length is not read, and 0 * nan would be, in gradients too.
    keys = jnp.where(valid[:, None, None], keys, 0.0).astype(dtype)
    values = jnp.where(valid[:, None], values, 0.0).astype(dtype).reshape(keys.shape[0], call.heads.groups, -1)
    if call.heads.latent:
        keys = jnp.concatenate([values, keys], axis=-1)
    scores = jnp.einsum("gqd,tgd->gqt", rows, keys, precision=precision, preferred_element_type=jnp.float32)
    seen = valid[None, None, :]
    scores = scores * call.scale
    if "bias" in chunk:
        scores = scores + chunk["bias"][None, None, :]
    scores = jnp.where(seen, scores, UNSEEN)
    new = jnp.maximum(highest, scores.max(-1))
    p = jnp.where(valid[None, None, :], jnp.exp(scores - new[..., None]), 0.0)
    kept = jnp.exp(highest - new)
    part = jnp.einsum("gqt,tgd->gqd", p.astype(dtype), values, precision=precision, preferred_element_type=jnp.float32)
    return (new, total * kept + p.sum(-1), weighted * kept[..., None] + part), None


def _keys_and_values(call: Call, chunk: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Of one chunk in f32, patched and rotated: keys [T, G, D] and values [T, Ff]."""
    at = call.first + chunk["index"]

    def stored(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(array, at, keepdims=False)

    if call.unpack is None:
        keys = stored(call.rot).astype(jnp.float32)
        values = stored(call.free).astype(jnp.float32)
    else:
        keys, values = call.unpack({name: stored(array) for name, array in call.stored.items()}, chunk["length"])
    if call.patch is not None:
        delta = low_rank(stored(call.patch.u)[None], stored(call.patch.v)[None], chunk["rank"][None])[0]
        keys, values = keys + delta[:, : keys.shape[1]], values + delta[:, keys.shape[1] :]
    keys = keys.reshape(keys.shape[0], call.heads.groups, -1)
    cos_sin = tables(chunk["positions"] + chunk["base"], call.inv_freq, call.rope_scale)
    return rotate(keys, *cos_sin, call.layout), values


def finish(highest: jax.Array, total: jax.Array, weighted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of a running softmax; a row that saw nothing gives 0 and -inf."""
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    return weighted / total[..., None], jnp.where(seen, highest + jnp.log(total), -jnp.inf)
