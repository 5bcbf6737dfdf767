"""The layers of a stack as arrays of their own, of the same memory: what decodes a token quickest on a CPU.

XLA copies a layer's weights out of a stack before each product with them on a CPU, which takes as long again as reading
them; that of many tokens hides it, that of one token does not. A program of layers one by one takes longer to compile.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.handle import traced
from models.blocks.params import Params

LEAST_BYTES = 2**20
"""Layers below it stay stacked: they are in the processor's caches, and compiling would take longer than it saves."""

ALIGNMENT = 64
"""Bytes that an array of JAX on a CPU begins at a multiple of."""

_STACKS = ("layers", "moe_layers")

_VIEWS: WeakKeyDictionary[Any, tuple[Params, Params]] = WeakKeyDictionary()
"""Of each model its parameters, and the same with views of their layers."""


def one_by_one(
    layer: Callable[[jax.Array, Any], tuple[jax.Array, Any]], x: jax.Array, scanned: tuple[tuple[Params, ...], Any]
) -> tuple[jax.Array, Any]:
    """``jax.lax.scan`` over layers, of which each is a tree of its own, without a loop."""
    outputs = []
    for weights, index in zip(*scanned, strict=True):
        x, output = layer(x, (weights, index))
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def views(model: Any, params: Params) -> Params:
    """A model's parameters with its layers as arrays of their own, where that pays; else as they are.

    It pays on one CPU for layers of `LEAST_BYTES`. The layers are views of the stacked arrays, kept for as long as the
    model lives; what is deleted is not read through them.
    """
    leaves = jax.tree.leaves(params)
    arrays = all(isinstance(leaf, jax.Array) for leaf in leaves) and not traced(*leaves)
    if not arrays or any(leaf.is_deleted() for leaf in leaves):
        _VIEWS.pop(model, None)
        return params
    known = _VIEWS.get(model)
    if known is None or known[0] is not params:
        known = _VIEWS[model] = (params, unstacked(params, LEAST_BYTES))
    return known[1]


def unstacked(params: Params, least: int) -> Params:
    """The parameters with the layers of their stacks as a tuple of one tree for each, or as they are.

    Args:
        params: of a model, its language model's under ``"text"``.
        least: bytes of a layer from which on it is done.
    """
    text = params["text"]
    stacks = {name: text[name] for name in _STACKS if name in text}
    if not all(_pays(stack, least) for stack in stacks.values()):
        return params
    return {**params, "text": {**text, **{name: _layers(stack) for name, stack in stacks.items()}}}


def _pays(stack: Params, least: int) -> bool:
    """Whether a stack's layers lie on one CPU, are large, and can be read where they lie but for a small part."""
    leaves = jax.tree.leaves(stack)
    if any(len(leaf.devices()) > 1 or next(iter(leaf.devices())).platform != "cpu" for leaf in leaves):
        return False
    each = [leaf.nbytes // leaf.shape[0] for leaf in leaves]
    apart = sum(size for size in each if size % ALIGNMENT)
    return sum(each) >= least and apart <= sum(each) // 64


def _layers(stack: Params) -> tuple[Params, ...]:
    """A stack's layers, each a tree of arrays in the memory of the stacked ones."""
    leaves, structure = jax.tree.flatten(stack)
    cut = []
    for leaf in leaves:
        (device,) = leaf.devices()
        cut.append([jax.device_put(layer, device, may_alias=True) for layer in np.asarray(leaf)])
    return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*cut, strict=True))
