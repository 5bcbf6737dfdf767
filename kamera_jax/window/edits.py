"""What can happen to the entries of a window, as values: one definition of every edit, wherever it is planned or done.

An edit is applied to any sequence that stands for a window's entries (the entries themselves, their places, their
keys): what stays is handed on as it is, and what is new comes as a `Pair`. Whoever applies it to ``range(n)`` learns
which entries stay, where, and what comes between them.

What an edit places first stands without its patch, if that was formed behind other chunks: with nothing before it but
the preamble its canonical KV is what full prefill gives, and the patch would add what it read elsewhere. A patch that
was formed behind no chunk, or of which a JAX transformation dropped the names, so that nothing is known of it, is left
as it is. So is the patch of what comes to be first because all before it were evicted: it did read them.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from kamera_jax.arguments import check_type, whole_number
from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.window.checks import check_pair


class Pair(NamedTuple):
    """A chunk with the patch it stands with, or None."""

    chunk: Chunk
    patch: Patch | None = None


Item = TypeVar("Item")


class Change(ABC):
    """An edit of a window's entries."""

    @abstractmethod
    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """The items after the edit, in order.

        What is placed first is a `Pair` without the patch that it comes with, or stood with elsewhere in the window, if
        that patch was formed behind other chunks.

        Args:
            items: one for each entry of the window.

        Raises:
            ValueError: the edit names an entry or a place that the window does not have.
            PatchMismatchError: what is placed first comes with a patch of another chunk.
        """

    @abstractmethod
    def without(self, gone: Collection[int]) -> "Change":
        """The same edit of a window that the entries at the places ``gone`` have left."""


@dataclass(frozen=True)
class Append(Change):
    """A chunk comes to the end.

    With ``as_it_stood`` it is put back as it stood in another window: it keeps its patch in first place too, as it does
    where all before it were evicted.
    """

    chunk: Chunk
    patch: Patch | None = None
    as_it_stood: bool = False

    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """See `Change.apply`."""
        if self.as_it_stood:
            return [*items, Pair(self.chunk, self.patch)]
        return _placed(items, len(items), Pair(self.chunk, self.patch))

    def without(self, gone: Collection[int]) -> "Append":
        """See `Change.without`."""
        return self


@dataclass(frozen=True)
class Recall(Change):
    """A chunk comes back, with a patch that was formed for it if there is one, at the end or before entry ``at``."""

    chunk: Chunk
    patch: Patch | None = None
    at: int | None = None

    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """See `Change.apply`."""
        at = len(items) if self.at is None else whole_number(self.at, "at")
        if not 0 <= at <= len(items):
            raise ValueError(f"at must be in 0..{len(items)}, an entry to stand before or the end; got {at}")
        return _placed(items, at, Pair(self.chunk, self.patch), *items[at:])

    def without(self, gone: Collection[int]) -> "Recall":
        """See `Change.without`."""
        return replace(self, at=None if self.at is None else _moved(self.at, gone))


@dataclass(frozen=True)
class Evict(Change):
    """The entries at these places leave; the others keep their patches, the new first one too."""

    places: tuple[int, ...]

    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """See `Change.apply`."""
        _check_entries(self.places, items)
        return [item for place, item in enumerate(items) if place not in self.places]

    def without(self, gone: Collection[int]) -> "Evict":
        """See `Change.without`."""
        return replace(self, places=tuple(_moved(place, gone) for place in self.places if place not in gone))


@dataclass(frozen=True)
class Reorder(Change):
    """Entry ``order[i]`` comes to place i; the one that stood first keeps its patch if it stays there."""

    order: tuple[int, ...]

    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """See `Change.apply`."""
        if sorted(self.order) != list(range(len(items))):
            raise ValueError(f"order must be a permutation of 0..{len(items) - 1}; got {list(self.order)}")
        if self.order[:1] in ((), (0,)):
            return [items[place] for place in self.order]
        return _placed((), 0, *(items[place] for place in self.order))

    def without(self, gone: Collection[int]) -> "Reorder":
        """See `Change.without`."""
        return replace(self, order=tuple(_moved(place, gone) for place in self.order if place not in gone))


@dataclass(frozen=True)
class Replace(Change):
    """Another chunk comes in place of entry ``index``."""

    index: int
    chunk: Chunk
    patch: Patch | None = None

    def apply(self, items: Sequence[Item]) -> list[Item | Pair]:
        """See `Change.apply`."""
        _check_entries((whole_number(self.index, "index"),), items)
        return _placed(items, self.index, Pair(self.chunk, self.patch), *items[self.index + 1 :])

    def without(self, gone: Collection[int]) -> "Replace":
        """See `Change.without`."""
        if self.index in gone:
            raise ValueError(f"entry {self.index} has left the window, so nothing can take its place")
        return replace(self, index=_moved(self.index, gone))


Changes = Change | Iterable[Change]
"""One edit, or several, each of the window as the one before leaves it."""


def applied(items: Sequence[Item], changes: Changes) -> list[Item | Pair]:
    """The items after one edit or several; see `Change.apply`."""
    after: list[Item | Pair] = list(items)
    remedy = "kamera_jax.planning.Append(chunk, patch), or another of its edits"
    check_type(changes, (Change, Iterable), "the change", remedy)
    for change in (changes,) if isinstance(changes, Change) else changes:
        check_type(change, Change, "a change", remedy)
        after = change.apply(after)
    return after


def _placed(items: Sequence[Item], at: int, *new: Item | Pair) -> list[Item | Pair]:
    """The first ``at`` items, and what comes behind them: without its patch, where that is the first place."""
    if at or not new:
        return [*items[:at], *new]
    return [_bare(new[0]), *new[1:]]


def _bare(item: Item | Pair) -> Item | Pair:
    """The item without its patch, if that is known to have been formed behind other chunks."""
    if not isinstance(item, Entry | Pair) or not isinstance(item.chunk, Chunk):
        return item
    if not isinstance(item.patch, Patch) or not item.patch.antecedents:
        return item
    check_pair(item.chunk, item.patch)  # what would be refused anywhere else is not passed over here
    return Pair(item.chunk)


def _moved(place: int, gone: Collection[int]) -> int:
    return place - sum(other < place for other in gone)


def _check_entries(places: Iterable[int], items: Sequence[Item]) -> None:
    if unknown := [place for place in places if not 0 <= place < len(items)]:
        there = f"entries 0..{len(items) - 1}" if items else "no entries"
        raise ValueError(f"the window has {there}; got {', '.join(map(str, unknown))}")
