"""Parameters: one declaration gives every leaf its shape and its initialisation, and the loader its checklist."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.dtypes import floating
from kamera_jax.handle import traced
from models.errors import ParamsError, few

Params = dict[str, Any]
"""Nested dict of arrays; layers of a stack are stacked on a leading axis."""


AXES = {
    "layers": "layers of a stack",
    "embed": "the residual stream, of the language model or of a tower",
    "vocab": "words",
    "heads": "query heads, side by side with their dims",
    "kv_heads": "heads of keys and values, side by side with their dims",
    "qkv": "queries, keys and values in one matrix, one after the other",
    "q_latent": "the latent of an MLA's queries",
    "kv_latent": "the latent of an MLA's keys and values, and the key that is rotated",
    "mlp": "the inner width of an MLP, or of one expert",
    "experts": "routed experts",
    "router": "scores of the experts",
    "norm": "the scale or offset of a norm",
    "pixels": "values of a patch of an image",
    "positions": "learned positions of a tower",
    "rows": "rows of a grid of learned positions",
    "columns": "columns of a grid of learned positions",
}
"""Logical axes, by role: what each name stands for. `models.blocks.sharding` maps them to the axes of a mesh."""


@dataclass(frozen=True)
class ParamInfo:
    """Declares one parameter leaf: its shape, how training starts it, and what its axes are.

    ``fan_in`` leaves are normal with variance 1/fan_in, the contraction being over the second-to-last axis. A leaf with
    a ``dtype`` has it whatever the model's. ``axes`` are names in `AXES`, one for each axis, or None for an axis that
    has no role; left out, no axis has one. ``heads`` is the number of heads side by side on its axis ``heads`` or
    ``kv_heads``, which a mesh then splits between heads only.
    """

    shape: tuple[int, ...]
    init: Literal["fan_in", "zeros", "ones", "embedding"] = "fan_in"
    dtype: str | None = None
    axes: tuple[str | None, ...] = ()
    heads: int | None = None

    def __post_init__(self) -> None:
        if not self.axes:
            object.__setattr__(self, "axes", (None,) * len(self.shape))
        elif len(self.axes) != len(self.shape) or not {*self.axes} <= {*AXES, None}:
            raise ValueError(
                f"a parameter of shape {list(self.shape)} has the axes {list(self.axes)}; expected one name for each "
                f"axis, of {', '.join(AXES)}"
            )


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
                return _normal(key, info.shape, kind, 0.5)
            case "fan_in":
                return _normal(key, info.shape, kind, info.shape[-2] ** -0.5)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [init(leaf, k) for leaf, k in zip(leaves, keys, strict=True)])


FEW = 2**16
"""Values: leaves of no more are drawn by programs that leaves of other shapes share."""


def _normal(key: jax.Array, shape: tuple[int, ...], kind: np.dtype, scale: float) -> jax.Array:
    count = math.prod(shape)
    if not 0 < count <= FEW or traced(key):
        return jax.random.normal(key, shape, kind) * scale
    # JAX draws a value by its place in the whole, so these are the values that the shape itself would be given.
    drawn = jax.random.normal(key, (1 << (count - 1).bit_length(),), kind) * scale
    return jnp.asarray(np.asarray(drawn)[:count].reshape(shape))


def check_params(declaration: Params, params: Params) -> np.dtype:
    """The dtype of parameters, which must be as declared.

    Raises:
        ParamsError: a leaf is missing, unexpected or of another shape, or they are not of one dtype.
        DtypeError: of a dtype that parameters cannot have.
    """
    infos = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(declaration, is_leaf=is_info)
    }
    given = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    missing = infos.keys() - given.keys()
    unknown = given.keys() - infos.keys()
    if missing or unknown:
        raise ParamsError(
            f"the parameters lack {few(missing)}, and have {few(unknown)} that the model lacks; expected a tree "
            "of the names and shapes of vlm.params"
        )
    dtypes: dict[str, str] = {}
    for name, info in infos.items():
        leaf = given[name]
        if getattr(leaf, "shape", None) != info.shape or not hasattr(leaf, "dtype"):
            got = list(leaf.shape) if hasattr(leaf, "shape") else type(leaf).__name__
            raise ParamsError(f"params{name} is {got}; expected an array of shape {list(info.shape)}")
        kind = floating(leaf.dtype, f"params{name}").name
        if info.dtype is None:
            dtypes.setdefault(kind, name)
        elif kind != jnp.dtype(info.dtype).name:
            raise ParamsError(f"params{name} is {kind}; expected {info.dtype}, whatever the dtype of the others")
    if len(dtypes) != 1:
        given_dtypes = ", ".join(f"{kind} (params{name})" for kind, name in dtypes.items())
        raise ParamsError(f"the parameters are of several dtypes, {given_dtypes}; cast them to one")
    return np.dtype(jnp.dtype(next(iter(dtypes))))


def params_digest(params: Params) -> str:
    """sha256 of all parameters: their names, dtypes, shapes and bytes.

    Raises:
        ParamsError: they are being traced, and have no values.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if traced(*(leaf for _, leaf in leaves)):
        raise ParamsError("the parameters are being traced and have no values to make a digest of; give revision=")
    whole = hashlib.sha256()
    for path, leaf in leaves:
        array = np.ascontiguousarray(np.asarray(leaf))
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape}\0".encode())
        whole.update(array.view(np.uint8).data)
    return whole.hexdigest()


def stacked(layers: int, declaration: Params) -> Params:
    """The declaration of ``layers`` equal layers, stacked on a leading axis."""

    def over(info: ParamInfo) -> ParamInfo:
        return replace(info, shape=(layers, *info.shape), axes=("layers", *info.axes))

    return jax.tree.map(over, declaration, is_leaf=is_info)


def linear(
    inputs: int,
    outputs: int,
    *,
    bias: bool = False,
    axes: tuple[str | None, str | None] = (None, None),
    heads: int | None = None,
) -> Params:
    """Declaration of a dense layer: w [inputs, outputs] and optionally b [outputs]; see `ParamInfo` for the rest."""
    layer: Params = {"w": ParamInfo((inputs, outputs), axes=axes, heads=heads)}
    if bias:
        layer["b"] = ParamInfo((outputs,), "zeros", axes=axes[1:], heads=heads)
    return layer


def swiglu_declaration(width: int, inner: int, *, bias: bool = False) -> Params:
    """Declaration of the three dense layers of `models.blocks.layers.swiglu`."""
    return {
        "gate": linear(width, inner, bias=bias, axes=("embed", "mlp")),
        "up": linear(width, inner, bias=bias, axes=("embed", "mlp")),
        "down": linear(inner, width, bias=bias, axes=("mlp", "embed")),
    }
