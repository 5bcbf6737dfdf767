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
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from kamera_jax import patch
from kamera_jax.backbone import Backbone, Output, with_defaults
from kamera_jax.batch.devices import replicated, spread
from kamera_jax.chunk import Chunk, source_of
from kamera_jax.compress.codec import NOTHING, Codec, Shape
from kamera_jax.compress.stage import Basis
from kamera_jax.errors import PlacementError
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import KV, Factors, Segment, WindowState
from kamera_jax.patch.size import Size
from kamera_jax.placement import Placement
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params
from kamera_jax.window.checks import check_bias_is_read
from kamera_jax.window.reuse import write, write_jit
from kamera_jax.window.window import aligned

AT_ONCE = 10
"""Episodes in one vectorised step: enough to fill the cores, few enough for their attention to stay in cache."""


Rows = tuple[jax.Array, jax.Array, jax.Array | None]
"""Absolute positions of rows f32[E, A, T], how many are valid, i32[E], and of how many tokens each is, f32[E, T]."""


@dataclass(frozen=True)
class Stack:
    """The chunks at one place of E windows.

    Attributes:
        kv: un-rotated KV [E, L, T, ·], a row for each token that is kept.
        segment: their sources, to run them again, leading axis E.
        length, advance: see `kamera_jax.Chunk`; the same for all.
        positions: of the rows f32[E, A, T]; None where every token of the sources is kept.
        tokens: of each source; None where every one is kept.
        counts: how many tokens each row stands for, f32[E, T]; None where each stands for its own.
    """

    kv: KV
    segment: Segment
    length: int
    advance: float
    positions: Float[Array, "E A T"] | None = None
    tokens: int | None = None
    counts: Float[Array, "E T"] | None = None

    @staticmethod
    def of(chunks: Sequence[Chunk]) -> "Stack":
        """Stack chunks of equal shape.

        Raises:
            ValueError: their lengths or advances differ, or one keeps all its rows and another does not, or rows of
                one stand for several tokens and those of another do not.
            MissingInputsError: one lost its source.
        """
        first = chunks[0]
        sources = [source_of(chunk) for chunk in chunks]
        shapes = {(c.length, c.advance, c.keeps_all_rows, int(s.length)) for c, s in zip(chunks, sources, strict=True)}
        if len(shapes) != 1:
            raise ValueError("chunks of one place must have the same length and advance, and sources of one length")
        kv = _stack([chunk.kv for chunk in chunks])
        each = [chunk.counts for chunk in chunks]
        counts = None if any(own is None for own in each) else _stack(each)
        if counts is None and any(own is not None for own in each):
            raise ValueError("rows of one chunk stand for several tokens, and of another for one each; share all alike")
        if first.keeps_all_rows:
            return Stack(kv, _stack(sources), first.length, first.advance, counts=counts)
        positions = jnp.stack([jnp.asarray(chunk.positions) for chunk in chunks])
        return Stack(kv, _stack(sources), first.length, first.advance, positions, int(sources[0].length), counts)

    def rows_at(self, base: float) -> Rows:
        """The kept rows where the chunks start at position ``base``."""
        own = self.segment.positions if self.positions is None else self.positions
        lengths = self.segment.length if self.tokens is None else jnp.full(len(own), self.length, jnp.int32)
        return own + jnp.asarray(base, jnp.float32), lengths, self.counts


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

        Raises:
            PlacementError: the model lies on a mesh of its own.
        """
        self._placement = with_defaults(vlm).placement
        if self._placement is not None and mesh is not None:
            raise PlacementError(
                f"the model lies on a mesh of its own ({self._placement}), so its episodes are spread over none; leave "
                "mesh out, or load the model on one device"
            )
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

        Raises:
            BackboneError: rows of a chunk stand for several tokens, and the model does not say that it reads that.
        """
        if any(chunk.counts is not None for chunk in chunks):
            check_bias_is_read(self.vlm)
        state, slots, bases, position = self._layout(chunks, [chunk.length for chunk in chunks])
        kvs = []
        for chunk, factor, slot, base in zip(chunks, factors, slots, bases, strict=True):
            rows = chunk.rows_at(base if relocated else self._preamble.advance)
            state = self._write(state, slot, chunk.kv, factor, rows)
            kvs.append(chunk.kv)
        return Windows(state, tuple(kvs), slots, position)

    def prefill(self, chunks: Sequence[Stack]) -> Windows:
        """Windows by full prefill: every chunk is run again and sees those before it."""
        lengths = [chunk.length if chunk.tokens is None else chunk.tokens for chunk in chunks]
        state, slots, bases, position = self._layout(chunks, lengths)
        kvs = []
        for chunk, slot, base in zip(chunks, slots, bases, strict=True):
            segment = chunk.segment.at(base)
            kv = _forward(self.params, segment, state, forward=self.vlm.forward, mesh=self.mesh)
            state = self._write(state, slot, kv, None, (segment.positions, segment.length, None))
            kvs.append(kv)
        return Windows(state, tuple(kvs), slots, position)

    def hide(self, windows: Windows, place: int, length: int) -> Windows:
        """The same windows with one chunk hidden from whatever is asked next."""
        slots = jnp.arange(windows.state.valid.shape[-1], dtype=jnp.int32)
        seen = (slots < windows.slots[place]) | (slots >= windows.slots[place] + length)
        return replace(windows, state=replace(windows.state, valid=windows.state.valid & seen[None, :]))

    def ask(
        self, windows: Windows, tails: Segment, at: Int[Array | np.ndarray, "E Q n"] | None = None
    ) -> Float[Array, "E Q V"] | Float[Array, "E Q n V"]:
        """Logits behind tails, which have leading axes E, Q and local positions.

        Args:
            windows: filled.
            tails: what is run behind them.
            at: tokens of each tail whose next-token logits are wanted; by default the last, without an axis of its own.
        """
        tails = tails.at(windows.position)
        places = tails.length[..., None] - 1 if at is None else jnp.asarray(at, jnp.int32)
        logits = _ask(self.params, tails, places, windows.state, forward=self.vlm.forward, mesh=self.mesh)
        return logits[:, :, 0] if at is None else logits

    def tails(self, questions: Sequence[Sequence[str]]) -> Segment:
        """Tails [E, Q, ·] of questions that fit one bucket."""
        return _stack([_stack([self.vlm.tail(text) for text in episode]) for episode in questions])

    def _write(self, state: WindowState, slot: int, kv: KV, factors: Factors | None, rows: Rows) -> WindowState:
        static = {"rope": self.vlm.spec.rope, "mesh": self.mesh, "placement": self._placement}
        return _write(state, slot, kv, factors, rows, **static)

    def _head(self, slots: int) -> WindowState:
        """A window of the preamble alone; made once for each size."""
        if slots not in self._heads:
            head = self._preamble
            spec = self.vlm.spec
            empty = spec.empty_state(slots)
            given = (empty, 0, head.kv, None, head.positions, head.length)
            self._heads[slots] = write_jit(*given, spec=spec.rope, placement=self._placement)
        return self._heads[slots]

    def _layout(
        self, chunks: Sequence[Stack], lengths: Sequence[int]
    ) -> tuple[WindowState, tuple[int, ...], tuple[float, ...], float]:
        count = chunks[0].kv.rot.shape[0]
        head = self._preamble
        slot = aligned(head.length)
        position = head.advance
        slots = []
        bases = []
        for chunk, length in zip(chunks, lengths, strict=True):
            slots.append(slot)
            bases.append(position)
            slot = slot + aligned(length)
            position = position + chunk.advance
        state = self._head(max(slot, self.capacity))
        return (
            jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state),
            tuple(slots),
            tuple(bases),
            position,
        )


