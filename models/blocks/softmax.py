"""Softmax attention over keys that lie in parts, without an array of all scores.

`attention` is what decoders and towers call. It alone chooses between the plain form, which is quickest where there are
few scores, a kernel that JAX keeps where one serves the call (`models.blocks.flash`), and blocks of queries and keys
with an online softmax (arXiv 2112.05682, 2205.14135).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models.blocks.keys import MASKED, AttentionOutput, Keys
from models.blocks.one_query import attention_of_one
from pallas_kernels.dispatch import Implementation

BLOCK_BYTES = 10 * 2**20
"""Most bytes that the f32 scores of one block take; where all scores fit, they are computed at once."""

BLOCK_QUERIES = 512
BLOCK_KEYS = 512
"""Most tokens of a block, over all heads: what runs fastest on a CPU, and stays on the chip of a TPU."""

LANES = 128
"""Blocks of keys are a multiple of this, as the lanes of a TPU."""

JOINED_BYTES = 2**17
"""Keys of fewer bytes are joined on a CPU for a single query; more are read where they lie."""

FEW_TOKENS = 16
"""Fewer queries than this are computed at once: their scores are as small as the keys they read."""


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


class _KeyBlocks(NamedTuple):
    """A part cut into n blocks of K keys: k [n, G, K, D], v [n, G, K, Dv], seen bool[n, K], bias f32[n, K] or None."""

    k: jax.Array
    v: jax.Array
    seen: jax.Array
    bias: jax.Array | None


def attention(
    q: Float[Array, "T N D"],
    parts: Sequence[Keys],
    scale: float,
    weights: Float[Array, " T"] | None = None,
    *,
    implementation: Implementation | None = None,
    devices: int = 1,
) -> AttentionOutput:
    """Grouped-query attention to the keys of all parts together; MHA is G = N.

    No array of [N, T, S] scores is made where they would take more than `BLOCK_BYTES`. A query that sees no key has a
    finite output without meaning.

    Args:
        q: rotated queries.
        parts: keys, values and who sees them; at least one key in all. All or none of them say whose their keys are.
        scale: factor on the scores.
        weights: how much each query counts in ``mass``, which is the sum over queries and heads of the weights times
            the probabilities. By owner it costs few products more; by key, the scores once more.
        implementation: None picks; a named kernel that cannot serve the call raises.
        devices: over which the KV heads are split, where JAX splits the call over a mesh.
    """
    tokens, heads, _ = q.shape
    parts = [part for part in parts if part.k.shape[0]]
    owners = [part.owners for part in parts if part.owners is not None]
    if weights is not None and owners:
        return _with_owners(q, parts, owners, scale, weights, implementation, devices)
    if tokens == 1 and implementation in (None, "xla"):
        apart = partial(attention_of_one, scale=scale, devices=devices)
        if sum(part.k.nbytes for part in parts) >= JOINED_BYTES:
            return apart(q, parts, weights)
        # On a CPU joining few keys costs little, and gives the same bits whatever program the query is a part of.
        joined = partial(_at_once, scale=scale)
        return jax.lax.platform_dependent(q, parts, weights, cpu=joined, default=apart)
    slots = sum(part.k.shape[0] for part in parts)
    if implementation in (None, "xla") and (tokens < FEW_TOKENS or 4 * heads * tokens * slots <= BLOCK_BYTES):
        return _at_once(q, parts, weights, scale)
    from models.blocks import flash  # which takes what is defined here

    return flash.served(q, parts, weights, scale, implementation)


def _with_owners(
    q: jax.Array,
    parts: Sequence[Keys],
    owners: Sequence[jax.Array],
    scale: float,
    weights: jax.Array,
    implementation: Implementation | None,
    devices: int,
) -> AttentionOutput:
    """`attention` whose mass is by owner: what a query's attention to one adds up to is one more feature of values."""
    extended = []
    for part, owner in zip(parts, owners, strict=True):
        owned = owner.astype(part.v.dtype)[:, None, :]
        owned = jnp.broadcast_to(owned, (*part.v.shape[:2], owned.shape[-1]))
        extended.append(part._replace(v=jnp.concatenate([part.v, owned], axis=-1), owners=None))
    whole = attention(q, extended, scale, implementation=implementation, devices=devices)
    width = parts[0].v.shape[-1]
    out, received = jnp.split(whole.out.reshape(*q.shape[:2], -1), [width], axis=-1)
    each = jnp.broadcast_to(weights[:, None], q.shape[:2])
    mass = jnp.einsum("tn,tno->o", each, received.astype(jnp.float32), precision="highest")
    return AttentionOutput(out.reshape(len(q), -1), whole.lse, mass)


