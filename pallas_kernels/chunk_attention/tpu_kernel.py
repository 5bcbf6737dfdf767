"""The kernel of chunk_attention on TPU: one tile of a chunk's tokens against the rows of a few KV heads.

A tile of keys is worked on transposed, [D, tokens]: positions lie along the lanes as they do in memory, a head of any
width is a slice of sublanes, half-split pairs are two of them, and scores are a plain product.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.chunk_attention.reference import UNSEEN
from pallas_kernels.chunk_attention.tpu_plan import Plan
from pallas_kernels.chunk_attention.tpu_rotation import rotated, tables
from pallas_kernels.tpu import dot


@dataclass(frozen=True)
class Refs:
    """What a step has at hand.

    Attributes:
        lengths, bases, ranks: of all chunks, scalars in SMEM; ranks is None without a patch.
        q: [1, heads, rows, width]; this and the rest in VMEM.
        positions: [1, 1, A, tokens], in the chunk.
        inv_freq: [1, pairs, A]; for interleaved pairs a row for every dim.
        rot: [1, 1, tokens, key_width], or with tokens last.
        free: [1, 1, tokens, value_width], or with tokens last.
        scales: of int8, of the keys' channels f32[1, 1, 1, key_width] and the tokens' values f32[1, 1, 1, tokens]; else
            empty.
        factors: u [1, 1, m, tokens], and v as `Plan.factors` says; empty without a patch.
        out: [1, heads, rows, Dv], written in the last step of its rows.
        lse: f32[1, heads, rows, LANES], all lanes alike.
        weighted: Σp·v, f32[heads, rows, Dv]; this, `highest` and `total` (f32[heads, rows, LANES]) are the running
            softmax and stay from step to step.
        highest: the highest score so far.
        total: Σp.
        absorbed: f32[rows, m], queries times the patch of the latent, where it is absorbed; else None.
    """

    lengths: Any
    bases: Any
    ranks: Any
    q: Any
    positions: Any
    inv_freq: Any
    rot: Any
    free: Any
    scales: tuple[Any, ...]
    factors: tuple[Any, ...]
    out: Any
    lse: Any
    weighted: Any
    highest: Any
    total: Any
    absorbed: Any

    @classmethod
    def of(cls, plan: Plan, refs: tuple[Any, ...]) -> "Refs":
        """From the refs as Pallas hands them: scalars, inputs, outputs, scratch."""
        lengths, bases, _, _, _, *rest = refs
        ranks = rest.pop(0) if plan.rank else None
        q, positions, inv_freq, rot, free, *rest = rest
        scales = tuple(rest.pop(0) for _ in range(2 if plan.scaled else 0))
        factors = tuple(rest.pop(0) for _ in range(plan.factors))
        out, lse, weighted, highest, total, *absorbed = rest
        return cls(
            lengths=lengths,
            bases=bases,
            ranks=ranks,
            q=q,
            positions=positions,
            inv_freq=inv_freq,
            rot=rot,
            free=free,
            scales=scales,
            factors=factors,
            out=out,
            lse=lse,
            weighted=weighted,
            highest=highest,
            total=total,
            absorbed=absorbed[0] if absorbed else None,
        )


@dataclass(frozen=True)
class Step:
    """Where the grid stands in a chunk.

    Attributes:
        index: of the tile of tokens.
        left: valid tokens from the start of the tile on; none if it is not positive.
        base: the absolute position the chunk starts at.
        rank: components of its patch, or None.
    """

    index: jax.Array
    left: jax.Array
    base: jax.Array
    rank: jax.Array | None

    def seen(self, shape: tuple[int, ...], axis: int) -> jax.Array:
        """Where the tokens along an axis are valid."""
        return jax.lax.broadcasted_iota(jnp.int32, shape, axis) < self.left


def kernel(plan: Plan, *all_refs: Any) -> None:
    """One tile of tokens against the rows of ``tiles.heads`` KV heads.

    Chunks and their tiles are the innermost axes of the grid, so that the running softmax of these rows never leaves
    VMEM, and the next tile is fetched while this one is worked on.
    """
    refs = Refs.of(plan, all_refs)
    batch = pl.program_id(0)
    chunk = pl.program_id(3)
    index = pl.program_id(4)
    rank = None if refs.ranks is None else refs.ranks[batch, chunk]
    left = refs.lengths[batch, chunk] - index * plan.tiles.tokens
    step = Step(index, left, refs.bases[batch, chunk], rank)

    @pl.when((chunk == 0) & (index == 0))
    def _() -> None:
        refs.weighted[...] = jnp.zeros_like(refs.weighted)
        refs.highest[...] = jnp.full_like(refs.highest, UNSEEN)
        refs.total[...] = jnp.zeros_like(refs.total)

    if not plan.scaled:

        @pl.when((left > 0) & (left < plan.tiles.tokens))
        def _() -> None:
            # Past the length: p is 0 there, and 0 * nan is nan. In the fetched block, so that full tiles do not pay.
            values = refs.free[0, 0]
            seen = step.seen(values.shape, 1 if plan.values_transposed else 0)
            refs.free[0, 0] = jnp.where(seen, values, jnp.zeros_like(values))

    @pl.when(left > 0)
    def _() -> None:
        _attend(plan, refs, step)

    @pl.when((chunk == pl.num_programs(3) - 1) & (index == pl.num_programs(4) - 1))
    def _() -> None:
        for head in range(plan.tiles.heads):
            sums = refs.total[head]
            some = sums > 0
            sums = jnp.where(some, sums, 1.0)
            refs.out[0, head] = (refs.weighted[head] / sums[:, :1]).astype(refs.out.dtype)
            refs.lse[0, head] = jnp.where(some, refs.highest[head] + jnp.log(sums), -jnp.inf)


def _attend(plan: Plan, refs: Refs, step: Step) -> None:
    """Add a tile that holds a valid token to the running softmax of every head."""
    u, v_keys, v_values = _patch(plan, refs, step) if plan.rank else (None, None, None)
    cos, sin = tables(refs.positions[0, 0] + step.base, refs.inv_freq[0], plan.rope_scale)
    # The heads' keys are patched in one product, and each is rotated when its turn comes: f32 keys of all heads and of
    # one head rotated are what is in VMEM at a time.
    keys = refs.rot[0, 0].astype(jnp.float32)
    if plan.scaled:
        keys = keys * refs.scales[0][0, 0]
    keys = keys if plan.keys_transposed else keys.T
    if u is not None and v_keys is not None:
        keys += dot(v_keys, u, (0, 0))
    for head in range(plan.tiles.heads):
        width = plan.heads.rotated
        key = rotated(keys[head * width : (head + 1) * width], cos, sin, plan.layout).astype(refs.q.dtype)
        own = slice(head * plan.heads.value, (head + 1) * plan.heads.value)
        values = refs.free[0, 0, own] if plan.values_transposed else refs.free[0, 0, :, own]
        if plan.scaled:
            values = values.astype(jnp.float32).astype(refs.q.dtype)  # whole numbers up to 127, which bfloat16 has
        patch = None if u is None or v_values is None else (u, v_values[:, own])
        _attend_head(plan, refs, step, head, key, values, patch)


def _attend_head(
    plan: Plan,
    refs: Refs,
    step: Step,
    head: int,
    key: jax.Array,
    values: jax.Array,
    patch: tuple[jax.Array, jax.Array] | None,
) -> None:
    """Add a head's keys [D, tokens] and values to its running softmax; ``patch`` is u and v of the values."""
    dtype = refs.q.dtype
    by_token = 1 if plan.values_transposed else 0  # the axis of values that tokens are on
    if patch is not None and not plan.tiles.absorb:
        u, v = patch
        delta = dot(v, u, (0, 0)) if by_token else dot(u, v, (0, 0))
        values = (values.astype(jnp.float32) + delta).astype(dtype)
        patch = None
    if plan.heads.latent:
        scores = _latent_scores(plan, refs, step, head, key, values, patch)
    else:
        scores = dot(refs.q[0, head], key, (1, 0))

    scores = jnp.where(step.seen(scores.shape, 1), scores * plan.scale, UNSEEN)
    before = refs.highest[head, :, :1]
    now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    # Some token of this tile is seen, so `now` is a score, and what is not seen comes out as exactly 0.
    p = jnp.exp(scores - now)
    kept = jnp.exp(before - now)
    refs.highest[head] = jnp.broadcast_to(now, refs.highest.shape[1:])
    refs.total[head] = kept * refs.total[head] + p.sum(axis=1, keepdims=True)
    weights = p
    if plan.scaled:
        # A token's scale belongs to its weight; what lies past the length may be anything.
        scale = refs.scales[1][0, 0]
        weights = p * jnp.where(step.seen(scale.shape, 1), scale, 0.0)
    p = p.astype(dtype)
    part = dot(weights.astype(dtype), values, (1, by_token))
    if patch is not None:
        u, v = patch
        part += dot(dot(p, u, (1, 1)).astype(dtype), v, (1, 0))
    refs.weighted[head] = kept * refs.weighted[head] + part


