"""Weights stored as int8, for one device: a scale for each output channel, dequantised within the product.

Stored so are the matrices of the language model: every dense layer of its decoder layers, their experts, the head, and
the embeddings (a scale for each word, which is the head's output channel where the two are one). Norms, biases, routers
and the towers of media stay as they are. A whole number of up to 127 is exact in every dtype that activations have, so
products are those of the dtype, accumulated in f32, and then scaled.
"""

from functools import partial
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from kamera_jax.int8 import quantised, restored
from models.blocks.one_row import Product, matmul, row_matmul, row_matmul_transposed

SCHEME = "int8, a scale for each output channel, version 1"
"""What is part of a model's fingerprint."""

_WORDS = "text/embed/w"
_KEPT = ("router",)


@no_type_check  # pytrees are rebuilt with whatever a transformation puts in the leaves
@flax.struct.dataclass(eq=False)
class Int8Weight:
    """A weight [..., I, O] as int8.

    Attributes:
        codes: whole numbers, int8[..., I, O].
        scale: what each output channel is multiplied by, f32[..., 1, O]; of embeddings f32[..., I, 1], by word.
        dtype: of the weight that it stands for; not traced.
    """

    codes: Int8[Array, "..."]
    scale: Float[Array, "..."]
    dtype: Any = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.codes.shape


Weight = jax.Array | Int8Weight
"""A weight as it is stored."""


def floats(weight: Weight) -> jax.Array:
    """The weight in its dtype."""
    if not isinstance(weight, Int8Weight):
        return weight
    return restored(weight.codes.astype(jnp.float32), weight.scale, weight.dtype)


def product(x: Float[Array, "... I"], weight: Weight, of_one: Product = row_matmul) -> Float[Array, "... O"]:
    """``x @ weight`` in f32, of one row by ``of_one``: of int8 the codes are multiplied, and then scaled."""
    multiplied = of_one if x.size == x.shape[-1] else matmul
    if not isinstance(weight, Int8Weight):
        return multiplied(x, weight)
    y = multiplied(x, weight.codes)
    return y * weight.scale.reshape((1,) * (y.ndim - 1) + (-1,))


def rows(weight: Weight, index: jax.Array) -> jax.Array:
    """Rows of embeddings, in the weight's dtype."""
    if not isinstance(weight, Int8Weight):
        return weight[index]
    return restored(weight.codes[index].astype(jnp.float32), weight.scale[index], weight.dtype)


def tied_logits(words: Weight, hidden: Float[Array, "n E"]) -> Float[Array, "n V"]:
    """Logits f32 of embeddings that are the head too."""
    if isinstance(words, Int8Weight):
        return product(hidden, Int8Weight(words.codes.T, words.scale.T, words.dtype), row_matmul_transposed)
    return product(hidden, words.T, row_matmul_transposed).astype(hidden.dtype).astype(jnp.float32)


def stored(path: str, leaf: jax.Array) -> Weight:
    """A parameter as it is stored: a matrix of the language model as int8, and anything else as it is.

    Args:
        path: keys of the parameter, joined by ``/``.
        leaf: on its device, with the layers of a stack on the leading axis.
    """
    place = path.split("/")
    if place[0] != "text" or any(name in _KEPT for name in place):
        return leaf
    stacked = place[1] in ("layers", "moe_layers")
    if leaf.ndim - stacked < 2:
        return leaf
    return _quantised(leaf, axis=-1 if path == _WORDS else -2)


@partial(jax.jit, static_argnames="axis")
def _quantised(leaf: jax.Array, *, axis: int) -> Int8Weight:
    codes, scale = quantised(leaf, axis)
    return Int8Weight(codes, scale, leaf.dtype)
