"""What changes a window: every operation returns a new one, and none runs the model."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from kamera_jax.arguments import check_list, whole_number
from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.compress.pooled import packed_pool
from kamera_jax.handle import Handle, copied, traced
from kamera_jax.identity import EXACT
from kamera_jax.kv import WindowState, bucket, bucket_of_slots
from kamera_jax.placement import Placement, placed
from kamera_jax.window.checks import check_chunk, check_pair, check_room, check_whole
from kamera_jax.window.edits import Append, Changes, Evict, Pair, Recall, Reorder, Replace, applied
from kamera_jax.window.pool import Pools, allocate, pool_tokens
from kamera_jax.window.pool import reserved as reserved_pools
from kamera_jax.window.slots import hidden, put, put_first
from kamera_jax.window.window import Window, aligned

H = TypeVar("H", bound=Handle)


def changed(window: Window, changes: Changes, *, donate: bool = False) -> Window:
    """The window after one edit of its entries or several, all written at once.

    Entries at the front that stay what they are are not touched; every other one is written again, one hop from its
    un-rotated KV.

    Args:
        window: what stands before.
        changes: see `kamera_jax.window.edits`, which also says when a chunk leaves its patch.
        donate: give the old window's buffers to the new one; see `append`.

    Raises:
        ValueError: an edit names an entry or a place that the window does not have; else see `append`.
    """
    longer, kept = _placed(window, changes)
    if window.mode == "in_place":
        return _poisoned(_allocated(longer, donate=donate))
    if kept < len(longer.entries):
        state = put(window.spec, window.state, longer.entries[kept:], donate=donate, placement=window.placement)
    else:  # nothing is written, and what has left is still to be hidden
        last = longer.entries[-1] if longer.entries else window.preamble
        state = hidden(window.state, last.slot + last.chunk.length, donate=donate)
    return _poisoned(longer.keeping(state=state))


def check_changes(window: Window, changes: Changes) -> None:
    """Raise what `changed` would raise; nothing is written."""
    _placed(window, changes)


def _placed(window: Window, changes: Changes) -> tuple[Window, int]:
    """The window with its entries to be, checked, whose state is still what it was; and how many of them stay."""
    check_whole(window)
    after = applied(window.entries, changes)
    kept = 0
    while kept < min(len(window.entries), len(after)) and after[kept] is window.entries[kept]:
        kept += 1
    longer = window.keeping(entries=window.entries[:kept])
    for each in after[kept:]:
        longer = _with_entry(longer, each)
    return longer, kept


def append(
    window: Window, chunk: Chunk, patch: Patch | None = None, *, donate: bool = False, as_it_stood: bool = False
) -> Window:
    """The window with a chunk at its end: rotated into place and patched, without running the model.

    In a window that holds the preamble alone the chunk stands without its patch, if that was formed behind other
    chunks: with nothing before it its canonical KV is what full prefill gives. The entry then has no patch.

    Args:
        window: what stands before.
        chunk: canonical, or conditioned KV kept from a prefill.
        patch: what to add to it; None is blind reuse.
        donate: give the old window's buffers to the new one; the old window, and in place every window that shares
            its pools, must not be used again.
        as_it_stood: put it back as an entry of another window, with its patch in first place too: what stood first
            there because all before it were evicted had read them.

    Raises:
        ModelMismatchError: chunk or patch come from another model.
        PreambleMismatchError: the chunk was encoded after another preamble.
        PatchMismatchError: the patch belongs to another chunk.
        WindowFullError: too few free slots, or positions of the model (`ModelLengthError`); the window given is
            unchanged.
    """
    return changed(window, Append(chunk, patch, as_it_stood), donate=donate)


def _with_entry(window: Window, new: Entry | Pair) -> Window:
    """The window with its next entry, checked, whose KV is still to be put there, or lies at a place of its pool."""
    check_chunk(window, new.chunk)
    if new.patch is not None:
        check_pair(new.chunk, new.patch)
    check_room(window, new.chunk.length, new.chunk.advance)
    chunk = new.chunk
    if window.placement is not None and window.placement.is_elsewhere(chunk.positions):
        chunk = chunk.to(window.placement)  # with its source, to be run again
    chunk = _moved(chunk, ("kv",), window.placement)
    patch = None if new.patch is None else _moved(new.patch, ("factors", "sketch"), window.placement)
    entry = Entry(chunk, patch, window.next_position, window.next_slot, _place(new))
    return window.keeping(entries=(*window.entries, entry))


def _moved(handle: H, names: Sequence[str], placement: Placement | None) -> H:
    """A chunk or a patch whose arrays of these names are where the window is: what is written again is sent once."""
    own = {name: getattr(handle, name) for name in names} if placement is not None else {}
    there = placed(own, placement)
    same = all(a is b for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(there), strict=True))
    return handle if same else handle.keeping(**there)


def _place(new: Entry | Pair) -> Any:
    """Where it lies in its pool; None for what is still to be put there."""
    return new.place if isinstance(new, Entry) else None


def _allocated(window: Window, *, donate: bool = False) -> Window:
    """An in-place window whose pools hold its entries."""
    pools = Pools(window.state.pools, window.indices)
    pools, entries = allocate(pools, window.entries, window.spec, donate=donate, **_settings(window))
    return window.keeping(state=replace(window.state, pools=pools.pools), indices=pools.indices, entries=entries)


def _settings(window: Window) -> dict[str, Any]:
    """What a window says of its pools."""
    form = packed_pool(window.storage, window.spec)
    return {"capacity": window.capacity, "placement": window.placement, "form": form}


def reserved(window: Window, rows: Iterable[int]) -> Window:
    """The window, if it is in place with places for chunks of so many rows; see `kamera_jax.window.pool.reserved`."""
    if window.mode == "materialise":
        return window
    pools = Pools(window.state.pools, window.indices)
    tokens = {pool_tokens(each) for each in rows}
    pools = reserved_pools(pools, tokens, window.spec, **_settings(window))
    return window.keeping(state=replace(window.state, pools=pools.pools), indices=pools.indices)


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
    state = put_first(window.spec, bucket_of_slots(window.capacity), window.preamble, window.placement)
    if window.entries:
        state = put(window.spec, state, window.entries, donate=True, placement=window.placement)
    entries = tuple(replace(entry, place=None) for entry in window.entries)
    return _poisoned(window.keeping(state=state, entries=entries, mode="materialise", storage=EXACT, indices=()))


def rewritten(window: Window) -> Window:
    """The same window, written again from its entries, where its buffers were given away and nothing came of that.

    In place, its chunks may come to lie in other places of their pools.
    """
    state = put_first(window.spec, window.state.valid.shape[0], window.preamble, window.placement)
    if window.mode == "materialise":
        if window.entries:
            state = put(window.spec, state, window.entries, donate=True, placement=window.placement)
        return window.keeping(state=state)
    rows = [pool.rot.shape[2] for pool in window.state.pools]
    entries = tuple(replace(entry, place=None) for entry in window.entries)
    return _allocated(reserved(window.keeping(state=state, entries=entries, indices=()), rows))


def turn_state(window: Window, tokens: int) -> tuple[WindowState, int]:
    """A state without pools for a turn of ``tokens`` to be written to, and the slot to begin at.

    It shares no buffer with the window.
    """
    if window.mode == "materialise":
        return copied(window.state), window.next_slot
    slots = aligned(window.preamble.chunk.length)
    return put_first(window.spec, slots + bucket(tokens), window.preamble, window.placement), slots


def reorder(window: Window, order: Sequence[int]) -> Window:
    """The same chunks with their patches in another order: entry ``order[i]`` comes to place i.

    What comes to stand first from elsewhere leaves its patch, if that was formed behind other chunks: it now stands
    behind none. The new window does not keep that patch, so another `reorder` does not bring it back; give it again,
    ``replace(window, i, chunk, patch)``, or go on from the window as it was before.

    Raises:
        ValueError: ``order`` is no permutation of the entries.
    """
    check_list(order, object, "order", "the places of the entries, such as [1, 0]")
    return changed(window, Reorder(tuple(whole_number(place, "a place in order") for place in order)))


def slide(window: Window, drop: int = 1) -> Window:
    """The window without its ``drop`` oldest chunks; the others keep their patches and move to the front.

    The new first one too: it did read what has left, and stands as in a full prefill of all chunks ever seen.

    Raises:
        ValueError: ``drop`` is negative or more than there are.
    """
    check_whole(window)
    drop = whole_number(drop, "drop")
    if not 0 <= drop <= len(window.entries):
        raise ValueError(f"cannot drop {drop} of {len(window.entries)} chunks")
    return without(window, range(drop))


def without(window: Window, places: Collection[int]) -> Window:
    """The window without the entries at ``places``; the others keep their patches, and close the gaps.

    Raises:
        ValueError: there is no such entry.
    """
    return changed(window, Evict(tuple(places))) if places else window


def recall(window: Window, chunk: Chunk, patch: Patch | None, at: int | None = None) -> Window:
    """The window with an evicted chunk back, at its end or before entry ``at``; never re-encoded.

    With ``at=0`` it stands without its patch, if that was formed behind other chunks; see `append`.

    Raises:
        ValueError: ``at`` is no place in the window; else see `append`.
    """
    return changed(window, Recall(chunk, patch, at))


def replace_entry(window: Window, index: int, chunk: Chunk, patch: Patch | None = None) -> Window:
    """The window with another chunk in place of entry ``index``; later chunks keep their patches.

    As entry 0 it stands without its patch, if that was formed behind other chunks; see `append`.

    Raises:
        ValueError: there is no such entry; else see `append`.
    """
    return changed(window, Replace(index, chunk, patch))
