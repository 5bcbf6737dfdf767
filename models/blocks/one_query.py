"""Softmax attention of a single query, as decoding makes them, to keys as they lie in a cache.

A cache holds the features of all KV heads in one row. One product over whole rows, of queries that are zero outside the
features of their own head, reads them where they are; a product for each head would have a backend lay all keys and
values out anew, for every token. The products with zeros are as many times more as there are KV heads, and one query is
so little work that reading the keys takes longer.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from models.blocks.keys import MASKED, AttentionOutput, Keys


def attention_of_one(
    q: jax.Array, parts: Sequence[Keys], weights: jax.Array | None, scale: float, devices: int = 1
) -> AttentionOutput:
    """`models.blocks.softmax.attention` of one query.

    Args:
        q: the rotated query [1, N, D].
        parts: see there; their keys are not joined, which would copy them.
        weights: see there, f32[1].
        scale: see there.
        devices: over which the KV heads are split: rows are joined only as far as they lie on one.
    """
    heads = q.shape[1]
    groups, values = parts[0].v.shape[1:]
    together = groups // devices
    split = () if devices == 1 else (devices,)  # an axis of one would keep some backends from a plain product
    own = jnp.eye(together, dtype=bool)[:, None, :, None]
    rows = jnp.where(own, q.reshape(*split, together, heads // groups, 1, -1), jnp.zeros((), q.dtype))
    rows = rows.reshape(*split, heads // devices, -1)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], *split, -1)

    scores = []
    for part in parts:
        score = jnp.einsum("...nf,s...f->...ns", rows, flat(part.k), preferred_element_type=jnp.float32) * scale
        seen = part.seen
        if part.before is not None:
            seen = seen & (jnp.arange(len(seen), dtype=jnp.int32) < part.before[0])
        by_key = (*(1,) * (score.ndim - 1), -1)
        if part.bias is not None:
            score = score + part.bias.reshape(by_key)
        scores.append(jnp.where(seen.reshape(by_key), score, MASKED))
    joined = jnp.concatenate(scores, axis=-1)
    probabilities = jax.nn.softmax(joined, axis=-1)
    mass = None if weights is None else weights[0] * probabilities.reshape(heads, -1).sum(0)
    weighted = jnp.zeros((), jnp.float32)
    start = 0
    for part in parts:
        stop = start + len(part.seen)
        read = jnp.einsum(
            *("...ns,s...f->...nf", probabilities[..., start:stop].astype(part.v.dtype), flat(part.v)),
            preferred_element_type=jnp.float32,
        )
        weighted = weighted + read
        start = stop
    weighted = weighted.reshape(*split, together, -1, together, values)
    out = jnp.where(own, weighted, 0.0).sum(-2).astype(parts[0].v.dtype)
    return AttentionOutput(out.reshape(1, -1), jax.nn.logsumexp(joined, axis=-1).reshape(1, heads), mass)
