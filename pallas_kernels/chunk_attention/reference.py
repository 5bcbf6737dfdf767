"""The jnp reference of chunk_attention, and its ``"xla"`` backend: one chunk at a time."""

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.shapes import Heads
from pallas_kernels.relocate_patch.reference import PairLayout, low_rank

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


def chunk_attention_reference(
    q: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    positions: jax.Array,
    inv_freq: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    lengths: jax.Array,
    bases: jax.Array,
    first: jax.Array | int = 0,
    *,
    heads: Heads,
    scale: float,
    rope_scale: float,
    layout: PairLayout,
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.chunk_attention`; every argument is already checked.

    Args:
        first: where the C chunks that lengths and bases tell of begin in rot, free, u and v.
    """
    dtype = q.dtype
    queries = q.shape[0]
    precision = "highest" if dtype == jnp.float32 else "default"
    # A KV head's queries share one axis: plain batched matrix products, which every backend runs well.
    rows = q.reshape(queries, heads.groups, heads.per_group, -1).transpose(1, 2, 0, 3)
    rows = rows.reshape(heads.groups, -1, q.shape[-1])

    stored = {"rot": rot, "free": free}
    if u is not None and v is not None:
        stored |= {"u": u, "v": v}

    def attend(state: tuple[jax.Array, ...], chunk: dict[str, jax.Array]) -> tuple[tuple[jax.Array, ...], None]:
        highest, total, weighted = state
        chunk |= {
            name: jax.lax.dynamic_index_in_dim(array, first + chunk["index"], keepdims=False)
            for name, array in stored.items()
        }
        tokens = chunk["rot"].shape[0]
        valid = jnp.arange(tokens) < chunk["length"]
        keys = chunk["rot"].astype(jnp.float32)
        values = chunk["free"].astype(jnp.float32)
        if "u" in chunk:
            delta = low_rank(*(chunk[name][None] for name in ("u", "v", "rank")))[0]
            keys, values = keys + delta[:, : keys.shape[1]], values + delta[:, keys.shape[1] :]
        keys = keys.reshape(tokens, heads.groups, -1)
        keys = rotate(keys, *tables(chunk["positions"] + chunk["base"], inv_freq, rope_scale), layout)
        # What lies past the length is not read, and 0 * nan would be, in gradients too.
        keys = jnp.where(valid[:, None, None], keys, 0.0).astype(dtype)
        values = jnp.where(valid[:, None], values, 0.0).astype(dtype).reshape(tokens, heads.groups, -1)
        if heads.latent:
            keys = jnp.concatenate([values, keys], axis=-1)
        scores = jnp.einsum("gqd,tgd->gqt", rows, keys, precision=precision, preferred_element_type=jnp.float32)
        scores = jnp.where(valid[None, None, :], scores * scale, UNSEEN)
        new = jnp.maximum(highest, scores.max(-1))
        p = jnp.where(valid[None, None, :], jnp.exp(scores - new[..., None]), 0.0)
        kept = jnp.exp(highest - new)
        part = jnp.einsum(
            "gqt,tgd->gqd", p.astype(dtype), values, precision=precision, preferred_element_type=jnp.float32
        )
        return (new, total * kept + p.sum(-1), weighted * kept[..., None] + part), None

    chunks = {"index": jnp.arange(lengths.shape[0]), "positions": positions, "length": lengths, "base": bases}
    if ranks is not None:
        chunks |= {"rank": ranks}
    # Zero, and varying over every mesh axis the arguments vary over, as a scan under shard_map asks of its state.
    start = (jnp.isnan(rows[..., 0]).astype(jnp.int32) * 0 + lengths[0] * 0).astype(jnp.float32)
    state = (start + UNSEEN, start, jnp.broadcast_to(start[..., None], (*start.shape, heads.value)))
    (highest, total, weighted), _ = jax.lax.scan(attend, state, chunks)
    out, lse = finish(highest, total, weighted)
    out = out.reshape(heads.queries, queries, -1).transpose(1, 0, 2)
    return out.astype(dtype), lse.reshape(heads.queries, queries).T


def finish(highest: jax.Array, total: jax.Array, weighted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of a running softmax; a row that saw nothing gives 0 and -inf."""
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    return weighted / total[..., None], jnp.where(seen, highest + jnp.log(total), -jnp.inf)