def grouped_attention(
    q: Float[Array, "T N D"],
    k: Float[Array, "S G D"],
    v: Float[Array, "S G Dv"],
    mask: Bool[Array, "T S"],
    scale: float,
    bias: Float[Array, " S"] | None = None,
) -> Attended:
    """Grouped-query attention with all scores at once, under any mask; MHA is G = N.

    Args:
        q: rotated queries.
        k, v: rotated keys and values.
        mask: True where a query sees a key.
        scale: factor on the scores.
        bias: what is added to the scores of each key; None for 0.
    """
    tokens, heads, _ = q.shape
    groups = k.shape[1]
    # Heads lead and a group's queries share one axis: plain batched matrix products, which every backend runs well.
    q = q.reshape(tokens, groups, heads // groups, -1).transpose(1, 2, 0, 3).reshape(groups, -1, q.shape[-1])
    scores = jnp.einsum("gqd,sgd->gqs", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(groups, -1, tokens, k.shape[0])
    if bias is not None:
        scores = scores + bias[None, None, None, :]
    scores = jnp.where(mask[None, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = probabilities.astype(v.dtype).reshape(groups, -1, k.shape[0])
    out = jnp.einsum("gqs,sgd->gqd", weights, v).reshape(groups, heads // groups, tokens, -1)
    lse = jax.nn.logsumexp(scores, axis=-1).transpose(2, 0, 1).reshape(tokens, heads)
    return Attended(out.transpose(2, 0, 1, 3).reshape(tokens, -1), probabilities, lse)


def _at_once(q: jax.Array, parts: Sequence[Keys], weights: jax.Array | None, scale: float) -> AttentionOutput:
    """`attention` with all scores in one array."""
    masks = []
    for part in parts:
        mask = jnp.broadcast_to(part.seen[None, :], (q.shape[0], part.seen.shape[0]))
        if part.before is not None:
            mask &= jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :] < part.before[:, None]
        masks.append(mask)
    k, v = (jnp.concatenate(each) for each in zip(*((part.k, part.v) for part in parts), strict=True))
    out, probabilities, lse = grouped_attention(q, k, v, jnp.concatenate(masks, axis=1), scale, _bias_of(parts))
    mass = None
    if weights is not None:
        # One product over heads and queries: sums over several axes of something so large are slow.
        rows = probabilities.reshape(-1, *probabilities.shape[-2:])
        each = jnp.broadcast_to(weights, rows.shape[:2])
        mass = jnp.einsum("nt,nts->s", each, rows, precision="highest")
    return AttentionOutput(out, lse, mass)


def _bias_of(parts: Sequence[Keys]) -> jax.Array | None:
    """The bias of the keys of all parts, f32[S]; None where no part has one."""
    if all(part.bias is None for part in parts):
        return None
    return jnp.concatenate(
        [jnp.zeros(len(part.seen), jnp.float32) if part.bias is None else part.bias for part in parts]
    )


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def by_blocks(q: jax.Array, parts: Sequence[Keys], weights: jax.Array | None, scale: float) -> AttentionOutput:
    """`attention` by blocks of queries, each over the blocks of keys from the first to the last that it may see."""
    return _looped(_within, q, parts, weights, scale)


@by_blocks.defjvp
def _by_blocks_jvp(scale: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Loops of a length that is not known have no derivative; the same ones over all blocks do."""
    return jax.jvp(lambda q, parts, weights: _looped(_over_all, q, parts, weights, scale), primals, tangents)


Loop = Callable[[Any, Any, int, Callable[[jax.Array, Any], Any], Any], Any]
"""From, to, the most there are, what is done with an index and the state, and the state."""


def _within(start: Any, stop: Any, count: int, step: Callable[[jax.Array, Any], Any], state: Any) -> Any:
    """The state after the steps from ``start`` to ``stop``; without a derivative."""
    return jax.lax.fori_loop(jnp.int32(start), jnp.int32(stop), step, state)


def _over_all(start: Any, stop: Any, count: int, step: Callable[[jax.Array, Any], Any], state: Any) -> Any:
    """The same, with a derivative: over all ``count`` steps, of which those out of bounds do nothing.

    Differentiated, a step is computed again: no scores are kept.
    """

    def within(state: Any, index: jax.Array) -> tuple[Any, None]:
        return jax.lax.cond((start <= index) & (index < stop), step, lambda _, state: state, index, state), None

    return jax.lax.scan(jax.checkpoint(within, prevent_cse=False), state, jnp.arange(count, dtype=jnp.int32))[0]


def _looped(
    loop: Loop, q: jax.Array, parts: Sequence[Keys], weights: jax.Array | None, scale: float
) -> AttentionOutput:
    tokens, heads, _ = q.shape
    groups = parts[0].k.shape[1]
    size = _balanced(tokens, min(BLOCK_QUERIES, max(16, BLOCK_BYTES // (4 * BLOCK_KEYS * heads))), 16)
    blocks = -(-tokens // size)
    zero = _zero(q, weights, *parts)

    def by_block(x: jax.Array, fill: str = "constant") -> jax.Array:
        padded = jnp.pad(x, ((0, blocks * size - tokens), *[(0, 0)] * (x.ndim - 1)), mode=fill)
        return padded.reshape(blocks, size, *x.shape[1:])

    rows = by_block(q.reshape(tokens, groups, heads // groups, -1)).transpose(0, 2, 3, 1, 4)
    bounds = [None if part.before is None else by_block(jnp.asarray(part.before), "edge") for part in parts]
    shares = None if weights is None else by_block(weights)
    sources = [_key_blocks(part) for part in parts]
    mass = None if weights is None else [jnp.zeros(each.seen.shape, jnp.float32) + zero for each in sources]

    def block(mass: Any, scanned: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        rows, bounds, share = scanned
        state = (
            jnp.full(rows.shape[:-1], MASKED, jnp.float32) + zero,
            jnp.zeros(rows.shape[:-1], jnp.float32) + zero,
            jnp.zeros((*rows.shape[:-1], parts[0].v.shape[-1]), jnp.float32) + zero,
        )
        spans = [_span(keys, before) for keys, before in zip(sources, bounds, strict=True)]
        for keys, before, span in zip(sources, bounds, spans, strict=True):
            count = len(keys.seen)
            state = loop(0, span.whole, count, partial(_online, rows, keys, None, scale), state)
            state = loop(span.whole, span.stop, count, partial(_online, rows, keys, _Mask(before), scale), state)
        highest, total, weighted = state
        total = jnp.where(total > 0, total, 1.0)
        lse = jnp.where(highest > MASKED, highest * scale, MASKED) + jnp.log(total)
        out = (weighted / total[..., None]).astype(parts[0].v.dtype)
        if mass is not None:
            each = jnp.broadcast_to(share, rows.shape[:-1])
            mass = [
                loop(
                    0,
                    span.stop,
                    len(keys.seen),
                    partial(_received, rows, keys, _Mask(before), scale, lse, each),
                    received,
                )
                for keys, before, span, received in zip(sources, bounds, spans, mass, strict=True)
            ]
        return mass, (out, lse)

    mass, (out, lse) = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), mass, (rows, bounds, shares))
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
    bias = None if part.bias is None else jnp.pad(part.bias, pad).reshape(blocks, size)
    return _KeyBlocks(by_block(part.k), by_block(part.v), seen, bias)


class _Mask(NamedTuple):
    """That keys are masked: those not seen, and where ``before`` is given, those that each query does not see yet."""

    before: jax.Array | None


class _Span(NamedTuple):
    """Which of a part's key blocks a block of queries reads: the first ``stop``; of the first ``whole``, all keys."""

    whole: jax.Array
    stop: jax.Array


def _span(keys: _KeyBlocks, before: jax.Array | None) -> _Span:
    count, size = keys.seen.shape
    number = jnp.arange(count, dtype=jnp.int32)
    stop = jnp.max(jnp.where(keys.seen.any(1), number + 1, 0))
    whole = jnp.min(jnp.where(keys.seen.all(1), count, number))
    if before is not None:
        stop = jnp.minimum(stop, -(-jnp.max(before) // size))
        whole = jnp.minimum(whole, jnp.min(before) // size)
    return _Span(jnp.minimum(whole, stop), stop)


def _scores(rows: jax.Array, keys: _KeyBlocks, mask: _Mask | None, scale: float, index: jax.Array) -> jax.Array:
    """Scores of a block of queries and one of keys, f32[G, N/G, B, K], still to be multiplied by ``scale``."""
    k, seen = (jax.lax.dynamic_index_in_dim(each, index, keepdims=False) for each in (keys.k, keys.seen))
    flat = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    scores = jnp.einsum("gqd,gkd->gqk", flat, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*rows.shape[:-1], -1)
    if keys.bias is not None:
        added = jax.lax.dynamic_index_in_dim(keys.bias, index, keepdims=False)
        scores = scores + (added / scale)[None, None, None, :]
    if mask is None:
        return scores
    visible = seen[None, :]
    if mask.before is not None:
        place = index * len(seen) + jnp.arange(len(seen), dtype=jnp.int32)
        visible = visible & (place[None, :] < mask.before[:, None])
    return jnp.where(visible, scores, MASKED)


def _online(
    rows: jax.Array,
    keys: _KeyBlocks,
    mask: _Mask | None,
    scale: float,
    index: jax.Array,
    state: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Add a block of keys to the running maximum (not scaled), sum of exponentials and weighted sum of values."""
    highest, total, weighted = state
    scores = _scores(rows, keys, mask, scale, index)
    # What is subtracted cancels out, and so does its derivative.
    new = jax.lax.stop_gradient(jnp.maximum(highest, scores.max(-1)))
    # Scaled here, scores are read twice and written once: a CPU would write them out scaled before.
    p = jnp.exp((scores - new[..., None]) * scale)
    kept = jnp.exp((highest - new) * scale)
    v = jax.lax.dynamic_index_in_dim(keys.v, index, keepdims=False)
    flat = p.astype(v.dtype).reshape(p.shape[0], -1, p.shape[-1])
    part = jnp.einsum("gqk,gkd->gqd", flat, v, preferred_element_type=jnp.float32)
    return new, total * kept + p.sum(-1), weighted * kept[..., None] + part.reshape(weighted.shape)


def _received(
    rows: jax.Array,
    keys: _KeyBlocks,
    mask: _Mask | None,
    scale: float,
    lse: jax.Array,
    weights: jax.Array,
    index: jax.Array,
    mass: jax.Array,
) -> jax.Array:
    """Add the attention that each key of a block receives from the rows to its row of ``mass``, f32[n, K]."""
    p = jnp.exp(_scores(rows, keys, mask, scale, index) * scale - lse[..., None])
    received = jnp.einsum("n,nk->k", weights.reshape(-1), p.reshape(-1, p.shape[-1]), precision="highest")
    return mass.at[index].add(received)


def _zero(*trees: Any) -> jax.Array:
    """0.0 that varies over every mesh axis the arrays vary over, as a scan under `jax.shard_map` asks of its state."""
    zero = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(trees):
        first = leaf[(0,) * leaf.ndim]
        zero += (first != first).astype(jnp.int32) * 0
    return zero.astype(jnp.float32)
