"""The product of a single row with a matrix, as decoding makes them, read where the matrix lies.

Layers lie in a stack. On a GPU, XLA hands a product to a kernel that takes its matrix as an array of its own, and so
copies each layer's out of the stack first, which moves three times the bytes. A sum of products is fused with the slice
that it reads, and one row is so little work that reading the matrix takes longer. On a CPU, XLA makes a product of one
row in f32, whatever its dtype, and so writes a matrix of bf16 out in it first; that of several rows reads the matrix as
it is. Other backends fuse the product.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WIDE = 8192
"""Columns from which on XLA fuses a sum over all rows of a matrix with what it sums."""

PART = 128
"""Rows of a narrower matrix that are summed at once."""

REPEATED = 4
"""So many rows, all the same, take no longer than two."""

Product = Callable[[jax.Array, jax.Array], jax.Array]
"""Of a row [..., I] and a matrix [I, O]: [..., O] in f32."""


def matmul(x: Float[Array, "... I"], matrix: jax.Array) -> Float[Array, "... O"]:
    """``x @ matrix`` in f32; the matrix may be int8 codes, which every dtype of ``x`` has exactly."""
    return jnp.matmul(x, matrix.astype(x.dtype), preferred_element_type=jnp.float32)


def _single(on_cpu: Product) -> Product:
    """`matmul` of a single row with a matrix [I, O]; of several under ``vmap`` it is one product."""

    @jax.custom_batching.custom_vmap
    def of_row(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, matrix, cuda=summed, rocm=summed, cpu=on_cpu, default=matmul)

    @of_row.def_vmap
    def of_rows(size: int, batched: list[bool], x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, bool]:
        if batched[1]:
            return jax.vmap(matmul, in_axes=tuple(0 if each else None for each in batched))(x, matrix), True
        return matmul(x, matrix), True

    @jax.custom_jvp
    def single(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return of_row(x, matrix)

    @single.defjvp
    def tangent(primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        _, tangent = jax.jvp(matmul, primals, tangents)
        return single(*primals), tangent

    return single


def repeated(x: Float[Array, "... I"], matrix: jax.Array) -> Float[Array, "... O"]:
    """`matmul` of a single row as that of several which are all the same, where its dtype is bf16."""
    if x.dtype != jnp.bfloat16:
        return matmul(x, matrix)
    rows = matmul(jnp.broadcast_to(x.reshape(1, -1), (REPEATED, x.size)), matrix)
    return rows[0].reshape(*x.shape[:-1], matrix.shape[1])


def summed(x: Float[Array, "... I"], matrix: jax.Array) -> Float[Array, "... O"]:
    """`matmul` of a single row as a sum of products.

    That of a narrow matrix is taken in parts, which XLA fuses with the products where it does not fuse the whole.
    """
    inner, columns = matrix.shape
    products = x.reshape(-1, 1).astype(jnp.float32) * matrix.astype(jnp.float32)
    if columns < WIDE:
        products = products.reshape(-1, math.gcd(inner, PART), columns).sum(axis=1)
        products = jax.lax.optimization_barrier(products)  # XLA would make one sum of two again
    return products.sum(axis=0).reshape(*x.shape[:-1], columns)


row_matmul = _single(repeated)
"""Of a single row with a matrix as it lies."""

row_matmul_transposed = _single(matmul)
"""Of a single row with a transposed matrix: on a CPU a bf16 one is converted for several rows, and not for one."""
