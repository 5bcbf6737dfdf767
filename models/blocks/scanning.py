"""Layers out of a stack and into one: of bf16, a CPU moves them as bits.

To cut a layer out of a stack of bf16, or to write one into it, XLA on a CPU converts all of the stack to f32, once a
program to read and back again for every layer that is written. Of whole numbers it moves the layer alone. For other
backends, and in other dtypes, the functions here are those of JAX.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.bits import bits_of, index_bits, is_bf16, of_bits


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """As ``jax.lax.scan(step, carry, xs)``: the same results and derivatives.

    Args:
        step: from the carry and a slice of each array of ``xs`` to the carry and what is stacked.
        carry: the first one.
        xs: arrays, all with the same leading axis.
    """
    stacks, structure = jax.tree.flatten(xs)

    def stepped(carry: Any, scanned: tuple[list[jax.Array], jax.Array]) -> tuple[Any, Any]:
        own, index = scanned
        leaves = [_cut(leaf, stack, index) for leaf, stack in zip(own, stacks, strict=True)]
        carry, outputs = step(carry, jax.tree.unflatten(structure, leaves))
        return carry, (outputs, [bits_of(leaf) for leaf in jax.tree.leaves(outputs) if is_bf16(leaf)])

    numbers = jnp.arange(len(stacks[0]), dtype=jnp.int32)
    carry, (outputs, bits) = jax.lax.scan(stepped, carry, (stacks, numbers))
    written = iter(bits)
    return carry, jax.tree.map(lambda leaf: _on_cpu(of_bits, leaf, next(written)) if is_bf16(leaf) else leaf, outputs)


def layer_of(stack: jax.Array, index: jax.Array) -> jax.Array:
    """``stack[index]``."""
    return _cut(jax.lax.dynamic_index_in_dim(stack, index, keepdims=False), stack, index)


def _cut(leaf: jax.Array, stack: jax.Array, index: jax.Array) -> jax.Array:
    """``leaf``, which is ``stack[index]``."""
    return _on_cpu(index_bits, leaf, stack, index) if is_bf16(leaf) else leaf


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _on_cpu(read: Callable[..., jax.Array], array: jax.Array, *source: jax.Array) -> jax.Array:
    """``array``; on a CPU what ``read`` gives of its source, the same. What is not read is not computed."""
    return jax.lax.platform_dependent(
        array, *source, cpu=lambda array, *source: read(*source), default=lambda array, *source: array
    )


@_on_cpu.defjvp
def _on_cpu_jvp(
    read: Callable[..., jax.Array], primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, Any]:
    return _on_cpu(read, *primals), tangents[0]
