"""Windows: ordered chunks behind a pinned preamble. Every operation returns a new window; none runs the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ModelMismatchError, PatchMismatchError, PreambleMismatchError, WindowFullError
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import KVSpec, WindowState
from kamera_jax.reuse import write_donated, write_jit

SLOT_ALIGNMENT = 16
"""Chunks start at multiples of this many slots, so that kernels write whole tiles."""


def aligned(slots: int) -> int:
    """The next slot a chunk may start at."""
    return -(-slots // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


@dataclass(frozen=True)
class Entry:
    """A chunk in a window.

    Attributes:
        chunk: what stands there.
        patch: what was added to it, or None.
        base: the absolute position it starts at.
        slot: the first slot it occupies.
    """

    chunk: Chunk
    patch: Patch | None
    base: float
    slot: int


@dataclass(frozen=True)
class Window:
    """The context a model attends to: preamble, then chunks.

    Attributes:
        state: rotated and patched KV.
        entries: the chunks in order, the preamble not among them.
        spec: what the KV means.
        capacity: slots in all, the preamble's included.
        preamble: what is pinned at slot 0.
    """

    state: WindowState
    entries: tuple[Entry, ...]
    spec: KVSpec
    capacity: int
    preamble: Entry

    @staticmethod
    def empty(vlm: Backbone, capacity: int) -> "Window":
        """A window that holds the preamble alone.

        Raises:
            WindowFullError: the preamble does not fit ``capacity`` slots.
        """
        chunk = preamble_chunk(vlm)
        if chunk.length > capacity:
            raise WindowFullError(
                f"a window of {capacity} slots cannot hold the preamble of {chunk.length} tokens; give it more"
            )
        entry = Entry(chunk, None, base=0.0, slot=0)
        return Window(_put(vlm.spec, vlm.spec.empty_state(capacity), entry), (), vlm.spec, capacity, entry)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, in order."""
        return tuple(entry.chunk.key for entry in self.entries)

    @property
    def next_slot(self) -> int:
        """Where the next chunk is written."""
        last = self.entries[-1] if self.entries else self.preamble
        return aligned(last.slot + last.chunk.length)

    @property
    def next_position(self) -> float:
        """The position the next chunk, or the tail, starts at."""
        last = self.entries[-1] if self.entries else self.preamble
        return last.base + last.chunk.advance

    @property
    def tokens(self) -> int:
        """Valid tokens, the preamble's included."""
        return self.preamble.chunk.length + sum(entry.chunk.length for entry in self.entries)


def _put(spec: KVSpec, state: WindowState, entry: Entry, *, donate: bool = False) -> WindowState:
    chunk, factors = entry.chunk, None if entry.patch is None else entry.patch.factors
    positions = chunk.positions + jnp.float32(entry.base)
    put = write_donated if donate else write_jit
    return put(state, entry.slot, chunk.kv, factors, positions, chunk.length, spec=spec.rope)


def check_room(window: Window, tokens: int) -> None:
    """Raise WindowFullError unless ``tokens`` more fit."""
    free = window.capacity - window.next_slot
    if tokens > free:
        raise WindowFullError(
            f"{tokens} tokens do not fit: the window has {max(free, 0)} of {window.capacity} slots free; slide it, "
            "or make it larger"
        )


def check_model(vlm: Backbone, window: Window) -> None:
    """Raise ModelMismatchError unless the window is this model's."""
    if vlm.spec.fingerprint != window.spec.fingerprint:
        raise ModelMismatchError(
            f"the window belongs to model {window.spec.fingerprint[:12]}, this is {vlm.spec.fingerprint[:12]}; build "
            "it with this model"
        )


def check_chunk(window: Window, chunk: Chunk) -> None:
    """Raise unless the chunk's model and preamble are the window's."""
    if chunk.model != window.spec.fingerprint:
        raise ModelMismatchError(
            f"chunk {chunk.key[:12]} was encoded by model {chunk.model[:12]}, the window belongs to "
            f"{window.spec.fingerprint[:12]}; encode it with this window's model"
        )
    if chunk.preamble is not None and chunk.preamble != window.preamble.chunk.key:
        raise PreambleMismatchError(
            f"chunk {chunk.key[:12]} was encoded after preamble {chunk.preamble[:12]}, the window holds "
            f"{window.preamble.chunk.key[:12]}; encode it with this window's preamble, or with preamble=None"
        )


