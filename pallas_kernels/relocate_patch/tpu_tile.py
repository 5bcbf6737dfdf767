"""What the TPU kernels of relocate_patch do to a block in VMEM: patch it, rotate it, and hand on f32 values.

A block has rot and free of some tokens of a layer (and of some heads, where wide layers are cut), the cos and sin of
those tokens, and the factors. Work goes a register's width of features at a time, so that f32 values stay in registers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.limits import LANES
from pallas_kernels.relocate_patch.tpu_plan import STEP, Plan
from pallas_kernels.tpu import dot

Put = Callable[[slice, jax.Array], None]
"""Takes f32 values of some features: [tokens, features], or transposed."""


@dataclass(frozen=True)
class Block:
    """Refs to what a grid step has in VMEM.

    Attributes:
        cos, sin: [tokens, period], or [D, tokens] where rot is transposed.
        rot: [tokens, Fr / groups], or [Fr, tokens].
        free: [tokens, Ff / groups], or [Ff, tokens].
        patch: u [m, tokens], and v for rot and free together, or one for each of them; empty without a patch.
        rank: components this layer uses, a scalar; None without a patch.
    """

    cos: Any
    sin: Any
    rot: Any
    free: Any
    patch: tuple[Any, ...]
    rank: jax.Array | None


def swap(x: jax.Array, plan: Plan, axis: int) -> jax.Array:
    """The other member of every rotated pair along ``axis``, which holds whole heads; zero where nothing rotates."""
    shift = plan.rotary_dim // 2 if plan.layout == "half" else 1
    width = x.shape[axis]
    if 2 * shift == width:
        return pltpu.roll(x, shift, axis)
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    in_head = jax.lax.rem(place, plan.head_dim)
    first = jax.lax.rem(in_head, 2 * shift) < shift
    swapped = jnp.where(first, pltpu.roll(x, width - shift, axis), pltpu.roll(x, shift, axis))
    return swapped if plan.rotary_dim == plan.head_dim else jnp.where(in_head < plan.rotary_dim, swapped, 0.0)


def patched(x: jax.Array, u: Any, v: Any, columns: slice, rank: jax.Array, flip: bool) -> jax.Array:
    """``x + (Uᵀ V)[:, columns]`` (transposed if ``flip``) in f32; components at or past ``rank`` count as zero."""
    step = min(u.shape[0], STEP)
    exact = u.dtype == v.dtype == jnp.bfloat16  # a product of two bf16 is exact in the f32 it is summed in

    def add(index: jax.Array | int, total: jax.Array) -> jax.Array:
        rows = pl.ds(index * step, step)
        component = jax.lax.broadcasted_iota(jnp.int32, (step, 1), 0) + index * step

        def read(values: jax.Array) -> jax.Array:
            # Both factors are masked: past the rank either may be nan, and 0 * nan is nan.
            kept = jnp.where(component < rank, values.astype(jnp.float32), 0.0)
            return kept.astype(jnp.bfloat16) if exact else kept

        left = read(u[rows, :])
        right = read(v[rows, columns])
        return total + (dot(right, left, (0, 0)) if flip else dot(left, right, (0, 0)))

    if u.shape[0] == step:
        return add(0, x)
    return jax.lax.fori_loop(0, pl.cdiv(rank, step), add, x)


def work(plan: Plan, block: Block, put_rot: Put, put_free: Put) -> None:
    """Rotate and patch a block, giving f32 values a register's width (or a head's height) of features at a time."""
    if block.rank is None:
        return _work(plan, block, False, put_rot, put_free)
    # A layer of rank 0 does not pay for a product with zeros; its factors were not even fetched.
    pl.when(block.rank > 0)(functools.partial(_work, plan, block, True, put_rot, put_free))
    pl.when(block.rank <= 0)(functools.partial(_work, plan, block, False, put_rot, put_free))


def _work(plan: Plan, block: Block, with_patch: bool, put_rot: Put, put_free: Put) -> None:
    rot_width = block.rot.shape[0 if plan.rot_transposed else 1]
    free_width = block.free.shape[0 if plan.free_transposed else 1]

    def values(array: Any, features: slice, flip: bool, part: int) -> jax.Array:
        x = array[features, :] if flip else array[:, features]
        x = x.astype(jnp.float32)
        if not with_patch or block.rank is None:
            return x
        u, *v = block.patch
        # One v holds the columns of rot and then those of free; where blocks can be cut, each has its own.
        offset = rot_width if part and len(v) == 1 else 0
        columns = slice(features.start + offset, features.stop + offset)
        return patched(x, u, v[part if len(v) == 2 else 0], columns, block.rank, flip)

    # Patched first, then rotated: the patch was fitted to un-rotated keys.
    flip = plan.rot_transposed
    width = plan.head_dim if flip else plan.period
    for start in range(0, rot_width, width):
        features = slice(start, start + width)
        x = values(block.rot, features, flip, 0)
        put_rot(features, x * block.cos[...] + swap(x, plan, 0 if flip else 1) * block.sin[...])
    for start in range(0, free_width, LANES):
        features = slice(start, min(start + LANES, free_width))
        put_free(features, values(block.free, features, plan.free_transposed, 1))
