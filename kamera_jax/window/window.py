"""Windows: ordered chunks behind a pinned preamble. Every operation returns a new window; none runs the model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args, no_type_check

import jax
import jax.numpy as jnp

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Entry, Patch, describe
from kamera_jax.errors import (
    ModelLengthError,
    ModelMismatchError,
    PatchMismatchError,
    PreambleMismatchError,
    WindowFullError,
)
from kamera_jax.forward import preamble_chunk
from kamera_jax.handle import Handle, traced
from kamera_jax.identity import EXACT, chunk_key, extended, lineage
from kamera_jax.kv import KVSpec, WindowState, bucket
from kamera_jax.window.pool import PoolIndex, Pools, allocate
from kamera_jax.window.reuse import write_donated, write_jit

Mode = Literal["materialise", "in_place"]
"""Write chunks rotated and patched, once for every place they come to, or read them where they lie."""

Item = tuple[Chunk, Patch | None, Any]
"""A chunk, its patch, and where both lie in their pool, None if that is to be found out."""

SLOT_ALIGNMENT = 16
"""Chunks start at multiples of this many slots, so that kernels write whole tiles."""


Count = TypeVar("Count", int, jax.Array)
"""A number that is known, or one that is traced."""


def aligned(slots: Count) -> Count:
    """The next slot a chunk may start at."""
    return -(-slots // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@dataclass(frozen=True, eq=False, repr=False)
class Window(Handle):
    """The context a model attends to: preamble, then chunks.

    A pytree of ``state``, ``entries`` and ``preamble``, for a caller's own ``jit``, ``vmap`` or ``shard_map``: the
    operations of this module work inside, and a function is compiled once for the shapes of a window, whatever it
    holds. Keys do not come out again; see `kamera_jax.handle`. What does not fit cannot be refused in a compiled
    function: the window that comes out answers nothing but NaN, and every operation on the host refuses it.

    Attributes:
        state: rotated and patched KV; in place, of the preamble alone, beside pools of canonical chunks.
        entries: the chunks in order, the preamble not among them.
        spec: what the KV means.
        capacity: slots in all, the preamble's included.
        preamble: what is pinned at slot 0.
        mode: how its chunks are kept.
        indices: what is known to lie in each of the state's pools.
    """

    state: WindowState
    entries: tuple[Entry, ...]
    spec: KVSpec
    capacity: int
    preamble: Entry
    mode: Mode = "materialise"
    indices: tuple[PoolIndex, ...] = ()

    DATA: ClassVar = ("state", "entries", "preamble")
    STATIC: ClassVar = ("spec", "capacity", "mode")
    NAMES: ClassVar = {"indices": ()}

    @staticmethod
    def empty(vlm: Backbone, capacity: int, *, mode: Mode = "materialise") -> "Window":
        """A window that holds the preamble alone.

        Args:
            vlm: the model.
            capacity: slots in all; the same chunks fit in either mode.
            mode: ``"materialise"`` writes chunks rotated and patched: the fastest to ask. ``"in_place"`` keeps them
                canonical and rotates and patches while they are read: reordering and sliding, recalling what still
                lies there, and windows that share a chunk because one was made from the other, then move no KV.

        Raises:
            WindowFullError: the preamble does not fit ``capacity`` slots, or the model's length.
            ValueError: an unknown mode, or a model that cannot attend to chunks in place.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}; got {mode!r}")
        if mode == "in_place" and not getattr(vlm, "attends_in_place", False):
            raise ValueError(
                f"{type(vlm).__name__} does not say attends_in_place = True, so its forward may not read chunks that "
                'lie in pools; use mode="materialise"'
            )
        chunk = preamble_chunk(vlm)
        if chunk.length > capacity:
            raise WindowFullError(
                f"a window of {capacity} slots cannot hold the preamble of {chunk.length} tokens; give it more"
            )
        check_length(vlm.spec, 0.0, chunk.advance)
        entry = Entry(chunk, None, base=0.0, slot=0)
        slots = capacity if mode == "materialise" else aligned(chunk.length)
        return Window(_put(vlm.spec, vlm.spec.empty_state(slots), entry), (), vlm.spec, capacity, entry, mode)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, in order."""
        return tuple(entry.chunk.key for entry in self.entries)

    @property
    def lineage(self) -> str:
        """What a chunk that is run here depends on: see `kamera_jax.identity.lineage`. Empty if a key is missing."""
        return lineage(self.preamble.chunk.key, (entry.identity for entry in self.entries))

    def is_as_formed(self, patch: Patch, at: int | None = None, fresh: Collection[int] = ()) -> bool:
        """Whether a patch was formed on what stands before a place: to the bit, or as far as the patches there say it.

        A patch was formed behind certain bits. A chunk with a patch that was itself formed where it now stands is, up
        to what the patch's size leaves out, the chunk as a prefill gives it there; so a patch that was formed on a
        prefill of these chunks is as formed behind these chunks with such patches, and not behind blind ones.

        Args:
            patch: of the chunk that comes to the place.
            at: the place; the window's end by default.
            fresh: entries that are taken to be as a prefill gives them.
        """
        if not patch.lineage:
            return False
        bits = lineage(self.preamble.chunk.key)
        prefilled = bits
        for place, entry in enumerate(self.entries[:at]):
            chunk, made = entry.chunk, entry.chunk.lineage if entry.patch is None else entry.patch.lineage
            right = place in fresh or (made and made in (bits, prefilled))
            bits = extended(bits, entry.identity)
            again = (chunk_key(chunk.content, self.spec, prefilled), EXACT, "")
            prefilled = extended(prefilled, again if right else entry.identity)
        return patch.lineage in (bits, prefilled)

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
    slot, length = entry.slot, chunk.length
    if traced(slot, length):  # what does not fit must not be written elsewhere; see `_poisoned`
        fits = slot + length <= state.valid.shape[0]
        slot = jnp.where(fits, slot, 0)
        length = jnp.where(fits, length, 0)
    put = write_donated if donate else write_jit
    return put(state, slot, chunk.kv, factors, chunk.positions + _f32(entry.base), length, spec=spec.rope)


def _f32(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def check_room(window: Window, tokens: int | jax.Array, advance: int | float | jax.Array | None = None) -> None:
    """Raise WindowFullError unless ``tokens`` more fit, which take ``advance`` positions (by default one each).

    Where these are not known yet, see `_poisoned`.
    """
    free = window.capacity - window.next_slot
    if not traced(tokens, free) and tokens > free:
        raise WindowFullError(
            f"{tokens} tokens do not fit: the window has {max(free, 0)} of {window.capacity} slots free; slide it, "
            "or make it larger"
        )
    check_length(window.spec, window.next_position, tokens if advance is None else advance)


def check_length(spec: KVSpec, start: float | jax.Array, advance: int | float | jax.Array) -> None:
    """Raise ModelLengthError unless the model is for ``advance`` positions from ``start`` on."""
    limit = spec.max_positions
    if limit is not None and not traced(start, advance) and start + advance > limit:
        raise ModelLengthError(
            f"{advance:g} positions from {start:g} on reach beyond the model's length of {limit} positions; slide the "
            "window, or add less to it: beyond its length the model was not made to attend"
        )


def check_whole(window: Window) -> None:
    """Raise WindowFullError if the window comes from a compiled function in which something did not fit."""
    last = window.entries[-1] if window.entries else window.preamble
    end = last.slot + last.chunk.length
    if not traced(end) and end > window.capacity:
        raise WindowFullError(
            f"the window of {window.capacity} slots would end at slot {end}: it comes from a compiled function in "
            "which not all fitted; make it again from the window that went in, with more slots or fewer chunks"
        )
    check_length(window.spec, window.next_position, 0)


def _poisoned(window: Window) -> Window:
    """The window whose last entry was put there; one that does not fit, inside a transformation, makes it NaN.

    What is always attended to, the first token, becomes NaN, and so does all that is read from the window.
    """
    end = window.entries[-1].slot + window.entries[-1].chunk.length
    if not traced(end, window.next_position):
        return window
    fits = end <= window.capacity
    if window.spec.max_positions is not None:
        fits &= window.next_position <= window.spec.max_positions
    first = window.state.free[:, :1]
    first = jnp.where(fits, first, jnp.asarray(jnp.nan, first.dtype))
    return replace(window, state=replace(window.state, free=window.state.free.at[:, :1].set(first)))


def check_model(vlm: Backbone, window: Window) -> None:
    """Raise ModelMismatchError unless the window is this model's.

    Raises:
        WindowFullError: the window comes from a compiled function in which something did not fit.
    """
    check_whole(window)
    if vlm.spec.fingerprint != window.spec.fingerprint:
        raise ModelMismatchError(
            f"the window belongs to model {window.spec.fingerprint[:12]}, this is {vlm.spec.fingerprint[:12]}; build "
            "it with this model"
        )


def check_chunk(window: Window, chunk: Chunk) -> None:
    """Raise unless the chunk's model and preamble are the window's."""
    if chunk.model != window.spec.fingerprint:
        differ = () if chunk.spec is None else chunk.spec.differences(window.spec)
        raise ModelMismatchError(
            f"{describe(chunk)} was encoded by model {chunk.model[:12]}, the window belongs to "
            f"{window.spec.fingerprint[:12]}"
            + (f", which differ in {', '.join(differ)}" if differ else "")
            + "; encode it with this window's model"
        )
    pinned = window.preamble.chunk.key
    if chunk.preamble is not None and pinned and chunk.preamble != pinned:
        raise PreambleMismatchError(
            f"{describe(chunk)} was encoded after preamble {chunk.preamble[:12]}, the window holds "
            f"{pinned[:12]}; encode it with this window's preamble, or with preamble=None"
        )


def check_pair(chunk: Chunk, patch: Patch) -> None:
    """Raise unless the patch is the chunk's; where a transformation dropped the one's or the other's key, it may be."""
    if patch.model != chunk.model:
        raise ModelMismatchError(
            f"the patch was formed by model {patch.model[:12]}, the chunk by {chunk.model[:12]}; form it anew"
        )
    if patch.chunk and chunk.key and patch.chunk != chunk.key:
        raise PatchMismatchError(
            f"the patch belongs to chunk {patch.chunk[:12]}, not to {chunk.key[:12]}; form one for this chunk"
        )