def _latent_scores(
    plan: Plan,
    refs: Refs,
    step: Step,
    head: int,
    key: jax.Array,
    values: jax.Array,
    patch: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Scores against [latent | k_pe]; ``patch`` is that of the latent, where it is absorbed."""
    by_token = 1 if plan.values_transposed else 0
    latent = refs.q[0, head, :, : plan.heads.value]
    scores = dot(refs.q[0, head, :, plan.heads.value :], key, (1, 0)) + dot(latent, values, (1, 1 - by_token))
    if patch is None:
        return scores
    u, v = patch

    # Of the chunk, not of the tile: made in its first step and kept for the others.
    @pl.when(step.index == 0)
    def _() -> None:
        refs.absorbed[...] = dot(latent, v, (1, 1))

    return scores + dot(refs.absorbed[...].astype(refs.q.dtype), u, (1, 0))


def _patch(plan: Plan, refs: Refs, step: Step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """u [m, tokens], v of the keys, v of the values; zero past the chunk's rank and length: 0 * nan is nan."""
    rank = step.rank
    assert rank is not None

    def used(array: jax.Array) -> jax.Array:
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, array.shape, 0) < rank, array, jnp.zeros_like(array))

    u = used(refs.factors[0][0, 0])
    u = jnp.where(step.seen(u.shape, 1), u, jnp.zeros_like(u))
    if plan.factors == 3:
        return u, used(refs.factors[1][0, 0]), used(refs.factors[2][0, 0])
    width = plan.key_width
    return u, used(refs.factors[1][0, 0, :, :width]), used(refs.factors[1][0, 0, :, width:])
