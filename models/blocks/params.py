"""Parameters: one declaration gives every leaf its shape and its initialisation, and the loader its checklist."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kamera_jax.dtypes import floating

Params = dict[str, Any]
"""Nested dict of arrays; layers of a stack are stacked on a leading axis."""


@dataclass(frozen=True)
class ParamInfo:
    """Declares one parameter leaf: its shape, and how training starts it.

    ``fan_in`` leaves are normal with variance 1/fan_in, the contraction being over the second-to-last axis. A leaf with
    a ``dtype`` has it whatever the model's.
    """

    shape: tuple[int, ...]
    init: Literal["fan_in", "zeros", "ones", "embedding"] = "fan_in"
    dtype: str | None = None


def is_info(leaf: Any) -> bool:
    """Whether a pytree node is a declaration."""
    return isinstance(leaf, ParamInfo)


def init_params(declaration: Params, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters of a declaration, for training from scratch.

    Raises:
        DtypeError: parameters cannot have the dtype.
    """
    dtype = floating(dtype)
    leaves, treedef = jax.tree.flatten(declaration, is_leaf=is_info)

    def init(info: ParamInfo, key: jax.Array) -> jax.Array:
        kind = dtype if info.dtype is None else jnp.dtype(info.dtype)
        match info.init:
            case "zeros":
                return jnp.zeros(info.shape, kind)
            case "ones":
                return jnp.ones(info.shape, kind)
            case "embedding":
                return jax.random.normal(key, info.shape, kind) * 0.5
            case "fan_in":
                return jax.random.normal(key, info.shape, kind) * info.shape[-2] ** -0.5

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [init(leaf, k) for leaf, k in zip(leaves, keys, strict=True)])


def stacked(layers: int, declaration: Params) -> Params:
    """The declaration of ``layers`` equal layers, stacked on a leading axis."""
    return jax.tree.map(lambda info: replace(info, shape=(layers, *info.shape)), declaration, is_leaf=is_info)


def linear(inputs: int, outputs: int, *, bias: bool = False) -> Params:
    """Declaration of a dense layer: w [inputs, outputs] and optionally b [outputs]."""
    layer: Params = {"w": ParamInfo((inputs, outputs))}
    if bias:
        layer["b"] = ParamInfo((outputs,), "zeros")
    return layer
