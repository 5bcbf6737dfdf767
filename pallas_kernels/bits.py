"""bf16 as whole numbers, as a CPU moves it.

XLA on a CPU converts all of a bf16 array to f32 to cut a slice out of it or to write one, and all of it back; a slice
of whole numbers it moves alone. These functions have no derivative: who uses them gives one.
"""

import jax
import jax.numpy as jnp


def is_bf16(array: jax.Array) -> bool:
    """Whether an array's dtype is bf16."""
    return array.dtype == jnp.bfloat16


def bits_of(array: jax.Array) -> jax.Array:
    """An array of bf16 as uint16."""
    return jax.lax.bitcast_convert_type(array, jnp.uint16)


def of_bits(bits: jax.Array) -> jax.Array:
    """The array of bf16 that `bits_of` gave."""
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def index_bits(stack: jax.Array, index: jax.Array) -> jax.Array:
    """``stack[index]`` of bf16."""
    # Without it XLA writes all of the stack out as bits before a loop that this stands in.
    stack, index = jax.lax.optimization_barrier((stack, index))
    return of_bits(jax.lax.dynamic_index_in_dim(bits_of(stack), index, keepdims=False))
