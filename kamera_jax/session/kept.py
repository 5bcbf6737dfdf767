"""What a session keeps: its window, what has left that, and in which order chunks were used."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.compress.pooled import kept_in
from kamera_jax.errors import ChunkNotHeldError, MissingKeyError
from kamera_jax.guard.planning import Action, Step
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.handle import deleted, in_bytes
from kamera_jax.identity import EXACT, canonical_key
from kamera_jax.inference.encode import encode_segment
from kamera_jax.inference.renewing import Renewed
from kamera_jax.session.lending import Lent
from kamera_jax.session.log import KEPT, Operation, Served
from kamera_jax.session.memory import ChunkMemory, Contents
from kamera_jax.session.saved import SavedSession
from kamera_jax.session.serving import Coming
from kamera_jax.session.settings import check_key
from kamera_jax.session.stats import SessionStats
from kamera_jax.store import Store
from kamera_jax.tiers.tiers import Tiers
from kamera_jax.window.changes import changed, check_changes, reserved, rewritten
from kamera_jax.window.edits import Append, Change, applied
from kamera_jax.window.eviction import Size, in_the_way
from kamera_jax.window.window import Window


@dataclass(frozen=True)
class State:
    """All that changes in a session, as one value, which is replaced at once: no interruption leaves half of a change.

    Attributes:
        window: the window as it stands.
        evicted: keys of the chunks that left it, the least recently used first.
        pinned: keys of the chunks that are not evicted.
        used: keys of the window's chunks, the least recently used first.
        stats: what the session has done.
        last: what the last operation did for each chunk that it touched.
        log: the same of all operations, up to `KEPT` records, the oldest first.
        memory: what the store in host memory is still to take over; None where it has done so.
        released: keys of which another store is still to be told that they are in use here.
    """

    window: Window
    evicted: tuple[str, ...] = ()
    pinned: frozenset[str] = frozenset()
    used: tuple[str, ...] = ()
    stats: SessionStats = SessionStats()
    last: tuple[Served, ...] = ()
    log: tuple[Served, ...] = ()
    memory: Contents | None = None
    released: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """What is to be known of a change beside the window.

    Attributes:
        use: the key that counts as used last, if any.
        pin: the key that is pinned, if any.
        records: what was done for each chunk; None leaves the log as it is.
        counts: what is added to each number of the statistics, by name.
    """

    use: str | None = None
    pin: str | None = None
    records: tuple[Served, ...] | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def on(self, state: State) -> State:
        """The state with this noted."""
        records = state.last if self.records is None else self.records
        used = state.used
        if self.use is not None:
            used = (*(key for key in used if key != self.use), self.use)
        return replace(
            state,
            used=used,
            pinned=state.pinned if self.pin is None else state.pinned | {self.pin},
            stats=replace(state.stats, **{name: getattr(state.stats, name) + n for name, n in self.counts.items()}),
            last=records,
            log=state.log if self.records is None else (*state.log, *records)[-KEPT:],
        )


def stays(operation: Operation, key: str) -> Note:
    """What is noted of a chunk which stands in the window and is used again."""
    return Note(use=key, records=(Served(operation, key, Action.KEEP, "it stands in the window already"),))


class Kept:
    """The window of a session and the store beside it, which change together or not at all.

    An operation may be interrupted anywhere (Ctrl-C), also after the window's buffers were given away and before the
    new window is there. What an entry is written from stays with the entry, so that the window is then written again
    when it is next asked for.

    Attributes:
        store: where chunks go that leave the window, and patches that others took the place of.
        lent: what callers have of the window.
    """

    def __init__(self, state: State, store: Store) -> None:
        self._state = state
        self.store = store
        self.lent = Lent()

    @property
    def state(self) -> State:
        """All that changes, whatever was interrupted before."""
        if self._state.memory is not None and isinstance(self.store, ChunkMemory):
            self.store.contents = self._state.memory
            self._state = replace(self._state, memory=None)
        if self._state.released:
            try:
                for key in self._state.released:
                    self.store.release(key)
            finally:  # a store may keep what it is not told of
                self._state = replace(self._state, released=())
        if deleted(self._state.window.state):
            self._state = replace(self._state, window=rewritten(self._state.window))
        return self._state

    @property
    def window(self) -> Window:
        """The window as it stands."""
        return self.state.window

    @window.setter
    def window(self, window: Window) -> None:
        self._state = replace(self.state, window=window)

    @property
    def stats(self) -> SessionStats:
        """What the session has done so far, and what host memory holds."""
        stats = self.state.stats
        if isinstance(self.store, Tiers):
            tiers = self.store.stats
            return replace(
                stats, forgotten=stats.forgotten + tiers.dropped, evicted_bytes=tiers.device_bytes + tiers.host_bytes
            )
        if not isinstance(self.store, ChunkMemory):
            return stats
        return replace(stats, forgotten=stats.forgotten + self.store.dropped, evicted_bytes=self.store.nbytes)

    def saved(self, evicted: tuple[str, ...], memory_bytes: int | None, rank: int | None) -> SavedSession:
        """What is written of the session; the rest are its settings."""
        state = self.state
        memory = self.store if isinstance(self.store, ChunkMemory) else None
        return SavedSession(
            window=state.window,
            memory=() if memory is None else memory.records,
            patches=() if memory is None else memory.patch_records,
            used=state.used,
            evicted=evicted,
            pinned=tuple(sorted(state.pinned)),
            memory_bytes=memory_bytes,
            rank=rank,
            stats=asdict(self.stats),
        )

    @property
    def pinned(self) -> frozenset[str]:
        """Keys of the chunks that are not evicted."""
        return self.state.pinned

    def find(self, key: str) -> tuple[Chunk, Sequence[Patch]] | None:
        """A chunk of the window or the store, and what patches there are of it."""
        check_key(key)
        for entry in self.window.entries:
            if entry.chunk.key == key:
                return entry.chunk, () if entry.patch is None else (entry.patch,)
        chunk = self.store.find(key)
        return None if chunk is None else (self.packed(chunk), self.store.patches(key))

    def packed(self, chunk: Chunk) -> Chunk:
        """The chunk as the window keeps chunks; see `kept_in`."""
        return kept_in(chunk, self.window.storage)

    def chunk(self, vlm: Backbone, item: Any, key: str | None) -> tuple[Chunk, Sequence[Patch], float]:
        """An item's chunk, the patches that are known of it, and the FLOPs of encoding it if it was not known.

        Args:
            vlm: the model.
            item: what `encode` takes, a chunk, or one that was renewed.
            key: the item's, if it is known.

        Raises:
            ValueError: the item cannot be read, or has another key.
            MissingKeyError: a chunk without a key.
            CodecError: the window cannot keep it in its storage.
        """
        if key is not None and (known := self.find(key)) is not None:
            return *known, 0.0
        preamble = self.window.preamble.chunk
        flops = 0.0
        if isinstance(item, Renewed):
            flops = item.flops
            item = item.chunk
        item = item if isinstance(item, Chunk) else vlm.prepare(item)
        own = item.key if isinstance(item, Chunk) else canonical_key(item, vlm.spec, preamble.key)
        if not own:
            raise MissingKeyError(
                "the chunk has no key, so it could not be found again: it was built by hand, or went through a JAX "
                "transformation or dataclasses.replace; add what encode gave, and move that with its .to(...)"
            )
        if key is not None and key != own:
            raise ValueError(f"the item has the key {own[:12]}, not {key[:12]}; give its own key, or none")
        known = self.find(own)
        if isinstance(item, Chunk):
            return self.packed(item), () if known is None else known[1], flops
        if known is not None:
            return *known, 0.0
        chunk = self.packed(encode_segment(vlm, item))
        return chunk, self.store.patches(own), forward_flops(vlm, chunk.length, preamble.length)

    def check_there(self, key: str) -> None:
        """Raise ChunkNotHeldError unless the window has the chunk."""
        check_key(key)
        if key not in self.window.keys:
            raise ChunkNotHeldError(f"the window has no chunk {key[:12]}; recall it first, or add the item")

    def note(self, note: Note) -> None:
        """Note what was done where the window stays as it is."""
        self._state = note.on(self.state)

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a chunk of the window when others are evicted, or keep it no more."""
        state = self.state
        self._state = replace(state, pinned=state.pinned | {key} if pinned else state.pinned - {key})

    def in_the_way(self, change: Change | None, more: Size | None = None) -> list[int]:
        """See `kamera_jax.window.eviction.in_the_way`."""
        state = self.state
        return in_the_way(state.window, state.pinned, change, more=more, used=state.used)

    def commit(
        self,
        window: Window,
        gone: Iterable[int],
        note: Note,
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
            note: what is to be known of it.
            served: what came and was moved, and what was done for it.
            change: what is still to be put at the end.
        """
        state = self.state
        after = window.entries if change is None else applied(window.entries, change)
        keys = {each.chunk.key for each in after}
        if change is not None:
            check_changes(window, change)
        left = [state.window.entries[place] for place in gone]
        rerun = [(old.chunk, step.chunk) for old, step in served if old.chunk is not step.chunk]
        chunks = [old for old, _ in rerun] + [entry.chunk for entry in left]
        leaving = {chunk.key: chunk for chunk in chunks if chunk.key not in keys}
        patches = [entry.patch for entry in left]
        patches += [old.present for old, step in served if old.present is not step.patch]
        came = [old.chunk.key for old, _ in served]
        memory, released = self._stored(came, leaving, [patch for patch in patches if patch is not None and patch.key])
        if change is not None:
            window = reserved(window, (each.chunk.kv.rot.shape[1] for each in after))
            window = changed(window, change, donate=self._owns(window))
        pinned = state.pinned | {new.key for old, new in rerun if old.key in state.pinned}
        known = [key for key in state.used if key in keys]
        new = replace(
            state,
            window=window,
            evicted=(*(key for key in state.evicted if key not in keys and key not in leaving), *leaving),
            pinned=pinned & keys,
            used=(*known, *dict.fromkeys(key for key in window.keys if key not in known)),
            memory=memory,
            released=released,
        )
        self._state = note.on(new)  # all of it, or nothing
        if window.mode == "materialise" and window is not state.window:
            self.lent.forget()
        _ = self.state

    def _stored(
        self, came: Sequence[str], leaving: dict[str, Chunk], patches: Sequence[Patch]
    ) -> tuple[Contents | None, tuple[str, ...]]:
        """Store what leaves the window.

        Returns:
            What host memory is to take over, if that is the store, with the window; and else the keys that came to the
            window, to be released after it.
        """
        if type(self.store) is not ChunkMemory:  # a subclass may put things elsewhere
            for item in (*leaving.values(), *patches):
                self.store.put(item)
            return None, tuple(key for key in came if key not in leaving)
        contents = self.store.contents.copied()
        for key in came:
            contents.release(key)
        for item in (*leaving.values(), *patches):
            contents.put(item)
        return contents, ()

    def _owns(self, window: Window) -> bool:
        """Whether nobody else has a window with these buffers; in place, those made from one another share pools."""
        return not self.lent or (window.mode == "materialise" and window is not self._state.window)


def described(vlm: Backbone, kept: Kept, policy: ReusePolicy) -> str:
    """``repr`` of a session: what fills its window, and what it keeps beside."""
    window = kept.window
    patched = sum(entry.patch is not None for entry in window.entries)
    form = f"mode={window.mode!r}" + (f", storage={window.storage!r}" if window.storage != EXACT else "")
    beside = f"{len(kept.state.evicted)} evicted"
    beside += f" ({in_bytes(kept.store.nbytes)})" if isinstance(kept.store, ChunkMemory) else ""
    return (
        f"<Session of {getattr(vlm, 'name', '') or type(vlm).__name__}: {len(window.entries)} chunks ({patched} with "
        f"patches), {window.next_slot} of {window.capacity} slots, {form}; {beside}, "
        f"{kept.state.stats.turns} turns; max_kl={policy.max_kl:g}, fallback={policy.fallback!r}>"
    )
