"""Low-rank patches: what a chunk would have absorbed from its neighbours (arXiv 2606.23581, eq. 1).

Everything here lives in the un-rotated frame, keys and values side by side, so that one patch serves every position.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kamera_jax import int8 as int8_codes
from kamera_jax.arguments import check_type, whole_number
from kamera_jax.kv import KV, Factors, bucket, bucket_of_ranks
from kamera_jax.patch.subspace import Components, components
from pallas_kernels.relocate_patch.reference import low_rank

SHARE = 0.1
"""Of a chunk's KV bytes: what a patch may take where nothing else is asked for."""

UNEVEN = 2
"""Times the mean of all layers that one may have, before `width_for` rounds up: on SmolLM2 the components of most
energy are 1.5 to 2.3 times the mean in the layer that has most, where the mean is 16 or more."""

FIRST = 32
"""Components that `fit_energy` looks for first; all of them where these are too few."""

LEAST_WIDTH = 32
"""Components that a layer may have in any case: of few components, the layers' shares differ more."""


class Fitted(NamedTuple):
    """A patch as it was fitted.

    Attributes:
        factors: the patch.
        residual: share of each layer's squared change that its rank left out, f32[L]; 0 where nothing changed. From
            the spectrum: what rounding the factors adds is not in it, see `residual`.
    """

    factors: Factors
    residual: Float[Array, " L"]


def _delta(conditioned: KV, canonical: KV, length: jax.Array | int) -> Float[Array, "L T F"]:
    change = conditioned.features.astype(jnp.float32) - canonical.features.astype(jnp.float32)
    return _valid_rows(change, length)


def _valid_rows(x: Float[Array, "L T F"], length: jax.Array | int) -> Float[Array, "L T F"]:
    return jnp.where((jnp.arange(x.shape[1], dtype=jnp.int32) < length)[None, :, None], x, 0.0)


def fit(conditioned: KV, canonical: KV, length: jax.Array | int, rank: int) -> Factors:
    """The best rank-``rank`` patch that turns canonical KV into conditioned KV, per layer.

    What it leaves is within 1 % of the least possible (Eckart–Young); see `kamera_jax.patch.subspace`.

    Args:
        conditioned: KV of the chunk's tokens run after its antecedents [L, T, ·].
        canonical: KV of the same tokens run alone, same frame.
        length: valid tokens; the others are left out.
        rank: components per layer, at most; those that only restore the KV's own rounding are left out.

    Returns:
        Factors in the canonical KV's dtype.

    Raises:
        ValueError: rank is below 1, or the two KV differ in shape.
    """
    return fit_rank(conditioned, canonical, length, rank).factors


def fit_rank(
    conditioned: KV, canonical: KV, length: jax.Array | int, rank: int, *, int8: bool = False, seed: int = 0
) -> Fitted:
    """`fit`, with what it leaves.

    Args:
        conditioned, canonical, length, rank: see `fit`.
        int8: store the factors as int8 with a scale for each component.
        seed: of the sketch; the same seed gives the same bits.

    Raises:
        ValueError: see `fit`.
    """
    rank = whole_number(rank, "rank")
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    for name, kv in (("conditioned", conditioned), ("canonical", canonical)):
        check_type(kv, KV, name, "the kv of a chunk")
    if not hasattr(length, "dtype"):
        length = whole_number(length, "length")
    return fit_width(conditioned, canonical, length, rank, width=rank, int8=int8, seed=seed)


def fit_width(
    conditioned: KV,
    canonical: KV,
    length: jax.Array | int,
    rank: jax.Array | int,
    *,
    width: int,
    int8: bool = False,
    seed: int = 0,
) -> Fitted:
    """`fit_rank` whose arrays have room for ``width`` components: one program for all ranks up to it."""
    parts, worth = _components(conditioned, canonical, length, width, seed)
    return _fitted(parts, jnp.minimum(rank, worth), width, canonical, length, int8)


def fit_energy(
    conditioned: KV, canonical: KV, length: jax.Array | int, energy: float, *, int8: bool = False, seed: int = 0
) -> Fitted:
    """The smallest patch that keeps a share ``energy`` (0 to 1) of every layer's squared change.

    Ranks differ per layer. Not traceable: the ranks decide the shape, one of few.

    Raises:
        ValueError: energy is outside (0, 1], or the two KV differ in shape.
    """
    _check(conditioned, canonical)
    if not 0 < energy <= 1:
        raise ValueError(f"energy is the share of the squared change to keep, in (0, 1]; got {energy}")
    most = min(canonical.rot.shape[1], canonical.rot.shape[2] + canonical.free.shape[2])
    for count in (min(FIRST, most), most):
        fitted, missed = _fit_share(conditioned, canonical, length, 1.0 - energy, count=count, int8=int8, seed=seed)
        if not missed:
            break
    width = bucket(max(int(fitted.factors.ranks.max()), 1))
    return Fitted(truncate(fitted.factors, width), fitted.residual)