def check_place(window: Window, at: int | None) -> int:
    """The place ``at`` stands for, None for the window's end; raise ValueError if there is none."""
    if at is None:
        return len(window.entries)
    if not 0 <= at <= len(window.entries):
        raise ValueError(f"at must be in 0..{len(window.entries)}; got {at}")
    return at


def append(window: Window, chunk: Chunk, patch: Patch | None = None, *, donate: bool = False) -> Window:
    """The window with a chunk at its end: rotated into place and patched, without running the model.

    Args:
        window: what stands before.
        chunk: canonical, or conditioned KV kept from a prefill.
        patch: what to add to it; None is blind reuse.
        donate: give the old window's buffers to the new one; the old window, and in place every window that shares
            its pools, must not be used again.

    Raises:
        ModelMismatchError: chunk or patch come from another model.
        PreambleMismatchError: the chunk was encoded after another preamble.
        PatchMismatchError: the patch belongs to another chunk.
        WindowFullError: too few free slots, or positions of the model (`ModelLengthError`); the window given is
            unchanged.
    """
    longer = _with_entry(window, chunk, patch)
    if window.mode == "in_place":
        return _poisoned(_allocated(longer, donate=donate))
    state = _put(window.spec, window.state, longer.entries[-1], donate=donate)
    return _poisoned(replace(longer, state=state))