@partial(jax.jit, static_argnames=("rope", "mesh", "placement"))
def _write(
    state: WindowState,
    slot: Any,
    kv: KV,
    factors: Factors | None,
    rows: Rows,
    *,
    rope: RopeSpec,
    mesh: Mesh | None,
    placement: Placement | None,
) -> WindowState:
    def one(state: WindowState, slot: Any, kv: KV, factors: Factors | None, rows: Rows) -> WindowState:
        positions, length, counts = rows
        return write(state, slot, kv, factors, positions, length, rope, placement=placement, counts=counts)

    written = jax.vmap(one, in_axes=(0, None, 0, 0, 0))
    return spread(written, mesh, (True, False, True, True, True))(state, slot, kv, factors, rows)


@partial(jax.jit, static_argnames=("forward", "mesh"))
def _forward(
    params: Params, segment: Segment, state: WindowState, *, forward: Callable[..., Output], mesh: Mesh | None
) -> KV:
    def run(params: Params, segment: Segment, state: WindowState) -> KV:
        return jax.lax.map(lambda each: forward(params, *each).kv, (segment, state), batch_size=AT_ONCE)

    return spread(run, mesh, (False, True, True))(params, segment, state)


@partial(jax.jit, static_argnames=("forward", "mesh"))
def _ask(
    params: Params,
    tails: Segment,
    at: jax.Array,
    state: WindowState,
    *,
    forward: Callable[..., Output],
    mesh: Mesh | None,
) -> jax.Array:
    def run(params: Params, tails: Segment, at: jax.Array, state: WindowState) -> jax.Array:
        def one(tail: Segment, at: jax.Array, state: WindowState) -> jax.Array:
            logits = forward(params, tail, state, logits_at=at).logits
            assert logits is not None
            return logits

        def episode(asked: tuple[Segment, jax.Array, WindowState]) -> jax.Array:
            return jax.vmap(one, in_axes=(0, 0, None))(*asked)

        return jax.lax.map(episode, (tails, at, state), batch_size=AT_ONCE)

    return spread(run, mesh, (False, True, True, True))(params, tails, at, state)


@partial(jax.jit, static_argnames="rank")
def fit(conditioned: KV, canonical: KV, length: jax.Array | int, *, rank: int) -> Factors:
    """`kamera_jax.patch.fit` over E chunks."""
    return jax.vmap(lambda a, b: patch.fit(a, b, length, rank))(conditioned, canonical)


def fit_size(conditioned: KV, canonical: KV, length: int, size: Size) -> Factors:
    """The patches that `kamera_jax.form_patch` makes when it is asked for this size, over E chunks."""

    def own(kv: KV, each: int) -> KV:
        return jax.tree.map(lambda leaf: leaf[each], kv)

    count = canonical.rot.shape[0]
    fitted = [size.fit(own(conditioned, each), own(canonical, each), length).factors for each in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitted)


@partial(jax.jit, static_argnames=("codec", "heads"))
def through(codec: Codec, kv: KV, length: jax.Array | int, heads: int, basis: Basis = NOTHING) -> KV:
    """KV of E chunks [E, L, T, ·] as it comes back from a codec, which is given a model's basis if it needs one."""
    shape = Shape(kv.rot.shape[-1], kv.free.shape[-1], heads, kv.rot.shape[1])

    def one(kv: KV) -> KV:
        return codec.decode(codec.encode(kv, length, heads, basis), length, shape, kv.rot.dtype, basis)

    return jax.vmap(one)(kv)
