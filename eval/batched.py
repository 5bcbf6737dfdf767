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
from jaxtyping import Array, Float

from kamera_jax import Chunk, patch
from kamera_jax.backbone import Backbone, Output
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import KV, Factors, Segment, WindowState
from kamera_jax.reuse import write
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params
from kamera_jax.window import aligned

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
    """Builds and asks E windows at a time.

    The layout is that of `kamera_jax.Window`: preamble, then chunks at aligned slots.
    """

    def __init__(self, vlm: Backbone, *, capacity: int = 0) -> None:
        """Compile nothing yet; shapes come with the first call.

        Args:
            vlm: the model.
            capacity: slots of every window, at least; windows of one capacity share what is compiled.
        """
        self.vlm = vlm
        self._capacity = capacity
        self._preamble = preamble_chunk(vlm)

    def reuse(self, chunks: Sequence[Stack], factors: Sequence[Factors | None]) -> Windows:
        """Windows from canonical (or kept) KV, rotated into place and patched: no forward."""
        state, slots, bases, position = self._layout(chunks)
        kvs = []
        for chunk, factor, slot, base in zip(chunks, factors, slots, bases, strict=True):
            state = _write(state, slot, chunk.kv, factor, chunk.segment.at(base), rope=self.vlm.spec.rope)
            kvs.append(chunk.kv)
        return Windows(state, tuple(kvs), slots, position)

    def prefill(self, chunks: Sequence[Stack]) -> Windows:
        """Windows by full prefill: every chunk is run again and sees those before it."""
        state, slots, bases, position = self._layout(chunks)
        kvs = []
        for chunk, slot, base in zip(chunks, slots, bases, strict=True):
            segment = chunk.segment.at(base)
            kv = _forward(self.vlm.params, segment, state, forward=self.vlm.forward)
            state = _write(state, slot, kv, None, segment, rope=self.vlm.spec.rope)
            kvs.append(kv)
        return Windows(state, tuple(kvs), slots, position)

    def hide(self, windows: Windows, place: int, length: int) -> Windows:
        """The same windows with one chunk hidden from whatever is asked next."""
        slots = jnp.arange(windows.state.valid.shape[-1])
        seen = (slots < windows.slots[place]) | (slots >= windows.slots[place] + length)
        return replace(windows, state=replace(windows.state, valid=windows.state.valid & seen[None, :]))

    def ask(self, windows: Windows, tails: Segment) -> Float[Array, "E Q V"]:
        """Logits at the first answer token; ``tails`` has leading axes E, Q and local positions."""
        return _ask(self.vlm.params, tails.at(windows.position), windows.state, forward=self.vlm.forward)

    def tails(self, questions: Sequence[Sequence[str]]) -> Segment:
        """Tails [E, Q, ·] of questions that fit one bucket."""
        return _stack([_stack([self.vlm.tail(text) for text in episode]) for episode in questions])

    def _layout(self, chunks: Sequence[Stack]) -> tuple[WindowState, tuple[int, ...], tuple[float, ...], float]:
        count = chunks[0].kv.rot.shape[0]
        head, spec = self._preamble, self.vlm.spec
        slot, position, slots, bases = aligned(head.length), head.advance, [], []
        for chunk in chunks:
            slots.append(slot)
            bases.append(position)
            slot, position = slot + aligned(chunk.length), position + chunk.advance
        state = write(
            spec.empty_state(max(slot, self._capacity)), 0, head.kv, None, head.positions, head.length, spec.rope
        )
        return (
            jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state),
            tuple(slots),
            tuple(bases),
            position,
        )


@partial(jax.jit, static_argnames="rope")
def _write(
    state: WindowState, slot: Any, kv: KV, factors: Factors | None, segment: Segment, *, rope: RopeSpec
) -> WindowState:
    def one(state: WindowState, kv: KV, factors: Factors | None, segment: Segment) -> WindowState:
        return write(state, slot, kv, factors, segment.positions, segment.length, rope)

    return jax.vmap(one)(state, kv, factors, segment)


@partial(jax.jit, static_argnames="forward")
def _forward(params: Params, segment: Segment, state: WindowState, *, forward: Callable[..., Output]) -> KV:
    return jax.lax.map(lambda run: forward(params, *run).kv, (segment, state), batch_size=AT_ONCE)


@partial(jax.jit, static_argnames="forward")
def _ask(params: Params, tails: Segment, state: WindowState, *, forward: Callable[..., Output]) -> jax.Array:
    def one(tail: Segment, state: WindowState) -> jax.Array:
        logits = forward(params, tail, state, logits_at=tail.length[None] - 1).logits
        assert logits is not None
        return logits[0]

    def episode(asked: tuple[Segment, WindowState]) -> jax.Array:
        return jax.vmap(one, in_axes=(0, None))(*asked)

    return jax.lax.map(episode, (tails, state), batch_size=AT_ONCE)


@partial(jax.jit, static_argnames="rank")
def fit(conditioned: KV, canonical: KV, length: jax.Array | int, *, rank: int) -> Factors:
    """`kamera_jax.patch.fit` over E chunks."""
    return jax.vmap(lambda a, b: patch.fit(a, b, length, rank))(conditioned, canonical)
