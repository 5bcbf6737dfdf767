"""cos and sin made within a TPU kernel, and the rotation of a transposed tile of keys by them.

As tables in HBM they would be 4 R bytes a token beside 2 (Fr + Ff) of KV: a quarter more to read for 4 KV heads of 128,
half for 2. Positions are 4 A bytes, and the heads of a step share what is made from them.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.chunk import PairLayout


def cos_sin(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of f32 radians with one range reduction for both, a quarter of the instructions of the generic ones.

    Cody and Waite's reduction to [-pi/4, pi/4], and the polynomials of Cephes. Within 2e-7 up to 1e4 radians, and
    within 4e-6 up to 1e5, where f32 itself tells angles 8e-3 apart.
    """
    turns = jnp.round(angles * (2 / math.pi))
    rest = ((angles - turns * 1.5703125) - turns * 4.837512969970703e-4) - turns * 7.549789954891882e-8
    square = rest * rest
    sin = rest + rest * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4))
    cos = 4.166664568298827e-2 - square * (1.388731625493765e-3 - square * 2.443315711809948e-5)
    cos = 1.0 - square * (0.5 - square * cos)
    quarter = turns.astype(jnp.int32)
    odd = quarter & 1 != 0
    cos, sin = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    return jnp.where((quarter + 1) & 2 != 0, -cos, cos), jnp.where(quarter & 2 != 0, -sin, sin)


def tables(positions: jax.Array, inv_freq: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin [R/2, tokens] (interleaved: [R, tokens]), from positions [A, tokens] and inv_freq with A columns."""
    angles = inv_freq[:, :1] * positions[:1]
    for axis in range(1, positions.shape[0]):
        angles += inv_freq[:, axis : axis + 1] * positions[axis : axis + 1]
    cos, sin = cos_sin(angles)
    return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def rotated(x: jax.Array, cos: jax.Array, sin: jax.Array, layout: PairLayout) -> jax.Array:
    """A head f32[D, tokens] rotated by tables [R/2, tokens] (half) or [R, tokens] (interleaved)."""
    count = cos.shape[0]
    if layout == "half":
        a = x[:count]
        b = x[count : 2 * count]
        rest = x[2 * count :]
        parts = [a * cos - b * sin, b * cos + a * sin]
    else:
        turned = x[:count]
        rest = x[count:]
        even = jax.lax.broadcasted_iota(jnp.int32, turned.shape, 0) % 2 == 0
        partner = jnp.where(even, -pltpu.roll(turned, count - 1, axis=0), pltpu.roll(turned, 1, axis=0))
        parts = [turned * cos + partner * sin]
    return jnp.concatenate([*parts, rest] if rest.shape[0] else parts, axis=0)
