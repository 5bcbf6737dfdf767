"""The strongest components of a change, layer by layer, by matrix products and one small decomposition.

Randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4). Traceable; the same seed
gives the same bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS = 4
"""Times the sketch is multiplied by the change and back. With `OVERSAMPLED` chosen such that the energy left is within
1 % of the least possible on every kind of spectrum, flat ones included."""

OVERSAMPLED = 16
"""Columns of the sketch beyond the components that are asked for, at least; half as many as these if that is more."""

SMALL = 128
"""Up to so many tokens or features the whole decomposition costs no more than the iteration."""


TINY = 1e-37
"""Near the least f32: a change as small as this is none."""


class Components(NamedTuple):
    """Components of a change, strongest first; their sum over all m approximates it.

    Attributes:
        u: rows over tokens [L, m, T].
        v: rows over features [L, m, F]; one of the two is orthonormal, the other carries the singular values.
        energy: squared size of each component, f32[L, m].
        rest: squared size of what no component restores, f32[L].
    """

    u: Float[Array, "L m T"]
    v: Float[Array, "L m F"]
    energy: Float[Array, "L m"]
    rest: Float[Array, " L"]


def components(change: Float[Array, "L T F"], count: int, seed: int = 0) -> Components:
    """At least the ``count`` strongest components; all of them where the iteration would be no cheaper.

    Args:
        change: per layer; rows of padding are zero.
        count: of components wanted.
        seed: of the random sketch.
    """
    least = min(change.shape[1:])
    width = count + max(OVERSAMPLED, count // 2)
    return all_components(change) if least <= max(SMALL, 3 * width) else _iterated(change, width, seed)


def all_components(change: Float[Array, "L T F"]) -> Components:
    """All min(T, F) components, from the eigenvectors of the smaller Gram matrix.

    The other side carries the singular values, so that nothing is divided by a small one.
    """
    if change.shape[1] <= change.shape[2]:
        _, basis = _eigh(_product("ltf,lsf->lts", change, change))
        u = basis[..., ::-1].swapaxes(1, 2)
        v = _product("lmt,ltf->lmf", u, change)
        energy = jnp.sum(v * v, axis=-1)
    else:
        _, basis = _eigh(_product("ltf,ltg->lfg", change, change))
        v = basis[..., ::-1].swapaxes(1, 2)
        u = _product("lmf,ltf->lmt", v, change)
        energy = jnp.sum(u * u, axis=-1)
    return Components(u, v, energy, jnp.zeros_like(energy[:, 0]))


def _iterated(change: Float[Array, "L T F"], width: int, seed: int) -> Components:
    """The components of the change within the span of a sketch of ``width`` columns, which turns towards the strongest.

    Both sides are made orthonormal, so that weak directions are not lost in the rounding of strong ones.
    """
    features = jax.random.normal(jax.random.key(seed), (change.shape[2], width), jnp.float32)
    features = jnp.broadcast_to(features, (change.shape[0], *features.shape))

    def turn(_: jax.Array, features: jax.Array) -> jax.Array:
        tokens = _orthonormal(_product("ltf,lfk->ltk", change, features))
        return _orthonormal(_product("ltf,ltk->lfk", change, tokens))

    features = jax.lax.fori_loop(0, STEPS, turn, features)
    tokens = _orthonormal(_product("ltf,lfk->ltk", change, features))
    within = _product("ltk,ltf->lkf", tokens, change)
    _, basis = _eigh(_product("lkf,lmf->lkm", within, within))
    basis = basis[..., ::-1]
    u = _product("ltk,lkm->lmt", tokens, basis)
    v = _product("lkm,lkf->lmf", basis, within)
    energy = jnp.sum(v * v, axis=-1)
    rest = jnp.sum(change * change, axis=(1, 2)) - jnp.sum(energy, axis=-1)
    return Components(u, v, energy, jnp.maximum(rest, 0.0))


@jax.custom_jvp
def _eigh(matrices: Float[Array, "L n n"]) -> tuple[Float[Array, "L n"], Float[Array, "L n n"]]:
    """`jax.numpy.linalg.eigh` with a derivative where eigenvalues coincide, as those of padding and of no change do.

    Eigenvectors of one eigenvalue are only known up to a rotation, on which nothing here depends: they are taken not to
    turn among themselves, where ``eigh`` would divide by the distance of their eigenvalues.
    """
    values, vectors = jnp.linalg.eigh(matrices)
    return values, vectors


@_eigh.defjvp
def _eigh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    values, vectors = _eigh(*primals)
    change = (tangents[0] + tangents[0].swapaxes(1, 2)) / 2
    turned = _product("lji,ljk->lik", vectors, _product("lij,ljk->lik", change, vectors))
    distances = values[:, None, :] - values[:, :, None]
    rounding = values.shape[1] * jnp.finfo(values.dtype).eps * jnp.abs(values).max(axis=1)
    apart = jnp.abs(distances) > rounding[:, None, None]
    turns = jnp.where(apart, turned / jnp.where(apart, distances, 1.0), 0.0)
    return (values, vectors), (jnp.diagonal(turned, axis1=1, axis2=2), _product("lij,ljk->lik", vectors, turns))


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision="highest")


@jax.custom_jvp
def _orthonormal(columns: Float[Array, "L n k"]) -> Float[Array, "L n k"]:
    """Orthonormal columns of the same span, in no order that means anything.

    Their derivative is that of the span: they are taken not to turn within it, on which nothing here depends.
    """
    return _whitened(columns)[0]


@_orthonormal.defjvp
def _orthonormal_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    columns, made_by = _whitened(*primals)
    moved = _product("lnk,lkm->lnm", tangents[0], made_by)
    return columns, moved - _product("lnk,lkm->lnm", columns, _product("lnk,lnm->lkm", columns, moved))


def _whitened(columns: Float[Array, "L n k"]) -> tuple[Float[Array, "L n k"], Float[Array, "L k k"]]:
    """Orthonormal columns, and what the given ones were multiplied by to make them.

    By the eigenvectors of their Gram matrix: products, where a QR is slow. A direction weaker than the matrix can tell
    comes out shorter than 1; the second pass makes it whole. What is zero stays zero.
    """
    made_by = jnp.broadcast_to(jnp.eye(columns.shape[2], dtype=columns.dtype), (len(columns), *columns.shape[2:] * 2))
    for _ in range(2):
        squares, basis = jnp.linalg.eigh(_product("lnk,lnm->lkm", columns, columns))
        strongest = squares[:, -1:]
        least = columns.shape[2] * jnp.finfo(squares.dtype).eps * strongest
        weighed = jnp.maximum(squares, jnp.maximum(least, TINY))
        step = basis * jnp.where(strongest > 0, jax.lax.rsqrt(weighed), 0.0)[:, None, :]
        columns = _product("lnk,lkm->lnm", columns, step)
        made_by = _product("lkm,lmn->lkn", made_by, step)
    return columns, made_by
