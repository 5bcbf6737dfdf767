"""What changes a window: every operation returns a new one, and none runs the model."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.handle import traced
from kamera_jax.kv import WindowState, bucket
from kamera_jax.window.checks import check_chunk, check_pair, check_place, check_room, check_whole
from kamera_jax.window.pool import Pools, allocate
from kamera_jax.window.window import Window, aligned, put

Item = tuple[Chunk, Patch | None, Any]
"""A chunk, its patch, and where both lie in their pool, None if that is to be found out."""


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
    state = put(window.spec, window.state, longer.entries[-1], donate=donate)
    return _poisoned(longer.keeping(state=state))


def _with_entry(window: Window, chunk: Chunk, patch: Patch | None, place: Any = None) -> Window:
    """The window with its next entry, checked, whose KV is still to be put there, or lies at a place of its pool."""
    check_chunk(window, chunk)
    if patch is not None:
        check_pair(chunk, patch)
    check_room(window, chunk.length, chunk.advance)
    entry = Entry(chunk, patch, window.next_position, window.next_slot, place)
    return window.keeping(entries=(*window.entries, entry))


def _allocated(window: Window, *, donate: bool = False) -> Window:
    """An in-place window whose pools hold its entries."""
    held = Pools(window.state.pools, window.indices)
    held, entries = allocate(held, window.entries, window.spec, donate=donate)
    return window.keeping(state=replace(window.state, pools=held.pools), indices=held.indices, entries=entries)


def _rebuild(window: Window, items: Sequence[Item], keep: int = 0) -> Window:
    """The first ``keep`` entries as they are, then ``items`` written again, each one hop from its un-rotated KV."""
    check_whole(window)
    kept = window.entries[:keep]
    fresh = window.keeping(entries=kept)
    if window.mode == "in_place":
        for chunk, patch, place in items:
            fresh = _with_entry(fresh, chunk, patch, place)
        fresh = _allocated(fresh)
        return _poisoned(fresh)
    occupied = jnp.arange(window.capacity) < (fresh.next_slot if kept else window.preamble.chunk.length)
    fresh = fresh.keeping(state=replace(window.state, valid=window.state.valid & occupied))
    donate = False
    for chunk, patch, _ in items:
        fresh = append(fresh, chunk, patch, donate=donate)
        donate = True
    if not donate:  # nothing was written: a caller who donates the result must not lose the window it came from
        fresh = fresh.keeping(state=jax.tree.map(jnp.copy, fresh.state))
    return fresh


def _poisoned(window: Window) -> Window:
    """The window whose last entry was put there; one that does not fit, inside a transformation, makes it NaN.

    What is always attended to, the first token, becomes NaN, and so does all that is read from the window.
    """
    last = window.entries[-1] if window.entries else window.preamble
    end = last.slot + last.chunk.length
    if not traced(end, window.next_position, window.overflowed):
        return window
    overflowed = jnp.asarray(window.overflowed) | (end > window.capacity)
    if window.spec.max_positions is not None:
        overflowed |= window.next_position > window.spec.max_positions
    state = replace(window.state, free=window.state.free.at[:, :1].set(nan_if(overflowed, window.state.free[:, :1])))
    return window.keeping(state=state, overflowed=overflowed)


def nan_if(overflowed: jax.Array | bool, array: jax.Array) -> jax.Array:
    """The array, or nothing but NaN: what comes of a window in which not all fitted."""
    return jnp.where(overflowed, jnp.asarray(jnp.nan, array.dtype), array)


def materialised(window: Window) -> Window:
    """The same window with every chunk rotated, patched and written."""
    if window.mode == "materialise":
        return window
    state = put(window.spec, window.spec.empty_state(window.capacity), window.preamble)
    for entry in window.entries:
        state = put(window.spec, state, entry, donate=True)
    entries = tuple(replace(entry, place=None) for entry in window.entries)
    return _poisoned(window.keeping(state=state, entries=entries, mode="materialise", indices=()))


def turn_state(window: Window, tokens: int) -> tuple[WindowState, int]:
    """A state without pools for a turn of ``tokens`` to be written to, and the slot to begin at.

    It shares no buffer with the window.
    """
    if window.mode == "materialise":
        return jax.tree.map(jnp.copy, window.state), window.next_slot
    slots = aligned(window.preamble.chunk.length)
    return put(window.spec, window.spec.empty_state(slots + bucket(tokens)), window.preamble), slots


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