@partial(jax.jit, static_argnames=("count", "int8", "seed"))
def _fit_share(
    conditioned: KV,
    canonical: KV,
    length: jax.Array | int,
    lost: jax.Array | float,
    *,
    count: int,
    int8: bool,
    seed: int,
) -> tuple[Fitted, jax.Array]:
    """The patch, and whether ``count`` components were too few for it."""
    parts, worth = _components(conditioned, canonical, length, count, seed)
    budget = lost * (parts.energy.sum(-1) + parts.rest)
    ranks = jnp.minimum(_leading(parts, budget), worth)
    missed = jnp.any((parts.rest > budget) & (ranks == parts.energy.shape[1]))
    return _fitted(parts, ranks, parts.energy.shape[1], canonical, length, int8), missed


def fit_bytes(
    conditioned: KV,
    canonical: KV,
    length: jax.Array | int,
    count: jax.Array | int,
    *,
    widest: int,
    int8: bool = True,
    seed: int = 0,
) -> Fitted:
    """The patch of at most ``count`` components in all, those of most energy, whatever their layer.

    Args:
        conditioned, canonical, length: see `fit`.
        count: components that the byte budget pays for; see `component_bytes`.
        widest: components of a layer, at most.
        int8, seed: see `fit_rank`.

    Raises:
        ValueError: the two KV differ in shape.
    """
    parts, worth = _components(conditioned, canonical, length, widest, seed)
    energy = parts.energy[:, :widest]
    energy = jnp.where(jnp.arange(energy.shape[1], dtype=jnp.int32)[None, :] < worth[:, None], energy, -1.0)
    order = jnp.argsort(-energy.ravel(), stable=True).astype(jnp.int32)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=jnp.int32))
    taken = (place < count).reshape(energy.shape) & (energy >= 0)
    return _fitted(parts, taken.sum(-1).astype(jnp.int32), energy.shape[1], canonical, length, int8)


def _components(
    conditioned: KV, canonical: KV, length: jax.Array | int, count: int, seed: int
) -> tuple[Components, Int[Array, " L"]]:
    """Components of the change, and how many of each layer's are more than rounding."""
    _check(conditioned, canonical)
    parts = components(_delta(conditioned, canonical, length), count, seed)
    return parts, _leading(parts, _rounding(conditioned, parts, length))


def _leading(parts: Components, budget: Float[Array, " L"]) -> Int[Array, " L"]:
    """The fewest leading components whose rest has at most the energy ``budget``."""
    rest = jnp.cumsum(parts.energy[:, ::-1], axis=-1)[:, ::-1] + parts.rest[:, None]
    return jnp.sum(rest > budget[:, None], axis=-1).astype(jnp.int32)


def _fitted(
    parts: Components, ranks: Int[Array, " L"], width: int, like: KV, length: jax.Array | int, int8: bool
) -> Fitted:
    """The first ``ranks`` components, in arrays of ``width``."""
    past = jnp.arange(parts.energy.shape[1], dtype=jnp.int32)[None, :] >= ranks[:, None]
    left = jnp.where(past, parts.energy, 0.0).sum(-1) + parts.rest
    total = parts.energy.sum(-1) + parts.rest
    residual = jnp.where(total > 0, left / jnp.where(total > 0, total, 1.0), 0.0)
    u = jnp.where((jnp.arange(parts.u.shape[-1], dtype=jnp.int32) < length)[None, None, :], parts.u, 0.0)[:, :width]
    factors = limit(Factors(u=u, v=parts.v[:, :width], ranks=ranks), width)
    if int8:
        return Fitted(quantised(factors), residual)
    u, v = factors.floats(like.rot.dtype)
    return Fitted(Factors(u=u, v=v, ranks=factors.ranks), residual)


REPEATED = 16
"""Roundings, in f32, by which two programs of different shapes may differ over the same KV."""


def _rounding(conditioned: KV, parts: Components, length: jax.Array | int) -> Float[Array, " L"]:
    """Energy of the rounding in a change: of the KV as stored (uniform in half an ulp), and of f32 arithmetic.

    The first layer, whose KV does not depend on neighbours, has nothing else.
    """
    kv = conditioned.features
    stored, computed = (float(jnp.finfo(dtype).eps) ** 2 for dtype in (kv.dtype, jnp.float32))
    size = jnp.sum(jnp.square(_valid_rows(kv.astype(jnp.float32), length)), axis=(1, 2))
    return (stored / 12 + REPEATED**2 * computed) * size + computed * parts.energy.shape[-1] * parts.energy.sum(-1)