def _with_entry(window: Window, chunk: Chunk, patch: Patch | None, place: Any = None) -> Window:
    """The window with its next entry, checked, whose KV is still to be put there, or lies at a place of its pool."""
    check_chunk(window, chunk)
    if patch is not None:
        check_pair(chunk, patch)
    check_room(window, chunk.length, chunk.advance)
    entry = Entry(chunk, patch, window.next_position, window.next_slot, place)
    return replace(window, entries=(*window.entries, entry))


def _allocated(window: Window, *, donate: bool = False) -> Window:
    """An in-place window whose pools hold its entries."""
    held = Pools(window.state.pools, window.indices)
    held, entries = allocate(held, window.entries, window.spec, donate=donate)
    return replace(window, state=replace(window.state, pools=held.pools), indices=held.indices, entries=entries)


def _rebuild(window: Window, items: Sequence[Item], keep: int = 0) -> Window:
    """The first ``keep`` entries as they are, then ``items`` written again, each one hop from its un-rotated KV."""
    check_whole(window)
    kept = window.entries[:keep]
    fresh = replace(window, entries=kept)
    if window.mode == "in_place":
        for chunk, patch, place in items:
            fresh = _with_entry(fresh, chunk, patch, place)
        fresh = _allocated(fresh)
        return _poisoned(fresh) if fresh.entries else fresh
    occupied = jnp.arange(window.capacity) < (fresh.next_slot if kept else window.preamble.chunk.length)
    fresh = replace(fresh, state=replace(window.state, valid=window.state.valid & occupied))
    donate = False
    for chunk, patch, _ in items:
        fresh = append(fresh, chunk, patch, donate=donate)
        donate = True
    if not donate:  # nothing was written: a caller who donates the result must not lose the window it came from
        fresh = replace(fresh, state=jax.tree.map(jnp.copy, fresh.state))
    return fresh


