"""The reuse operator on a window's state: rotate canonical KV into place, patch it, write it.

The only door to the kernels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax import rope
from kamera_jax.kv import KV, Factors, WindowState
from kamera_jax.rope import RopeSpec
from pallas_kernels import relocate_patch
from pallas_kernels.dispatch import Implementation


def relocate(
    kv: KV,
    factors: Factors | None,
    positions: Float[Array, "A T"],
    length: jax.Array | int,
    spec: RopeSpec,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "L T Fr"], Float[Array, "L T Ff"]]:
    """KV as attention reads it at absolute ``positions``, one hop from the un-rotated frame.

    Rows past ``length`` are zero.
    """
    cos, sin = rope.tables(spec, positions)
    u, v, ranks = (None, None, None) if factors is None else (factors.u, factors.v, factors.ranks)
    return relocate_patch(
        kv.rot,
        kv.free,
        cos,
        sin,
        u,
        v,
        ranks,
        length=length,
        rotary_dim=spec.rotary_dim,
        layout=spec.layout,
        implementation=implementation,
    )


def write(
    state: WindowState,
    slot: jax.Array | int,
    kv: KV,
    factors: Factors | None,
    positions: Float[Array, "A T"],
    length: jax.Array | int,
    spec: RopeSpec,
) -> WindowState:
    """The state with ``length`` tokens rotated, patched and written from ``slot`` on; other slots keep their values.

    The caller makes sure that ``slot + length`` fits; the padding of the bucket need not.
    """
    rot, free = relocate(kv, factors, positions, length, spec)
    slots, tokens = state.valid.shape[0], min(positions.shape[-1], state.valid.shape[0])
    start = jnp.minimum(slot, slots - tokens)
    shift = slot - start
    rows = jnp.arange(tokens)
    written = (rows >= shift) & (rows < shift + length)

    def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        new = jnp.roll(jax.lax.slice_in_dim(new, 0, tokens, axis=axis), shift, axis=axis)
        before = jax.lax.dynamic_slice_in_dim(old, start, tokens, axis=axis)
        mask = written.reshape([-1 if i == axis else 1 for i in range(old.ndim)])
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(mask, new, before), start, axis=axis)

    return WindowState(
        rot=put(state.rot, rot, 1),
        free=put(state.free, free, 1),
        positions=put(state.positions, positions, 1),
        valid=put(state.valid, jnp.ones((positions.shape[-1],), bool), 0),
    )


write_jit = partial(jax.jit, static_argnames="spec")(write)
write_donated = partial(jax.jit, static_argnames="spec", donate_argnames="state")(write)
