"""The jnp reference of relocate_patch, and its ``"xla"`` backend."""

from typing import Literal

import jax
import jax.numpy as jnp

PairLayout = Literal["half", "interleaved"]
PAIR_LAYOUTS: tuple[PairLayout, ...] = ("half", "interleaved")


def partner(x: jax.Array, rotary_dim: int, layout: PairLayout) -> jax.Array:
    """The other member of every rotated pair of the last axis; identity outside the first ``rotary_dim`` entries."""
    rotary, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if layout == "half":
        swapped = jnp.roll(rotary, rotary_dim // 2, axis=-1)
    else:
        swapped = rotary.reshape(*rotary.shape[:-1], -1, 2)[..., ::-1].reshape(rotary.shape)
    return jnp.concatenate([swapped, rest], axis=-1)


def rotate_flat(x: jax.Array, cos: jax.Array, sin: jax.Array, *, rotary_dim: int, layout: PairLayout) -> jax.Array:
    """Rotate flat features [L, T, G*D] by full-width tables [T, D] whose sin carries the sign."""
    heads = x.reshape(*x.shape[:2], -1, cos.shape[-1])
    rotated = heads * cos[None, :, None, :] + partner(heads, rotary_dim, layout) * sin[None, :, None, :]
    return rotated.reshape(x.shape)


def low_rank(u: jax.Array, v: jax.Array, ranks: jax.Array) -> jax.Array:
    """``Uᵀ V`` in f32 over the first ``ranks[l]`` components of each layer: u [L, m, T], v [L, m, F] -> [L, T, F]."""
    used = jnp.arange(u.shape[1])[None, :, None] < ranks[:, None, None]
    # Both sides: what lies past a layer's rank is not read, and 0 * nan would be.
    u, v = (jnp.where(used, factor.astype(jnp.float32), 0.0) for factor in (u, v))
    return jnp.einsum("lmt,lmf->ltf", u, v, precision="highest")


def relocate_patch_reference(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    length: jax.Array,
    *,
    rotary_dim: int,
    layout: PairLayout,
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`; every argument is already checked."""
    new_rot, new_free = rot.astype(jnp.float32), free.astype(jnp.float32)
    if u is not None and v is not None and ranks is not None:
        delta = low_rank(u, v, ranks)
        new_rot = new_rot + delta[..., : rot.shape[-1]]
        new_free = new_free + delta[..., rot.shape[-1] :]
    new_rot = rotate_flat(new_rot, cos, sin, rotary_dim=rotary_dim, layout=layout)
    valid = (jnp.arange(rot.shape[1]) < length)[None, :, None]
    return jnp.where(valid, new_rot, 0.0).astype(rot.dtype), jnp.where(valid, new_free, 0.0).astype(free.dtype)