def _check(conditioned: KV, canonical: KV) -> None:
    if (conditioned.rot.shape, conditioned.free.shape) != (canonical.rot.shape, canonical.free.shape):
        raise ValueError(
            f"conditioned KV is rot {conditioned.rot.shape}, free {conditioned.free.shape}; the canonical KV of the "
            "same chunk is "
            f"rot {canonical.rot.shape}, free {canonical.free.shape}; they must agree"
        )


def apply(kv: KV, factors: Factors) -> KV:
    """KV with the patch added, still un-rotated; f32 math, the KV's dtype out.

    Args:
        kv: canonical KV [L, T, ·].
        factors: of the same L, T and features.
    """
    check_type(kv, KV, "kv", "the kv of a chunk")
    check_type(factors, Factors, "factors", "the factors of a patch")
    delta = low_rank(*factors.floats(jnp.float32), factors.ranks)
    split = kv.rot.shape[-1]
    return KV(
        rot=(kv.rot.astype(jnp.float32) + delta[..., :split]).astype(kv.rot.dtype),
        free=(kv.free.astype(jnp.float32) + delta[..., split:]).astype(kv.free.dtype),
    )


def residual(conditioned: KV, canonical: KV, factors: Factors, length: jax.Array | int) -> Float[Array, " L"]:
    """Share of each layer's squared change that the patch does not restore, f32[L]; 0 where nothing changed."""
    change = _delta(conditioned, canonical, length)
    left = change - _delta(apply(canonical, factors), canonical, length)
    total = jnp.sum(change * change, axis=(1, 2))
    return jnp.where(total > 0, jnp.sum(left * left, axis=(1, 2)) / jnp.where(total > 0, total, 1.0), 0.0)


def quantised(factors: Factors) -> Factors:
    """The same patch in int8, symmetric, with one scale for each component."""
    u, u_scale = int8_codes.quantised(factors.u, axis=-1)
    v, v_scale = int8_codes.quantised(factors.v, axis=-1)
    return Factors(u=u, v=v, ranks=factors.ranks, scale=(u_scale * v_scale)[..., 0])


def component_bytes(length: int, features: int, itemsize: int) -> int:
    """Bytes of one component of one layer: valid tokens; with an itemsize of 1 its scale too."""
    return (length + features) * itemsize + (SCALE_BYTES if itemsize == 1 else 0)


SCALE_BYTES = 4


def nbytes(factors: Factors, length: int) -> int:
    """Bytes of a patch as stored: components in use, valid tokens, and their scales."""
    return int(factors.ranks.sum()) * component_bytes(length, factors.v.shape[-1], factors.u.dtype.itemsize)


def width_for(count: int, layers: int, tokens: int, features: int) -> int:
    """Components that a layer may have of ``count`` in all layers: few sizes, the sizes of a patch's arrays."""
    most = min(count, -(-UNEVEN * count // layers))
    return min(max(LEAST_WIDTH, bucket_of_ranks(most)), tokens, features)


def rank_for_bytes(max_bytes: int, *, layers: int, length: int, features: int, itemsize: int) -> int:
    """The largest uniform rank whose patch takes at most ``max_bytes``.

    Raises:
        ValueError: not even rank 1 fits.
    """
    one = layers * component_bytes(length, features, itemsize)
    if max_bytes < one:
        raise ValueError(f"max_bytes={max_bytes} is below one component of this chunk, {one} bytes ({layers} layers)")
    return max_bytes // one


def limit(factors: Factors, rank: jax.Array | int) -> Factors:
    """At most ``rank`` components a layer, the strongest, in arrays of the same shape."""
    ranks = jnp.minimum(factors.ranks, rank)
    used = jnp.arange(factors.u.shape[1], dtype=jnp.int32)[None, :] < ranks[:, None]
    u, v = (jnp.where(used[..., None], factor, jnp.zeros((), factor.dtype)) for factor in (factors.u, factors.v))
    scale = None if factors.scale is None else jnp.where(used, factors.scale, 0.0)
    return Factors(u=u, v=v, ranks=ranks, scale=scale)


def truncate(factors: Factors, rank: int) -> Factors:
    """The strongest ``rank`` components of a patch; components come strongest first.

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    scale = None if factors.scale is None else factors.scale[..., :rank]
    ranks = jnp.minimum(factors.ranks, rank)
    return Factors(u=factors.u[..., :rank, :], v=factors.v[..., :rank, :], ranks=ranks, scale=scale)
