"""Softmax attention over keys that lie in parts, without an array of all scores.

`attention` is what decoders and towers call. It alone chooses between the plain form, which is quickest where there are
few scores, and blocks of queries and keys with an online softmax (arXiv 2112.05682, 2205.14135).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30
"""Finite, so that a row with nothing to see (padding) stays finite too."""

BLOCK_BYTES = 2**22
"""Most bytes that the f32 scores of one block take; where all scores fit, they are computed at once."""

BLOCK_QUERIES = 128
BLOCK_KEYS = 256
"""Most tokens of a block, over all heads: what runs fastest on a CPU, and stays on the chip of a TPU."""

LANES = 128
"""Blocks of keys are a multiple of this, as the lanes of a TPU."""

FEW_TOKENS = 16
"""Fewer queries than this (decoding) are computed at once: their scores are as small as the keys they read."""


class Attended(NamedTuple):
    """What `grouped_attention` computes; what is not used is dead code.

    Attributes:
        out: with heads concatenated [T, N*Dv].
        probabilities: f32[G, N/G, T, S].
        lse: log-sum-exp of the scores, f32[T, N].
    """

    out: jax.Array
    probabilities: jax.Array
    lse: jax.Array


class Keys(NamedTuple):
    """One part of the keys, and which queries see them.

    Attributes:
        k: rotated keys [S, G, D].
        v: values [S, G, Dv].
        seen: which keys are seen at all, bool[S].
        before: how many of the S keys, from the first on, each query sees at most, i32[T]; None for all of them.
    """

    k: Float[Array, "S G D"]
    v: Float[Array, "S G Dv"]
    seen: Bool[Array, " S"]
    before: Int[Array, " T"] | None = None


class AttentionOutput(NamedTuple):
    """What `attention` computes.

    Attributes:
        out: with heads concatenated [T, N*Dv], in the dtype of the values.
        lse: log-sum-exp of the scores, f32[T, N].
        mass: the attention that each key of all parts receives, f32[S]; None where no weights were given.
    """

    out: jax.Array
    lse: jax.Array
    mass: jax.Array | None


class _KeyBlocks(NamedTuple):
    """A part cut into n blocks of K keys: k [n, G, K, D], v [n, G, K, Dv], seen bool[n, K], index i32[n, K]."""

    k: jax.Array
    v: jax.Array
    seen: jax.Array
    index: jax.Array


def attention(
    q: Float[Array, "T N D"],
    parts: Sequence[Keys],
    scale: float,
    weights: Float[Array, " T"] | None = None,
) -> AttentionOutput:
    """Grouped-query attention to the keys of all parts together; MHA is G = N.

    No array of [N, T, S] scores is made where they would take more than `BLOCK_BYTES`. A query that sees no key has a
    finite output without meaning.

    Args:
        q: rotated queries.
        parts: keys, values and who sees them; at least one key in all.
        scale: factor on the scores.
        weights: how much each query counts in ``mass``, which is the sum over queries and heads of the weights times
            the probabilities.
    """
    tokens, heads, _ = q.shape
    parts = [part for part in parts if part.k.shape[0]]
    slots = sum(part.k.shape[0] for part in parts)
    if tokens < FEW_TOKENS or 4 * heads * tokens * slots <= BLOCK_BYTES:
        return _at_once(q, parts, scale, weights)
    return _by_blocks(q, parts, scale, weights)


def grouped_attention(
    q: Float[Array, "T N D"],
    k: Float[Array, "S G D"],
    v: Float[Array, "S G Dv"],
    mask: Bool[Array, "T S"],
    scale: float,
) -> Attended:
    """Grouped-query attention with all scores at once, under any mask; MHA is G = N.

    Args:
        q: rotated queries.
        k, v: rotated keys and values.
        mask: True where a query sees a key.
        scale: factor on the scores.
    """
    tokens, heads, _ = q.shape
    groups = k.shape[1]
    # Heads lead and a group's queries share one axis: plain batched matrix products, which every backend runs well.
    q = q.reshape(tokens, groups, heads // groups, -1).transpose(1, 2, 0, 3).reshape(groups, -1, q.shape[-1])
    scores = jnp.einsum("gqd,sgd->gqs", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(groups, -1, tokens, k.shape[0])
    scores = jnp.where(mask[None, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = probabilities.astype(v.dtype).reshape(groups, -1, k.shape[0])
    out = jnp.einsum("gqs,sgd->gqd", weights, v).reshape(groups, heads // groups, tokens, -1)
    lse = jax.nn.logsumexp(scores, axis=-1).transpose(2, 0, 1).reshape(tokens, heads)
    return Attended(out.transpose(2, 0, 1, 3).reshape(tokens, -1), probabilities, lse)


def _at_once(q: jax.Array, parts: Sequence[Keys], scale: float, weights: jax.Array | None) -> AttentionOutput:
    """`attention` with all scores in one array."""
    masks = []
    for part in parts:
        mask = jnp.broadcast_to(part.seen[None, :], (q.shape[0], part.seen.shape[0]))
        if part.before is not None:
            mask &= jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :] < part.before[:, None]
        masks.append(mask)
    k, v = (jnp.concatenate(each) for each in zip(*((part.k, part.v) for part in parts), strict=True))
    out, probabilities, lse = grouped_attention(q, k, v, jnp.concatenate(masks, axis=1), scale)
    mass = None
    if weights is not None:
        # One product over heads and queries: sums over several axes of something so large are slow.
        rows = probabilities.reshape(-1, *probabilities.shape[-2:])
        each = jnp.broadcast_to(weights, rows.shape[:2])
        mass = jnp.einsum("nt,nts->s", each, rows, precision="highest")
    return AttentionOutput(out, lse, mass)


def _by_blocks(q: jax.Array, parts: Sequence[Keys], scale: float, weights: jax.Array | None) -> AttentionOutput:
    """`attention` by blocks of queries, each over blocks of keys; blocks of which no query sees a key are skipped."""
    tokens, heads, _ = q.shape
    groups = parts[0].k.shape[1]
    size = _balanced(tokens, min(BLOCK_QUERIES, max(16, BLOCK_BYTES // (4 * BLOCK_KEYS * heads))), 16)
    blocks = -(-tokens // size)
    sources = [_key_blocks(part) for part in parts]
    zero = _zero(q, weights, *parts)
    # Differentiated, scores are computed again, block by block: none are kept.
    recomputed = partial(jax.checkpoint, prevent_cse=False)

    def by_block(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, blocks * size - tokens), *[(0, 0)] * (x.ndim - 1)))
        return padded.reshape(blocks, size, *x.shape[1:])

    rows = by_block(q.reshape(tokens, groups, heads // groups, -1)).transpose(0, 2, 3, 1, 4)
    bounds = [None if part.before is None else by_block(part.before) for part in parts]
    shares = None if weights is None else by_block(weights)
    mass = None if weights is None else [jnp.zeros(each.seen.shape, jnp.float32) + zero for each in sources]

    def block(mass: Any, scanned: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        rows, bounds, share = scanned
        state = (
            jnp.full(rows.shape[:-1], MASKED, jnp.float32) + zero,
            jnp.zeros(rows.shape[:-1], jnp.float32) + zero,
            jnp.zeros((*rows.shape[:-1], parts[0].v.shape[-1]), jnp.float32) + zero,
        )
        for keys, before in zip(sources, bounds, strict=True):
            state = jax.lax.scan(recomputed(partial(_online, rows, before, scale)), state, keys)[0]
        highest, total, weighted = state
        total = jnp.where(total > 0, total, 1.0)
        lse = highest + jnp.log(total)
        out = (weighted / total[..., None]).astype(parts[0].v.dtype)
        if mass is not None:
            each = jnp.broadcast_to(share, rows.shape[:-1])
            received = [
                jax.lax.scan(recomputed(partial(_received, rows, before, scale, lse, each)), zero, keys)[1]
                for keys, before in zip(sources, bounds, strict=True)
            ]
            mass = jax.tree.map(jnp.add, mass, received)
        return mass, (out, lse)

    mass, (out, lse) = jax.lax.scan(recomputed(block), mass, (rows, bounds, shares))
    out = out.transpose(0, 3, 1, 2, 4).reshape(blocks * size, -1)[:tokens]
    lse = lse.transpose(0, 3, 1, 2).reshape(blocks * size, heads)[:tokens]
    if mass is not None:
        mass = jnp.concatenate([each.reshape(-1)[: len(part.seen)] for each, part in zip(mass, parts, strict=True)])
    return AttentionOutput(out, lse, mass)


def _balanced(count: int, most: int, multiple: int) -> int:
    """The size of equal blocks of at most ``most``, or the multiple above, that ``count`` splits into."""
    each = math.ceil(count / math.ceil(count / most))
    return -(-each // multiple) * multiple


def _key_blocks(part: Keys) -> _KeyBlocks:
    slots, groups, _ = part.k.shape
    size = _balanced(slots, BLOCK_KEYS, LANES)
    blocks = -(-slots // size)
    pad = (0, blocks * size - slots)

    def by_block(x: jax.Array) -> jax.Array:
        return jnp.pad(x, (pad, (0, 0), (0, 0))).reshape(blocks, size, groups, -1).swapaxes(1, 2)

    seen = jnp.pad(part.seen, pad).reshape(blocks, size)
    index = jnp.arange(blocks * size, dtype=jnp.int32).reshape(blocks, size)
    return _KeyBlocks(by_block(part.k), by_block(part.v), seen, index)


def _scores(rows: jax.Array, before: jax.Array | None, scale: float, keys: _KeyBlocks) -> jax.Array:
    """Masked scores of a block, f32[G, N/G, B, K]."""
    flat = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    scores = jnp.einsum("gqd,gkd->gqk", flat, keys.k, preferred_element_type=jnp.float32) * scale
    visible = keys.seen[None, :]
    if before is not None:
        visible = visible & (keys.index[None, :] < before[:, None])
    return jnp.where(visible[None, None], scores.reshape(*rows.shape[:-1], -1), MASKED)


def _where_seen(
    before: jax.Array | None, keys: _KeyBlocks, compute: Callable[[Any], Any], otherwise: Callable[[Any], Any], x: Any
) -> Any:
    """``compute(x)`` where a query of the block may see one of the keys, else ``otherwise(x)``.

    Two conditions, for `jax.vmap` computes both sides of one that differs over its axis: the causal one does not.
    """
    branch = partial(jax.lax.cond, jnp.any(keys.seen), compute, otherwise)
    if before is None:
        return branch(x)
    return jax.lax.cond(keys.index[0] < jnp.max(before), branch, otherwise, x)


def _online(
    rows: jax.Array, before: jax.Array | None, scale: float, state: tuple[jax.Array, ...], keys: _KeyBlocks
) -> tuple[tuple[jax.Array, ...], None]:
    """Add a block of keys to the running maximum, sum of exponentials and weighted sum of values."""

    def add(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest, total, weighted = state
        scores = _scores(rows, before, scale, keys)
        new = jnp.maximum(highest, scores.max(-1))
        p = jnp.exp(scores - new[..., None])
        kept = jnp.exp(highest - new)
        flat = p.astype(keys.v.dtype).reshape(p.shape[0], -1, p.shape[-1])
        part = jnp.einsum("gqk,gkd->gqd", flat, keys.v, preferred_element_type=jnp.float32)
        return new, total * kept + p.sum(-1), weighted * kept[..., None] + part.reshape(weighted.shape)

    return _where_seen(before, keys, add, lambda state: state, state), None


def _received(
    rows: jax.Array,
    before: jax.Array | None,
    scale: float,
    lse: jax.Array,
    weights: jax.Array,
    zero: jax.Array,
    keys: _KeyBlocks,
) -> tuple[jax.Array, jax.Array]:
    """The attention that each key of a block receives from the rows, f32[K]; ``zero`` is handed on."""

    def add(zero: jax.Array) -> jax.Array:
        p = jnp.exp(_scores(rows, before, scale, keys) - lse[..., None])
        return jnp.einsum("n,nk->k", weights.reshape(-1), p.reshape(-1, p.shape[-1]), precision="highest")

    def nothing(zero: jax.Array) -> jax.Array:
        return jnp.zeros(keys.seen.shape, jnp.float32) + zero

    return zero, _where_seen(before, keys, add, nothing, zero)


def _zero(*trees: Any) -> jax.Array:
    """0.0 that varies over every mesh axis the arrays vary over, as a scan under `jax.shard_map` asks of its state."""
    zero = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(trees):
        first = leaf[(0,) * leaf.ndim]
        zero += (first != first).astype(jnp.int32) * 0
    return zero.astype(jnp.float32)
