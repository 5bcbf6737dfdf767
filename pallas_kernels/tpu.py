"""What the TPU kernels share: products, output types, and one call for all that `jax.vmap` maps over."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product of matrices in f32; bf16 by bf16 is exact in one pass of the matrix unit, anything else takes six."""
    narrow = a.dtype == b.dtype == jnp.bfloat16
    if not narrow:
        a = a.astype(jnp.float32)
        b = b.astype(jnp.float32)
    precision = jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def batch_of(operands: Any) -> int:
    """B, where every array of a pytree leads with B or with 1."""
    return max(array.shape[0] for array in jax.tree.leaves(operands))


def fold(call: Callable[[T], Any], size: int, is_batched: T, operands: T) -> tuple[Any, Any]:
    """A rule of `jax.custom_batching.custom_vmap` for a call whose operands lead with B or 1: B grows by ``size``.

    Pallas's own vmap of a kernel with prefetched scalars is a loop that copies each element's operands. Here an operand
    that all share keeps its leading 1, and is not copied for the others' sake.

    Args:
        call: of one pytree of operands; its results lead with B.
        size: of the mapped axis, which comes first.
        is_batched: for each operand, whether it has that axis.
        operands: of the call.
    """
    leads = jax.tree.map(lambda array, mapped: array.shape[int(mapped)], operands, is_batched)
    batch = max(jax.tree.leaves(leads))

    def merged(array: jax.Array, mapped: bool) -> jax.Array:
        if not mapped and array.shape[0] == 1:
            return array
        array = array if mapped else array[None]
        return jnp.broadcast_to(array, (size, batch, *array.shape[2:])).reshape(size * batch, *array.shape[2:])

    results = call(jax.tree.map(merged, operands, is_batched))
    split = jax.tree.map(lambda x: x.reshape(size, batch, *x.shape[1:]), results)
    return split, jax.tree.map(lambda _: True, split)


def varying(shape: tuple[int, ...], dtype: Any, operands: Any) -> jax.ShapeDtypeStruct:
    """The type of an output, varying over the mesh axes (of `jax.shard_map`) that any operand varies over."""
    axes = [jax.typeof(x).manual_axis_type for x in jax.tree.leaves(operands)]
    union = frozenset().union(*(x.varying for x in axes))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes[0].update(varying=union))
