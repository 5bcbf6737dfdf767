"""Windows by the hundred: the operator's pure functions, vmapped over episodes whose chunks share their shapes.

Everything here takes and returns arrays with a leading axis of E episodes; chunks of one place in the window are
stacked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from kamera_jax import patch
from kamera_jax.backbone import Backbone, Output
from kamera_jax.batch.devices import replicated, spread
from kamera_jax.chunk import Chunk
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import KV, Factors, Segment, WindowState
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params
from kamera_jax.window.reuse import write, write_jit
from kamera_jax.window.window import aligned

AT_ONCE = 10
"""Episodes in one vectorised step: enough to fill the cores, few enough for their attention to stay in cache."""


@dataclass(frozen=True)
class Stack:
    """The chunks at one place of E windows.

    Attributes:
        kv: un-rotated KV [E, L, T, ·].
        segment: their inputs, to run them again, leading axis E.
        length, advance: as of `kamera_jax.Chunk`, the same for all.
    """

    kv: KV
    segment: Segment
    length: int
    advance: float

    @staticmethod
    def of(chunks: Sequence[Chunk]) -> "Stack":
        """Stack chunks of equal shape.

        Raises:
            ValueError: their lengths or advances differ.
        """
        if len({(chunk.length, chunk.advance) for chunk in chunks}) != 1:
            raise ValueError("chunks of one place must have the same length and advance")
        segments = [chunk.segment for chunk in chunks]
        return Stack(_stack([c.kv for c in chunks]), _stack(segments), chunks[0].length, chunks[0].advance)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@dataclass(frozen=True)
class Windows:
    """E windows of one layout.

    Attributes:
        state: rotated and patched KV, leading axis E.
        conditioned: un-rotated KV of each chunk as it stands in the window.
        slots: first slot of each chunk.
        position: where the tail starts.
    """

    state: WindowState
    conditioned: tuple[KV, ...]
    slots: tuple[int, ...]
    position: float


class BatchRunner:
    """A builder of E windows at a time, which are then asked together.

    The layout is that of `kamera_jax.Window`: preamble, then chunks at aligned slots.
    """

    def __init__(self, vlm: Backbone, *, capacity: int = 0, mesh: Mesh | None = None) -> None:
        """Compile nothing yet; shapes come with the first call.

        Args:
            vlm: the model.
            capacity: slots of every window, at least; windows of one capacity share what is compiled.
            mesh: devices to spread the episodes over, which must then be a multiple of them.
        """
        self.vlm = vlm
        self.mesh = mesh
        self.capacity = capacity
        self.params = replicated(vlm.params, mesh)
        self._preamble = preamble_chunk(vlm)
        self._heads: dict[int, WindowState] = {}

    @property
    def preamble_length(self) -> int:
        """Tokens of the preamble."""
        return self._preamble.length

    def reuse(self, chunks: Sequence[Stack], factors: Sequence[Factors | None], *, relocated: bool = True) -> Windows:
        """Windows from canonical (or kept) KV, rotated into place and patched: no forward.

        Args:
            chunks: in order.
            factors: a patch for each of them, or None.
            relocated: False leaves keys at the positions they were encoded at, right behind the preamble.
        """
        state, slots, bases, position = self._layout(chunks)
        kvs = []
        for chunk, factor, slot, base in zip(chunks, factors, slots, bases, strict=True):
            segment = chunk.segment.at(base if relocated else self._preamble.advance)
            state = self._write(state, slot, chunk.kv, factor, segment)
            kvs.append(chunk.kv)
        return Windows(state, tuple(kvs), slots, position)

    def prefill(self, chunks: Sequence[Stack]) -> Windows:
        """Windows by full prefill: every chunk is run again and sees those before it."""
        state, slots, bases, position = self._layout(chunks)
        kvs = []
        for chunk, slot, base in zip(chunks, slots, bases, strict=True):
            segment = chunk.segment.at(base)
            kv = _forward(self.params, segment, state, forward=self.vlm.forward, mesh=self.mesh)
            state = self._write(state, slot, kv, None, segment)
            kvs.append(kv)
        return Windows(state, tuple(kvs), slots, position)

    def hide(self, windows: Windows, place: int, length: int) -> Windows:
        """The same windows with one chunk hidden from whatever is asked next."""
        slots = jnp.arange(windows.state.valid.shape[-1])
        seen = (slots < windows.slots[place]) | (slots >= windows.slots[place] + length)
        return replace(windows, state=replace(windows.state, valid=windows.state.valid & seen[None, :]))

    def ask(self, windows: Windows, tails: Segment) -> Float[Array, "E Q V"]:
        """Logits at the first answer token; ``tails`` has leading axes E, Q and local positions."""
        tails = tails.at(windows.position)
        return _ask(self.params, tails, windows.state, forward=self.vlm.forward, mesh=self.mesh)

    def tails(self, questions: Sequence[Sequence[str]]) -> Segment:
        """Tails [E, Q, ·] of questions that fit one bucket."""
        return _stack([_stack([self.vlm.tail(text) for text in episode]) for episode in questions])

    def _write(self, state: WindowState, slot: int, kv: KV, factors: Factors | None, segment: Segment) -> WindowState:
        return _write(state, slot, kv, factors, segment, rope=self.vlm.spec.rope, mesh=self.mesh)

    def _head(self, slots: int) -> WindowState:
        """A window of the preamble alone; made once for each size."""
        if slots not in self._heads:
            head = self._preamble
            spec = self.vlm.spec
            empty = spec.empty_state(slots)
            self._heads[slots] = write_jit(empty, 0, head.kv, None, head.positions, head.length, spec=spec.rope)
        return self._heads[slots]

    def _layout(self, chunks: Sequence[Stack]) -> tuple[WindowState, tuple[int, ...], tuple[float, ...], float]:
        count = chunks[0].kv.rot.shape[0]
        head = self._preamble
        slot = aligned(head.length)
        position = head.advance
        slots = []
        bases = []
        for chunk in chunks:
            slots.append(slot)
            bases.append(position)
            slot = slot + aligned(chunk.length)
            position = position + chunk.advance
        state = self._head(max(slot, self.capacity))
        return (
            jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state),
            tuple(slots),
            tuple(bases),
            position,
        )


@partial(jax.jit, static_argnames=("rope", "mesh"))
def _write(
    state: WindowState,
    slot: Any,
    kv: KV,
    factors: Factors | None,
    segment: Segment,
    *,
    rope: RopeSpec,
    mesh: Mesh | None,
) -> WindowState:
    def one(state: WindowState, slot: Any, kv: KV, factors: Factors | None, segment: Segment) -> WindowState:
        return write(state, slot, kv, factors, segment.positions, segment.length, rope)

    written = jax.vmap(one, in_axes=(0, None, 0, 0, 0))
    return spread(written, mesh, (True, False, True, True, True))(state, slot, kv, factors, segment)


@partial(jax.jit, static_argnames=("forward", "mesh"))
def _forward(
    params: Params, segment: Segment, state: WindowState, *, forward: Callable[..., Output], mesh: Mesh | None
) -> KV:
    def run(params: Params, segment: Segment, state: WindowState) -> KV:
        return jax.lax.map(lambda each: forward(params, *each).kv, (segment, state), batch_size=AT_ONCE)

    return spread(run, mesh, (False, True, True))(params, segment, state)


@partial(jax.jit, static_argnames=("forward", "mesh"))
def _ask(
    params: Params, tails: Segment, state: WindowState, *, forward: Callable[..., Output], mesh: Mesh | None
) -> jax.Array:
    def run(params: Params, tails: Segment, state: WindowState) -> jax.Array:
        def one(tail: Segment, state: WindowState) -> jax.Array:
            logits = forward(params, tail, state, logits_at=tail.length[None] - 1).logits
            assert logits is not None
            return logits[0]

        def episode(asked: tuple[Segment, WindowState]) -> jax.Array:
            return jax.vmap(one, in_axes=(0, None))(*asked)

        return jax.lax.map(episode, (tails, state), batch_size=AT_ONCE)

    return spread(run, mesh, (False, True, True))(params, tails, state)


@partial(jax.jit, static_argnames="rank")
def fit(conditioned: KV, canonical: KV, length: jax.Array | int, *, rank: int) -> Factors:
    """`kamera_jax.patch.fit` over E chunks."""
    return jax.vmap(lambda a, b: patch.fit(a, b, length, rank))(conditioned, canonical)