def materialised(window: Window) -> Window:
    """The same window with every chunk rotated, patched and written."""
    if window.mode == "materialise":
        return window
    state = _put(window.spec, window.spec.empty_state(window.capacity), window.preamble)
    for entry in window.entries:
        state = _put(window.spec, state, entry, donate=True)
    entries = tuple(replace(entry, place=None) for entry in window.entries)
    return replace(window, state=state, entries=entries, mode="materialise", indices=())


def turn_state(window: Window, tokens: int) -> tuple[WindowState, int]:
    """A state without pools for a turn of ``tokens`` to be written to, and the slot to begin at.

    It shares no buffer with the window.
    """
    if window.mode == "materialise":
        return jax.tree.map(jnp.copy, window.state), window.next_slot
    slots = aligned(window.preamble.chunk.length)
    return _put(window.spec, window.spec.empty_state(slots + bucket(tokens)), window.preamble), slots


def _items(entries: Sequence[Entry]) -> list[Item]:
    return [(entry.chunk, entry.patch, entry.place) for entry in entries]


def reorder(window: Window, order: Sequence[int]) -> Window:
    """The same chunks with their patches in another order: entry ``order[i]`` comes to place i.

    Raises:
        ValueError: ``order`` is no permutation of the entries.
    """
    if sorted(order) != list(range(len(window.entries))):
        raise ValueError(f"order must be a permutation of 0..{len(window.entries) - 1}; got {list(order)}")
    kept = next((i for i, j in enumerate(order) if i != j), len(order))
    return _rebuild(window, _items([window.entries[i] for i in order[kept:]]), kept)


def slide(window: Window, drop: int = 1) -> Window:
    """The window without its ``drop`` oldest chunks; the others keep their patches and move to the front.

    Raises:
        ValueError: ``drop`` is negative or more than there are.
    """
    if not 0 <= drop <= len(window.entries):
        raise ValueError(f"cannot drop {drop} of {len(window.entries)} chunks")
    return without(window, range(drop))


def without(window: Window, places: Collection[int]) -> Window:
    """The window without the entries at ``places``; the others keep their patches, and close the gaps.

    Raises:
        ValueError: there is no such entry.
    """
    if unknown := [place for place in places if not 0 <= place < len(window.entries)]:
        raise ValueError(f"the window has entries 0..{len(window.entries) - 1}; got {unknown}")
    if not places:
        return window
    keep = min(places)
    rest = [entry for place, entry in enumerate(window.entries) if place > keep and place not in places]
    return _rebuild(window, _items(rest), keep)


def recall(window: Window, chunk: Chunk, patch: Patch | None, at: int | None = None) -> Window:
    """The window with an evicted chunk back, at its end or before entry ``at``; never re-encoded.

    Raises:
        ValueError: ``at`` is no place in the window; else as `append`.
    """
    at = check_place(window, at)
    if at == len(window.entries):
        return append(window, chunk, patch)
    return _rebuild(window, [(chunk, patch, None), *_items(window.entries[at:])], at)


def replace_entry(window: Window, index: int, chunk: Chunk, patch: Patch | None = None) -> Window:
    """The window with another chunk in place of entry ``index``; later chunks keep their patches.

    Raises:
        ValueError: there is no such entry; else as `append`.
    """
    if not 0 <= index < len(window.entries):
        raise ValueError(f"the window has entries 0..{len(window.entries) - 1}; got {index}")
    return _rebuild(window, [(chunk, patch, None), *_items(window.entries[index + 1 :])], index)
