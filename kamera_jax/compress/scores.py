"""What a chunk's rows are worth: numbers for every layer, KV head and token, of arrays alone.

Keys are un-rotated, so that what is made of them alone knows no place; what asks with queries rotates both. Every
softmax is over the chunk's own rows. Rows past the length score minus infinity.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kamera_jax import rope
from kamera_jax.kv import KV, KVSpec
from kamera_jax.rope import RopeSpec
from pallas_kernels.relocate_patch.reference import rotate_flat

RIDGE = 1e-3
"""Of leverage: what is added to the keys' second moments, as a share of the mean of their diagonal."""

AHEAD = 512
"""How far behind a chunk the questions stand that statistics of queries expect, in positions."""

Scores = Float[Array, "L H T"]

Count = jax.Array | np.integer | int
"""How many rows are valid."""


def heads_of(kv: KV, heads: int) -> tuple[Float[Array, "L T H D"], Float[Array, "L T H Dv"]]:
    """Keys and values of every head; the latents of an MLA are both, and stand before what of its keys is rotated.

    Args:
        kv: un-rotated [L, T, ·].
        heads: G; 1 for an MLA.
    """
    rot, free = (x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1) for x in (kv.rot, kv.free))
    if heads == 1 and rot.shape[-1] != free.shape[-1]:
        return jnp.concatenate([free, rot], axis=-1), free
    return rot, free


def _valid(rows: int, length: Count) -> Bool[Array, " T"]:
    return jnp.arange(rows, dtype=jnp.int32) < length


def _hidden(scores: jax.Array, length: Count) -> jax.Array:
    """Scores [L, H, T] with those of padding at minus infinity."""
    return jnp.where(_valid(scores.shape[-1], length), scores, -jnp.inf)


def key_difference(keys: Float[Array, "L T H D"], length: Count) -> Scores:
    """How far a key points from what keys have in common: −cos(k, mean of the unit keys) (KeyDiff, arXiv 2504.15364).

    Args:
        keys: see `heads_of`.
        length: valid rows.
    """
    unit = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    unit = jnp.where(_valid(keys.shape[1], length)[None, :, None, None], unit, 0.0)
    common = unit.sum(1)
    common = common / jnp.maximum(jnp.linalg.norm(common, axis=-1, keepdims=True), 1e-12)
    return _hidden(-jnp.einsum("lthd,lhd->lht", unit, common, precision="highest"), length)


def leverage(keys: Float[Array, "L T H D"], length: Count) -> Scores:
    """How much of a head's keys hangs on one row: diag X (XᵀX + λI)⁻¹ Xᵀ of centred keys (Compactor, arXiv 2507.08143).

    λ is a share of the mean of XᵀX's diagonal, so that rows that come twice count half, and in the same order.

    Args:
        keys: see `heads_of`.
        length: valid rows.
    """
    valid = _valid(keys.shape[1], length)[None, :, None, None]
    count = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)
    mean = jnp.where(valid, keys, 0.0).sum(1, keepdims=True) / count
    centred = jnp.where(valid, keys - mean, 0.0)
    moments = jnp.einsum("lthd,lthe->lhde", centred, centred, precision="highest")
    size = jnp.trace(moments, axis1=-2, axis2=-1)[..., None, None] / keys.shape[-1]
    ridge = (RIDGE * size + 1e-20) * jnp.eye(keys.shape[-1])[None, None]
    solved = jnp.linalg.solve(moments + ridge, centred.transpose(0, 2, 3, 1))
    return _hidden(jnp.einsum("lthd,lhdt->lht", centred, solved, precision="highest"), length)


def key_norm(keys: Float[Array, "L T H D"], length: Count, *, large: bool | jax.Array) -> Scores:
    """‖k‖ over the mean of its head's, or its negative: which of the two is worth more differs by model.

    Args:
        keys: see `heads_of`.
        length: valid rows.
        large: whether large keys are worth more.
    """
    norms = jnp.linalg.norm(keys, axis=-1).transpose(0, 2, 1)
    valid = _valid(keys.shape[1], length)
    mean = jnp.where(valid, norms, 0.0).sum(-1, keepdims=True) / jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)
    return _hidden(jnp.where(large, 1.0, -1.0) * norms / jnp.maximum(mean, 1e-12), length)


def norms_read(keys: Float[Array, "L T H D"], read: Scores, length: Count) -> Float[Array, ""]:
    """How the norms of keys go with what is read: the mean over heads of their correlation, −1 to 1.

    Args:
        keys: see `heads_of`.
        read: of a replay; see `received`.
        length: valid rows.
    """
    valid = _valid(keys.shape[1], length)
    count = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)

    def standard(x: jax.Array) -> jax.Array:
        x = jnp.where(valid, x, 0.0)
        x = jnp.where(valid, x - x.sum(-1, keepdims=True) / count, 0.0)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return (standard(jnp.linalg.norm(keys, axis=-1).transpose(0, 2, 1)) * standard(read)).sum(-1).mean()


