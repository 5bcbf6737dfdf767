"""A change of KV that is measured at a few tokens of a chunk and given to all."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eval.methods.base import Batch, Cost
from eval.methods.recompute import Selection, recompute
from eval.methods.tokens import filled
from kamera_jax import rope
from kamera_jax.batch.windows import Windows
from kamera_jax.kv import WindowState
from kamera_jax.rope import RopeSpec


@dataclass(frozen=True)
class MeanShift:
    """Runs a few tokens of each chunk again, and adds the mean of their KV's change to all others (AgentKVShift).

    The tokens lie evenly over the chunk. Keys change in the frame before rotation, where one shift serves all places.

    Attributes:
        tokens: of each chunk behind the first.
    """

    tokens: int

    def prepare(self, batch: Batch) -> None:
        """Nothing is prepared."""

    def apply(self, batch: Batch, windows: Windows | None, prepared: None) -> Windows:
        """The windows with all tokens shifted, and those that were run again as they came out."""
        windows = filled(batch, windows)
        probes = [self._probes(batch, place) for place in batch.reused]
        slots = jnp.asarray(np.concatenate([np.zeros(0, int), *probes]), jnp.int32)
        fresh = recompute(batch, windows, Selection(jnp.broadcast_to(slots, (batch.count, len(slots)))))
        state = fresh.state
        for place, own in zip(batch.reused, probes, strict=True):
            rest = np.setdiff1d(batch.slots(place), own)
            if not len(rest):  # every token was run again
                continue
            given = (jnp.asarray(own, jnp.int32), jnp.asarray(rest, jnp.int32))
            state = _shifted(state, windows.state, *given, spec=batch.runner.vlm.spec.rope)
        return replace(windows, state=state)

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """The FLOPs of the tokens that are run."""
        counts = [0.0, *(float(len(self._probes(batch, place))) for place in batch.reused)]
        return Cost(computed_tokens=sum(counts), flops=batch.tokens_flops(counts))

    def _probes(self, batch: Batch, place: int) -> np.ndarray:
        slots = batch.slots(place)
        return slots[np.unique(np.linspace(0, len(slots) - 1, min(self.tokens, len(slots))).round().astype(int))]


@partial(jax.jit, static_argnames="spec")
def _shifted(
    fresh: WindowState, stale: WindowState, probes: Int[Array, " n"], rest: Int[Array, " m"], *, spec: RopeSpec
) -> WindowState:
    """Windows [E, ·] with the mean change of some slots added to others."""

    def turned(rows: jax.Array, positions: jax.Array, layer: jax.Array) -> Float[Array, "T F"]:
        heads = rows.reshape(rows.shape[0], -1, spec.head_dim)
        return rope.rotate(heads, positions, spec, layer).reshape(rows.shape)

    def back(rows: jax.Array, positions: jax.Array, layer: jax.Array) -> Float[Array, "T F"]:
        return turned(rows, -positions, layer) / jnp.where(spec.turned(layer), spec.scale**2, 1.0)

    def one(fresh: WindowState, stale: WindowState) -> WindowState:
        layers = jnp.arange(fresh.rot.shape[0], dtype=jnp.int32)
        change = fresh.rot[:, probes].astype(jnp.float32) - stale.rot[:, probes].astype(jnp.float32)
        change = jax.vmap(lambda rows, layer: back(rows, fresh.positions[:, probes], layer))(change, layers)
        mean = jnp.broadcast_to(change.mean(1, keepdims=True), (len(layers), len(rest), change.shape[-1]))
        there = jax.vmap(lambda rows, layer: turned(rows, fresh.positions[:, rest], layer))(mean, layers)
        free = fresh.free[:, probes].astype(jnp.float32) - stale.free[:, probes].astype(jnp.float32)
        return replace(
            fresh,
            rot=fresh.rot.at[:, rest].add(there.astype(fresh.rot.dtype)),
            free=fresh.free.at[:, rest].add(free.mean(1, keepdims=True).astype(fresh.free.dtype)),
        )

    return jax.vmap(one)(fresh, stale)
