"""Low-rank patches: what a chunk would have absorbed from its neighbours (arXiv 2606.23581, eq. 1).

Everything here lives in the un-rotated frame, keys and values side by side, so that one patch serves every position.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kamera_jax.kv import KV, Factors, bucket
from pallas_kernels.relocate_patch.reference import low_rank


def _delta(conditioned: KV, canonical: KV, length: jax.Array | int) -> Float[Array, "L T F"]:
    change = conditioned.features.astype(jnp.float32) - canonical.features.astype(jnp.float32)
    return _valid_rows(change, length)


def _valid_rows(x: Float[Array, "L T F"], length: jax.Array | int) -> Float[Array, "L T F"]:
    return jnp.where((jnp.arange(x.shape[1]) < length)[None, :, None], x, 0.0)


def decompose(
    conditioned: KV, canonical: KV, length: jax.Array | int
) -> tuple[Float[Array, "L m T"], Float[Array, "L m F"], Float[Array, "L m"]]:
    """All components of the change, strongest first: ``(u, v, energy)`` with ``uᵀ v`` the change and m = min(T, F).

    The orthonormal side comes from the eigenvectors of the smaller Gram matrix; the other side carries the singular
    values, so that nothing is divided by a small one.
    """
    change = _delta(conditioned, canonical, length)
    if change.shape[1] <= change.shape[2]:
        gram = jnp.einsum("ltf,lsf->lts", change, change, precision="highest")
        _, basis = jnp.linalg.eigh(gram)
        u = basis[..., ::-1].swapaxes(1, 2)
        v = jnp.einsum("lmt,ltf->lmf", u, change, precision="highest")
        energy = jnp.sum(v * v, axis=-1)
    else:
        gram = jnp.einsum("ltf,ltg->lfg", change, change, precision="highest")
        _, basis = jnp.linalg.eigh(gram)
        v = basis[..., ::-1].swapaxes(1, 2)
        u = jnp.einsum("lmf,ltf->lmt", v, change, precision="highest")
        energy = jnp.sum(u * u, axis=-1)
    return u, v, energy


def fit(conditioned: KV, canonical: KV, length: jax.Array | int, rank: int) -> Factors:
    """The best rank-``rank`` patch that turns canonical KV into conditioned KV (Eckart–Young, per layer).

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
    _check(conditioned, canonical)
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    u, v, spectrum = decompose(conditioned, canonical, length)
    ranks = jnp.minimum(rank, _leading(spectrum, _rounding(conditioned, spectrum, length)))
    return _factors(u[:, :rank], v[:, :rank], ranks, canonical)


def fit_energy(conditioned: KV, canonical: KV, length: jax.Array | int, energy: float) -> Factors:
    """The smallest patch that keeps a share ``energy`` (0 to 1) of every layer's squared change.

    Ranks differ per layer. Not traceable: the ranks decide the shape, one of few.

    Raises:
        ValueError: energy is outside (0, 1], or the two KV differ in shape.
    """
    _check(conditioned, canonical)
    if not 0 < energy <= 1:
        raise ValueError(f"energy is the share of the squared change to keep, in (0, 1]; got {energy}")
    factors = _fit_share(conditioned, canonical, length, 1.0 - energy)
    width = bucket(max(int(factors.ranks.max()), 1))
    return Factors(u=factors.u[:, :width], v=factors.v[:, :width], ranks=factors.ranks)


@jax.jit
def _fit_share(conditioned: KV, canonical: KV, length: jax.Array | int, lost: jax.Array | float) -> Factors:
    u, v, spectrum = decompose(conditioned, canonical, length)
    ranks = _leading(spectrum, jnp.maximum(lost * spectrum.sum(-1), _rounding(conditioned, spectrum, length)))
    return _factors(u, v, ranks, canonical)


def _leading(spectrum: Float[Array, "L m"], budget: Float[Array, " L"]) -> Int[Array, " L"]:
    """The fewest leading components whose rest has at most the energy ``budget``."""
    rest = jnp.cumsum(spectrum[:, ::-1], axis=-1)[:, ::-1]
    return jnp.sum(rest > budget[:, None], axis=-1).astype(jnp.int32)


REPEATED = 16
"""Roundings, in f32, by which two programs of different shapes may differ over the same KV."""


def _rounding(conditioned: KV, spectrum: Float[Array, "L m"], length: jax.Array | int) -> Float[Array, " L"]:
    """Energy of the rounding in a change: of the KV as stored (uniform in half an ulp), and of f32 arithmetic.

    The first layer, whose KV does not depend on neighbours, has nothing else.
    """
    kv = conditioned.features
    stored, computed = (float(jnp.finfo(dtype).eps) ** 2 for dtype in (kv.dtype, jnp.float32))
    size = jnp.sum(jnp.square(_valid_rows(kv.astype(jnp.float32), length)), axis=(1, 2))
    return (stored / 12 + REPEATED**2 * computed) * size + computed * spectrum.shape[-1] * spectrum.sum(-1)


def _check(conditioned: KV, canonical: KV) -> None:
    if (conditioned.rot.shape, conditioned.free.shape) != (canonical.rot.shape, canonical.free.shape):
        raise ValueError(
            f"conditioned KV is rot {conditioned.rot.shape}, free {conditioned.free.shape}; the canonical KV of the "
            "same chunk is "
            f"rot {canonical.rot.shape}, free {canonical.free.shape}; they must agree"
        )


def _factors(u: jax.Array, v: jax.Array, ranks: jax.Array, like: KV) -> Factors:
    return limit(Factors(u=u.astype(like.rot.dtype), v=v.astype(like.rot.dtype), ranks=ranks), u.shape[1])


def apply(kv: KV, factors: Factors) -> KV:
    """KV with the patch added, still un-rotated; f32 math, the KV's dtype out.

    Args:
        kv: canonical KV [L, T, ·].
        factors: of the same L, T and features.
    """
    delta = low_rank(factors.u, factors.v, factors.ranks)
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


def nbytes(factors: Factors, length: int) -> int:
    """Bytes of a patch as stored: components in use, valid tokens."""
    return int(factors.ranks.sum()) * (length + factors.v.shape[-1]) * factors.u.dtype.itemsize


def rank_for_bytes(max_bytes: int, *, layers: int, length: int, features: int, itemsize: int) -> int:
    """The largest uniform rank whose patch takes at most ``max_bytes``.

    Raises:
        ValueError: not even rank 1 fits.
    """
    one = layers * (length + features) * itemsize
    if max_bytes < one:
        raise ValueError(f"max_bytes={max_bytes} is below one component of this chunk, {one} bytes ({layers} layers)")
    return max_bytes // one


def limit(factors: Factors, rank: jax.Array | int) -> Factors:
    """At most ``rank`` components a layer, the strongest, in arrays of the same shape."""
    ranks = jnp.minimum(factors.ranks, rank)
    used = (jnp.arange(factors.u.shape[1])[None, :] < ranks[:, None])[..., None]
    u, v = (jnp.where(used, factor, jnp.zeros((), factor.dtype)) for factor in (factors.u, factors.v))
    return Factors(u=u, v=v, ranks=ranks)


def truncate(factors: Factors, rank: int) -> Factors:
    """The strongest ``rank`` components of a patch; components come strongest first.

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    ranks = jnp.minimum(factors.ranks, rank)
    return Factors(u=factors.u[..., :rank, :], v=factors.v[..., :rank, :], ranks=ranks)