def turned(
    x: Float[Array, "T H D"], positions: Float[Array, "A T"], spec: RopeSpec, layer: jax.Array | int
) -> Float[Array, "T H D"]:
    """Heads whose last features are rotated, and those before them, of an MLA's latents, are not."""
    still, rotated = jnp.split(x, [x.shape[-1] - spec.head_dim], axis=-1)
    return jnp.concatenate([still, rope.rotate(rotated, positions, spec, layer)], axis=-1)


@partial(jax.jit, static_argnames=("spec", "causal", "how"))
def received(
    queries: Float[Array, "L Q N D"],
    asked: Count,
    at: Float[Array, "A Q"],
    kv: KV,
    positions: Float[Array, "A T"],
    length: Count,
    *,
    spec: KVSpec,
    causal: bool = False,
    how: Literal["max", "sum"] = "max",
) -> Scores:
    """What queries read of a chunk's rows: the largest share of attention that any gives a row, or the sum of all.

    The largest over a replay of the chunk behind itself is KVzip's (arXiv 2505.23416); the sum over the chunk's own
    queries is H2O's (arXiv 2306.14048).

    Args:
        queries: un-rotated and times the scale of the scores, as `kamera_jax.backbone.Output` has them.
        asked: valid queries.
        at: where they stand.
        kv: the chunk's.
        positions: where its rows stand.
        length: valid rows.
        spec: what the KV is.
        causal: whether query i sees the rows up to i alone.
        how: what is made of the queries of a KV head's group.
    """
    keys, _ = heads_of(kv, spec.heads)
    number = queries.shape[1]
    group = queries.shape[2] // spec.heads
    seen = _valid(keys.shape[1], length)[None, :]
    if causal:
        seen = seen & (
            jnp.arange(keys.shape[1], dtype=jnp.int32)[None, :] <= jnp.arange(number, dtype=jnp.int32)[:, None]
        )
    seen = jnp.broadcast_to(seen, (number, keys.shape[1]))
    counted = _valid(number, asked)[None, :, None]

    def of_head(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, rows = pair  # [Q, N/H, D], [T, D]
        scores = jnp.einsum("qnd,td->nqt", own, rows, precision="highest")
        shares = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)
        shares = jnp.where(counted & seen[None], shares, 0.0)
        return shares.max((0, 1)) if how == "max" else shares.sum((0, 1))

    def of_layer(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        index, own, rows = layer
        own = turned(own.astype(jnp.float32), at, spec.rope, index)
        rows = turned(rows, positions, spec.rope, index)
        own = own.reshape(number, spec.heads, group, -1).swapaxes(0, 1)
        return jax.lax.map(of_head, (own, rows.swapaxes(0, 1)))

    layers = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return _hidden(jax.lax.map(of_layer, (layers, queries, keys)), length)


def _mean_turn(
    x: Float[Array, "Q N D"], offsets: Float[Array, "A n"], spec: RopeSpec, layer: jax.Array
) -> Float[Array, "Q N D"]:
    """Heads [Q, N, D] as rotated to every one of the offsets, in the mean: one product, for rotation is linear."""
    still, rotated = jnp.split(x, [x.shape[-1] - spec.head_dim], axis=-1)
    cos, sin = (jnp.broadcast_to(t.mean(0), (x.shape[0], spec.head_dim)) for t in rope.tables(spec, offsets, layer))
    flat = rotated.reshape(1, x.shape[0], -1)
    flat = rotate_flat(flat, cos, sin, rotary_dim=spec.rotary_dim, layout=spec.layout)
    return jnp.concatenate([still, flat.reshape(rotated.shape)], axis=-1)


def _pair_norms(x: Float[Array, "Q N D"], spec: RopeSpec) -> Float[Array, "Q N R"]:
    """Of heads the norm of every pair of features that is rotated together, times √½, at both members."""
    rotated = x[..., x.shape[-1] - spec.head_dim :][..., : spec.rotary_dim]
    if spec.layout == "half":
        partner = jnp.roll(rotated, spec.rotary_dim // 2, axis=-1)
    else:
        partner = rotated.reshape(*rotated.shape[:-1], -1, 2)[..., ::-1].reshape(rotated.shape)
    return jnp.sqrt((jnp.square(rotated) + jnp.square(partner)) / 2)


@partial(jax.jit, static_argnames=("spec", "how"))
def foreseen(
    queries: Float[Array, "L Q N D"],
    asked: Count,
    kv: KV,
    positions: Float[Array, "A T"],
    length: Count,
    offsets: Float[Array, "A n"],
    *,
    spec: KVSpec,
    how: Literal["expected", "tri"],
) -> Scores:
    """What questions behind a chunk are to read of its rows, by statistics of queries.

    ``"expected"`` (expected attention, arXiv 2510.00636): queries are normally distributed, q ~ N(μ, Σ), and with R̄ the
    mean of their rotations s = softmax(k·R̄μ + ½ kᵀR̄ΣR̄ᵀk)·‖v‖. ``"tri"`` (TriAttention): with pairs f
    of features, s = k·R̄μ + Σ_f (E|q_f| − |E q_f|)|k_f|, here less its mean over the rows and over their deviation.
    Features that are not rotated count as they are. Of the query heads of a group the mean.

    Args:
        queries: un-rotated and times the scale of the scores, of which μ and Σ are taken.
        asked: valid queries.
        kv: the chunk's.
        positions: where its rows stand.
        length: valid rows.
        offsets: where questions stand.
        spec: what the KV is.
        how: which of the two.
    """
    keys, values = heads_of(kv, spec.heads)
    group = queries.shape[2] // spec.heads
    counted = _valid(queries.shape[1], asked)[:, None, None]
    number = jnp.maximum(jnp.asarray(asked, jnp.float32), 1.0)
    valid = _valid(keys.shape[1], length)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(counted, x, 0.0).sum(0) / number

    def dots(queries: jax.Array, rows: jax.Array) -> jax.Array:
        """Of queries [Q, N, D] with rows [T, H, D]: [N, Q, T]."""
        queries = queries.reshape(len(queries), spec.heads, group, -1)
        return jnp.einsum("qhgd,thd->hgqt", queries, rows, precision="highest").reshape(
            -1, queries.shape[0], rows.shape[0]
        )

    def expected(queries: jax.Array, rows: jax.Array, values: jax.Array, index: jax.Array) -> jax.Array:
        ahead = _mean_turn(queries, offsets, spec.rope, index)
        rows = turned(rows, positions, spec.rope, index)
        centre = mean(ahead)[None]
        spread = dots(jnp.where(counted, ahead - centre, 0.0), rows)
        logits = dots(centre, rows)[:, 0] + jnp.square(spread).sum(1) / number / 2
        shares = jax.nn.softmax(jnp.where(valid[None], logits, -jnp.inf), axis=-1)
        shares = shares.reshape(spec.heads, group, -1).mean(1)
        worth = shares * jnp.linalg.norm(values, axis=-1).T
        return worth / jnp.maximum(jnp.where(valid, worth, 0.0).sum(-1, keepdims=True), 1e-20)

    def tri(queries: jax.Array, rows: jax.Array, values: jax.Array, index: jax.Array) -> jax.Array:
        centre = mean(queries)[None]
        logits = dots(_mean_turn(centre, offsets, spec.rope, index), turned(rows, positions, spec.rope, index))[:, 0]
        apart = mean(_pair_norms(queries, spec.rope))[None] - _pair_norms(centre, spec.rope)
        logits = logits + dots(apart, _pair_norms(rows, spec.rope))[:, 0]
        count = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)
        centred = logits - jnp.where(valid, logits, 0.0).sum(-1, keepdims=True) / count
        deviation = jnp.sqrt(jnp.where(valid, jnp.square(centred), 0.0).sum(-1, keepdims=True) / count)
        return (centred / jnp.maximum(deviation, 1e-12)).reshape(spec.heads, group, -1).mean(1)

    def of_layer(layer: tuple[jax.Array, ...]) -> jax.Array:
        index, own, rows, held = layer
        return (expected if how == "expected" else tri)(own.astype(jnp.float32), rows, held, index)

    layers = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return _hidden(jax.lax.map(of_layer, (layers, queries, keys, values)), length)


def one_choice(scores: Scores) -> Float[Array, " T"]:
    """One number a token for all layers and heads: the mean."""
    return scores.mean((0, 1))


def best(
    scores: Float[Array, " T"] | Float[np.ndarray, " T"], always: Bool[np.ndarray, " T"], length: int, keep: int
) -> Int[np.ndarray, " K"]:
    """The tokens that are kept, ascending: those that always are, then those that score highest; of equals the first.

    Args:
        scores: of every token.
        always: which are kept whatever they score.
        length: valid tokens.
        keep: how many; at least those that always are, and at most all.
    """
    order = np.where(always[:length], np.inf, np.asarray(scores, np.float64)[:length])
    order = np.where(np.isnan(order), -np.inf, order)
    keep = min(length, max(keep, int(always[:length].sum())))
    return np.sort(np.argsort(-order, kind="stable")[:keep])
