"""Blocks shared by the backbones: plain functions of (parameters, activations)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax import rope
from models.blocks.int8 import product
from models.blocks.params import Params


def rms_norm(x: Float[Array, "... E"], weight: Float[Array, " E"], eps: float) -> Float[Array, "... E"]:
    """RMSNorm in f32, scaled after the cast back (HF ``Qwen2RMSNorm``)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def dense(layer: Params, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
    """``x @ w (+ b)``, rounded once to the dtype of ``x``; see `models.blocks.int8` for a ``w`` that is stored so."""
    y = product(x, layer["w"])
    if "b" in layer:
        y = y + layer["b"].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + layer["b"].shape)
    return y.astype(x.dtype)


def swiglu(layer: Params, x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """``down(silu(gate(x)) * up(x))``."""
    return dense(layer["down"], jax.nn.silu(dense(layer["gate"], x)) * dense(layer["up"], x))


def rotation(spec: rope.RopeSpec, positions: Float[Array, "A T"]) -> Callable[..., jax.Array]:
    """What rotates heads [T, H, D] to the positions, f32 inside: `kamera_jax.rope.rotate` with its tables made once.

    It takes the index of their layer as a keyword, for a spec with layers that are not rotated.
    """
    rotated = rope.tables(spec, positions)

    def rotate(x: jax.Array, *, layer: jax.Array | int | None = None) -> jax.Array:
        cos, sin = rotated
        if spec.unrotated and layer is not None:
            turned = spec.turned(layer)
            cos = jnp.where(turned, cos, 1.0)
            sin = jnp.where(turned, sin, 0.0)
        wide = x.astype(jnp.float32).reshape(1, x.shape[0], -1)
        turned = rope.rotate_flat(wide, cos, sin, rotary_dim=spec.rotary_dim, layout=spec.layout)
        return turned.reshape(x.shape).astype(x.dtype)

    return rotate
