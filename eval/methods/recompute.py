"""Recompute some tokens of filled windows, and keep the KV of the others.

The tokens are run again in one forward. Each attends to the slots below its own: to the KV that is written there where
a token is kept, and to fresh KV where it is recomputed. The fresh KV then replaces the old. Methods that recompute
tokens differ in the tokens they choose.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from eval.methods.base import Batch
from kamera_jax.backbone import Output, with_defaults
from kamera_jax.batch.devices import spread
from kamera_jax.batch.windows import AT_ONCE, Windows
from kamera_jax.kv import Segment, WindowState, bucket
from kamera_jax.placement import Placement
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params
from kamera_jax.window.reuse import relocate


@dataclass(frozen=True)
class Selection:
    """The tokens to recompute.

    Attributes:
        slots: the slots of each context, ascending, i32[E, K]; equally many in all contexts of a batch.
        layers: layers in which a token's fresh KV is kept, bool[L, K]; all by default. In the other layers recomputed
            tokens at higher slots still attend to its fresh KV.
    """

    slots: Int[Array, "E K"]
    layers: Bool[np.ndarray, "L K"] | None = None


def recompute(batch: Batch, windows: Windows, selection: Selection) -> Windows:
    """The windows with the KV of the selected tokens replaced by what one forward on the windows gives.

    Raises:
        ValueError: the model cannot run tokens at slots inside a window.
    """
    vlm = batch.runner.vlm
    count = selection.slots.shape[1]
    if not with_defaults(vlm).fills_slots:
        raise ValueError(
            f"{type(vlm).__name__} does not say fills_slots = True, so its forward may not read a segment's slots, as "
            "recomputing single tokens takes; see kamera_jax.backbone.BackboneBase"
        )
    if not count:
        return windows
    capacity = windows.state.valid.shape[1]
    padding = bucket(count) - count
    slots = jnp.pad(selection.slots.astype(jnp.int32), ((0, 0), (0, padding)), constant_values=capacity)
    layers = np.ones((vlm.spec.layers, count), bool) if selection.layers is None else selection.layers
    state = _recompute(
        batch.runner.params,
        batch.inputs,
        windows.state,
        slots,
        jnp.asarray(np.pad(layers, ((0, 0), (0, padding)))),
        jnp.int32(count),
        forward=vlm.forward,
        rope=vlm.spec.rope,
        mesh=batch.runner.mesh,
        placement=with_defaults(vlm).placement,
    )
    return replace(windows, state=state)


@partial(jax.jit, static_argnames=("forward", "rope", "mesh", "placement"))
def _recompute(
    params: Params,
    inputs: dict[str, jax.Array],
    state: WindowState,
    slots: jax.Array,
    layers: jax.Array,
    count: jax.Array,
    *,
    forward: Callable[..., Output],
    rope: RopeSpec,
    mesh: Mesh | None,
    placement: Placement | None,
) -> WindowState:
    def run(params: Params, inputs: Any, state: Any, slots: Any, layers: Any, count: Any) -> WindowState:
        def one(each: tuple[dict[str, jax.Array], WindowState, jax.Array]) -> WindowState:
            inputs, state, slots = each
            rows = jax.tree.map(lambda leaf: jnp.take(leaf, slots, axis=0, mode="fill", fill_value=0), inputs)
            positions = jnp.take(state.positions, slots, axis=1, mode="fill", fill_value=0.0)
            at = (
                jnp.arange(state.valid.shape[0], dtype=jnp.int32)[:, None] == slots[None, :]
            )  # gathers are fast where scatters are not
            hidden = replace(state, valid=state.valid & ~at.any(-1))
            kv = forward(params, Segment({**rows, "slots": slots}, positions, count), hidden).kv
            rot, free = relocate(kv, None, positions, count, rope, placement=placement)
            return replace(state, rot=_put(state.rot, rot, at, layers), free=_put(state.free, free, at, layers))

        return jax.lax.map(one, (inputs, state, slots), batch_size=AT_ONCE)

    return spread(run, mesh, (False, True, True, True, False, False))(params, inputs, state, slots, layers, count)


def _put(rows: jax.Array, fresh: jax.Array, at: jax.Array, layers: jax.Array) -> jax.Array:
    """Rows [L, S, F] with fresh ones [L, K, F] where ``at`` [S, K] says, in layers that keep them [L, K]."""
    source = at.argmax(-1)
    hit = at.any(-1)
    kept = hit[None, :] & layers[:, source]
    return jnp.where(kept[..., None], fresh[:, source], rows)


@jax.jit
def deviation(state: WindowState, other: WindowState) -> jax.Array:
    """Squared difference of two windows' KV, by context, layer and slot, f32[E, L, S]."""
    total = jnp.float32(0.0)
    for ours, theirs in ((state.rot, other.rot), (state.free, other.free)):
        total += jnp.square(ours.astype(jnp.float32) - theirs.astype(jnp.float32)).sum(-1)
    return total


@partial(jax.jit, static_argnames=("layers", "count"))
def most_deviating(
    state: WindowState, other: WindowState, slots: Int[Array, " n"], *, layers: tuple[int, int], count: int
) -> Int[Array, "E K"]:
    """Of each context, the ``count`` of these slots where two windows differ most in some layers; ascending."""
    first, end = layers

    def cut(state: WindowState) -> WindowState:
        return replace(state, rot=state.rot[:, first:end], free=state.free[:, first:end])

    scores = deviation(cut(state), cut(other)).sum(1)
    _, best = jax.lax.top_k(scores[:, slots], count)
    return jnp.sort(slots[best], axis=-1)
