"""Low-rank patches: what a chunk would have absorbed from its neighbours (arXiv 2606.23581, eq. 1).

Everything here lives in the un-rotated frame, keys and values side by side, so that one patch serves every position.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kamera_jax.kv import KV, Factors
from pallas_kernels.relocate_patch.reference import low_rank


def _delta(conditioned: KV, canonical: KV, length: jax.Array | int) -> Float[Array, "L T F"]:
    change = conditioned.features.astype(jnp.float32) - canonical.features.astype(jnp.float32)
    return jnp.where((jnp.arange(change.shape[1]) < length)[None, :, None], change, 0.0)


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
        rank: components per layer, at most; those below the KV's own rounding are left out.

    Returns:
        Factors in the canonical KV's dtype.

    Raises:
        ValueError: rank is below 1, or the two KV differ in shape.
    """
    _check(conditioned, canonical)
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    u, v, spectrum = decompose(conditioned, canonical, length)
    return _factors(u[:, :rank], v[:, :rank], jnp.minimum(rank, _significant(spectrum, canonical)), canonical)


def fit_energy(conditioned: KV, canonical: KV, length: jax.Array | int, energy: float) -> Factors:
    """The smallest patch that keeps a share ``energy`` (0 to 1) of every layer's squared change.

    Ranks differ per layer. Not traceable: the ranks decide the shape.

    Raises:
        ValueError: energy is outside (0, 1], or the two KV differ in shape.
    """
    _check(conditioned, canonical)
    if not 0 < energy <= 1:
        raise ValueError(f"energy is the share of the squared change to keep, in (0, 1]; got {energy}")
    u, v, spectrum = decompose(conditioned, canonical, length)
    total = jnp.maximum(spectrum.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    ranks = 1 + jnp.sum(jnp.cumsum(spectrum, -1) / total < energy, axis=-1)
    ranks = jnp.minimum(ranks, _significant(spectrum, canonical)).astype(jnp.int32)
    widest = max(int(ranks.max()), 1)
    return _factors(u[:, :widest], v[:, :widest], ranks, canonical)


def _significant(spectrum: Float[Array, "L m"], canonical: KV) -> Int[Array, " L"]:
    """How many components stand above the rounding of the KV they are added to.

    None in the first layer: what it computes of a token does not depend on other tokens.
    """
    kv = canonical.features
    rounding = jnp.finfo(kv.dtype).eps ** 2 * jnp.sum(jnp.square(kv.astype(jnp.float32)), axis=(1, 2))
    return jnp.sum(spectrum > rounding[:, None], axis=-1).astype(jnp.int32)


def _check(conditioned: KV, canonical: KV) -> None:
    if (conditioned.rot.shape, conditioned.free.shape) != (canonical.rot.shape, canonical.free.shape):
        raise ValueError(
            f"conditioned KV is rot {conditioned.rot.shape}, free {conditioned.free.shape}; the canonical KV of the "
            "same chunk is "
            f"rot {canonical.rot.shape}, free {canonical.free.shape}; they must agree"
        )


def _factors(u: jax.Array, v: jax.Array, ranks: jax.Array, like: KV) -> Factors:
    used = (jnp.arange(u.shape[1])[None, :] < ranks[:, None])[..., None]
    return Factors(
        u=jnp.where(used, u, 0.0).astype(like.rot.dtype), v=jnp.where(used, v, 0.0).astype(like.rot.dtype), ranks=ranks
    )


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


def truncate(factors: Factors, rank: int) -> Factors:
    """The strongest ``rank`` components of a patch; components come strongest first.

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a patch needs a rank of at least 1; got {rank}")
    ranks = jnp.minimum(factors.ranks, rank)
    return Factors(u=factors.u[..., :rank, :], v=factors.v[..., :rank, :], ranks=ranks)
