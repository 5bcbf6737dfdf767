"""What a session keeps: its window, what has left that, and in which order chunks were used."""

from collections.abc import Iterable, Sequence

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.guard.planning import Step
from kamera_jax.session.lending import Lent
from kamera_jax.session.serving import Coming
from kamera_jax.session.settings import check_key
from kamera_jax.store import Store
from kamera_jax.window.changes import changed, check_changes, reserved
from kamera_jax.window.edits import Append, Change, applied
from kamera_jax.window.eviction import Size, in_the_way
from kamera_jax.window.window import Window


class Kept:
    """The window of a session and the store beside it, which change together or not at all.

    Attributes:
        window: as it stands.
        store: where chunks go that leave it, and patches that others took the place of.
        evicted: keys of the chunks that left it, the least recently used first.
        pinned: keys of the chunks that are not evicted.
        used: keys of the window's chunks, the least recently used first.
        lent: what callers have of the window.
    """

    def __init__(self, window: Window, store: Store) -> None:
        self.window = window
        self.store = store
        self.evicted: tuple[str, ...] = ()
        self.pinned: frozenset[str] = frozenset()
        self.used: tuple[str, ...] = ()
        self.lent = Lent()

    def find(self, key: str) -> tuple[Chunk, Sequence[Patch]] | None:
        """A chunk of the window or the store, and what patches there are of it."""
        check_key(key)
        for entry in self.window.entries:
            if entry.chunk.key == key:
                return entry.chunk, () if entry.patch is None else (entry.patch,)
        chunk = self.store.find(key)
        return None if chunk is None else (chunk, self.store.patches(key))

    def use(self, key: str) -> None:
        """Note that a chunk of the window is used now."""
        self.used = (*(other for other in self.used if other != key), key)

    def in_the_way(self, change: Change | None, more: Size | None = None) -> list[int]:
        """See `kamera_jax.window.eviction.in_the_way`."""
        return in_the_way(self.window, self.pinned, change, more=more, used=self.used)

    def commit(
        self,
        window: Window,
        gone: Iterable[int],
        served: Sequence[tuple[Coming, Step]] = (),
        change: Append | None = None,
    ) -> None:
        """Go on with a window, which the entries at the places ``gone`` are not in, and a last change of it.

        It is done to the window after what leaves is stored, as a store on disk may fail. What was run again has
        another key there: it stays pinned, and as it was it can be recalled. Patches that others took the place of are
        stored too.

        Args:
            window: what stays, and what was put behind it but for ``change``.
            gone: places of the window as it stood.
            served: what came and was moved, and what was done for it.
            change: what is still to be put at the end.
        """
        after = window.entries if change is None else applied(window.entries, change)
        keys = {each.chunk.key for each in after}
        if change is not None:
            check_changes(window, change)
        left = [self.window.entries[place] for place in gone]
        rerun = [(old.chunk, step.chunk) for old, step in served if old.chunk is not step.chunk]
        chunks = [old for old, _ in rerun] + [entry.chunk for entry in left]
        leaving = {chunk.key: chunk for chunk in chunks if chunk.key not in keys}
        patches = [entry.patch for entry in left]
        patches += [old.present for old, step in served if old.present is not step.patch]
        for old, _ in served:
            self.store.release(old.chunk.key)
        for chunk in leaving.values():
            self.store.put(chunk)
        for patch in patches:
            if patch is not None and patch.key:
                self.store.put(patch)
        if change is not None:
            window = reserved(window, (each.chunk.kv.rot.shape[1] for each in after))
            window = changed(window, change, donate=self._owns(window))
        self.evicted = (*(key for key in self.evicted if key not in keys and key not in leaving), *leaving)
        if window.mode == "materialise":
            self.lent.forget()
        self.window = window
        self.pinned |= {new.key for old, new in rerun if old.key in self.pinned}
        self.pinned &= keys
        known = [key for key in self.used if key in keys]
        self.used = (*known, *dict.fromkeys(key for key in window.keys if key not in known))

    def _owns(self, window: Window) -> bool:
        """Whether nobody else has a window with these buffers; in place, those made from one another share pools."""
        return not self.lent or (window.mode == "materialise" and window is not self.window)