def _check(window: Window, chunk: Chunk, patch: Patch | None) -> None:
    check_chunk(window, chunk)
    if patch is not None and patch.model != chunk.model:
        raise ModelMismatchError(
            f"the patch was formed by model {patch.model[:12]}, the chunk by {chunk.model[:12]}; form it anew"
        )
    if patch is not None and patch.chunk != chunk.key:
        raise PatchMismatchError(
            f"the patch belongs to chunk {patch.chunk[:12]}, not to {chunk.key[:12]}; form one for this chunk"
        )


def append(window: Window, chunk: Chunk, patch: Patch | None = None, *, donate: bool = False) -> Window:
    """The window with a chunk at its end: rotated into place and patched, without running the model.

    Args:
        window: what stands before.
        chunk: canonical, or conditioned KV kept from a prefill.
        patch: what to add to it; None is blind reuse.
        donate: give the old window's buffers to the new one; the old window must not be used again.

    Raises:
        ModelMismatchError: chunk or patch come from another model.
        PreambleMismatchError: the chunk was encoded after another preamble.
        PatchMismatchError: the patch belongs to another chunk.
        WindowFullError: too few free slots; the window given is unchanged.
    """
    _check(window, chunk, patch)
    check_room(window, chunk.length)
    entry = Entry(chunk, patch, window.next_position, window.next_slot)
    return replace(
        window, state=_put(window.spec, window.state, entry, donate=donate), entries=(*window.entries, entry)
    )


def _rebuild(window: Window, items: Iterable[tuple[Chunk, Patch | None]], keep: int = 0) -> Window:
    """The first ``keep`` entries as they are, then ``items`` written again, each one hop from its un-rotated KV."""
    kept = window.entries[:keep]
    fresh = replace(window, entries=kept)
    occupied = jnp.arange(window.capacity) < (fresh.next_slot if kept else window.preamble.chunk.length)
    fresh = replace(fresh, state=replace(window.state, valid=window.state.valid & occupied))
    donate = False
    for chunk, patch in items:
        fresh = append(fresh, chunk, patch, donate=donate)
        donate = True
    if not donate:  # nothing was written: a caller who donates the result must not lose the window it came from
        fresh = replace(fresh, state=jax.tree.map(jnp.copy, fresh.state))
    return fresh


def _pairs(entries: Sequence[Entry]) -> list[tuple[Chunk, Patch | None]]:
    return [(entry.chunk, entry.patch) for entry in entries]


def reorder(window: Window, order: Sequence[int]) -> Window:
    """The same chunks with their patches in another order: entry ``order[i]`` comes to place i.

    Raises:
        ValueError: ``order`` is no permutation of the entries.
    """
    if sorted(order) != list(range(len(window.entries))):
        raise ValueError(f"order must be a permutation of 0..{len(window.entries) - 1}; got {list(order)}")
    kept = next((i for i, j in enumerate(order) if i != j), len(order))
    return _rebuild(window, _pairs([window.entries[i] for i in order[kept:]]), kept)


def slide(window: Window, drop: int = 1) -> Window:
    """The window without its ``drop`` oldest chunks; the others keep their patches and move to the front.

    Raises:
        ValueError: ``drop`` is negative or more than there are.
    """
    if not 0 <= drop <= len(window.entries):
        raise ValueError(f"cannot drop {drop} of {len(window.entries)} chunks")
    return window if drop == 0 else _rebuild(window, _pairs(window.entries[drop:]))


def recall(window: Window, chunk: Chunk, patch: Patch | None, at: int | None = None) -> Window:
    """The window with an evicted chunk back, at its end or before entry ``at``; never re-encoded.

    Raises:
        ValueError: ``at`` is no place in the window; else as `append`.
    """
    if at is None:
        return append(window, chunk, patch)
    if not 0 <= at <= len(window.entries):
        raise ValueError(f"at must be in 0..{len(window.entries)}; got {at}")
    return _rebuild(window, [(chunk, patch), *_pairs(window.entries[at:])], at)


def replace_entry(window: Window, index: int, chunk: Chunk, patch: Patch | None = None) -> Window:
    """The window with another chunk in place of entry ``index``; later chunks keep their patches.

    Raises:
        ValueError: there is no such entry; else as `append`.
    """
    if not 0 <= index < len(window.entries):
        raise ValueError(f"the window has entries 0..{len(window.entries) - 1}; got {index}")
    return _rebuild(window, [(chunk, patch), *_pairs(window.entries[index + 1 :])], index)
