"""The loop an agent's author writes: add what comes, ask, slide when the window is full, recall by key."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.errors import ChunkNotHeldError, MissingKeyError
from kamera_jax.guard.planning import FORWARDS, execute, plan
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.identity import canonical_key
from kamera_jax.inference.encode import encode_segment, form_patch
from kamera_jax.inference.generate import Decoding, Generation, generate_turn, question_tail, turn_slots
from kamera_jax.session.choice import best_patch
from kamera_jax.session.lending import Lent
from kamera_jax.session.memory import ChunkMemory
from kamera_jax.session.saved import SavedSession, load_session, save_session
from kamera_jax.session.settings import MEMORY, check_key, check_settings, folder_of
from kamera_jax.session.stats import SessionStats
from kamera_jax.store import Store
from kamera_jax.window.changes import changed, check_changes, reserved, without
from kamera_jax.window.edits import Append, Change, Pair, Recall, Replace, applied
from kamera_jax.window.eviction import in_the_way
from kamera_jax.window.pool import FIRST_ROWS
from kamera_jax.window.window import Mode, Window

Rerun = tuple[Chunk, Patch | None, Chunk]
"""A chunk with the patch it had, and what it is where it was run again."""


class Session:
    """A window that is kept going: a small mutable object around immutable ones.

    When what comes does not fit, the oldest entries that are not pinned leave the window. They stay in host memory with
    their patches, so that they can be recalled, up to a bound: a stream runs at fixed memory, on the device and beside.
    An operation that fails leaves the session as it was. One thread at a time.
    """

    def __init__(
        self,
        vlm: Backbone,
        capacity: int,
        *,
        mode: Mode = "materialise",
        memory_bytes: int | None = MEMORY,
        rank: int | None = None,
        policy: ReusePolicy | None = None,
        store: Store | None = None,
    ) -> None:
        """Begin with the preamble alone.

        Args:
            vlm: the model.
            capacity: slots of the window.
            mode: how the window keeps its chunks; see `Window.empty`.
            memory_bytes: at most so much host memory for evicted chunks, the least recently used of which are dropped;
                None for no bound. Not used with a store of the caller's.
            rank: components of the patches that are formed, in every layer; by default as in `kamera_jax.form_patch`.
            policy: when a patch may be trusted behind other chunks than it was formed behind; without one it always is.
            store: where evicted chunks go and known ones are looked for, in place of host memory: a `ChunkLibrary` that
                is open for writing, or any other `kamera_jax.store.Store`. What it holds is not encoded again.

        Raises:
            ValueError: an argument of another type, an unknown mode, a rank below 1, negative memory, or too few slots.
        """
        rank, memory_bytes = check_settings(rank, memory_bytes, policy, store)
        self._vlm = vlm
        self._window = reserved(Window.empty(vlm, capacity, mode=mode), FIRST_ROWS)
        self._memory_bytes = memory_bytes
        self._store: Store = ChunkMemory(memory_bytes) if store is None else store
        self._evicted: tuple[str, ...] = ()
        self._rank = rank
        self._policy = policy
        self._pinned: frozenset[str] = frozenset()
        self._stats = SessionStats()
        self._lent = Lent()

    @property
    def window(self) -> Window:
        """The window as it stands: the caller's to keep, whatever the session does next."""
        return self._lent.lend(self._window)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the window's chunks, in order."""
        return self._window.keys

    @property
    def evicted(self) -> tuple[str, ...]:
        """Keys of the evicted chunks that can be recalled, the least recently used first."""
        return tuple(key for key in self._evicted if self._store.has(key))

    @property
    def held(self) -> tuple[str, ...]:
        """The old name of `evicted`."""
        warnings.warn("Session.held is now Session.evicted", DeprecationWarning, stacklevel=2)
        return self.evicted

    @property
    def stats(self) -> SessionStats:
        """What the session has done so far."""
        if not isinstance(self._store, ChunkMemory):
            return self._stats
        forgotten = self._stats.forgotten + self._store.dropped
        return replace(self._stats, forgotten=forgotten, evicted_bytes=self._store.nbytes)

    def add(self, item: Any, key: str | None = None, *, patch: bool = True, pin: bool = False) -> str:
        """Put an item at the window's end.

        What the session knows, in its window or in memory, is not encoded again; nor is a patch formed again behind the
        same chunks with the same patches.

        Args:
            item: what `encode` takes, or a chunk.
            key: the item's, where it is known from before: then an item that the session knows is not even read.
            patch: form a patch on the window as it stands, or leave the chunk as it is; a chunk that is not canonical
                gets none.
            pin: keep it in the window when others are evicted; see `pin`.

        Returns:
            The chunk's key.

        Raises:
            WindowFullError: it does not fit beside what is pinned.
            ValueError: the item cannot be read, or has another key.
            ModelMismatchError, PreambleMismatchError, MissingInputsError: see `append` and `form_patch`.
            MissingKeyError: a chunk without a key.
        """
        chunk, patches, encoded = self._chunk(item, key)
        gone = in_the_way(self._window, self._pinned, Append(chunk))
        window = without(self._window, gone)
        new, formed = self._patch(chunk, patches, window) if patch else (None, 0)
        self._commit(window, gone, chunk.key, change=Append(chunk, new))
        self._count(seen=1, encoded=encoded, patched=formed)
        if pin:
            self.pin(chunk.key)
        return chunk.key

    def ask(self, text: str, *, max_new_tokens: int = 16, keep: bool = True, **options: Any) -> Generation:
        """Answer a question about the window.

        Args:
            text: the question.
            max_new_tokens: at most this many.
            keep: whether the turn stays in the window, as a chunk at its end; else the window stays as it is.
            options: of `generate`.

        Raises:
            WindowFullError: question and answer do not fit beside what is pinned.
            ValueError: see `generate`.
        """
        decoding = Decoding(max_new_tokens=max_new_tokens, keep=keep, **options)
        tail = question_tail(self._vlm, self._window, text)
        room = turn_slots(self._vlm, tail, decoding)
        advance = tail.advance + room - int(tail.length)
        gone = in_the_way(self._window, self._pinned, None, more=(room, advance))
        window = without(self._window, gone)
        answer, turn = generate_turn(self._vlm, window, text, decoding)
        if turn is None:
            return replace(answer, window=self._lent.lend(window))
        self._commit(window, gone, change=Append(turn))
        self._count(turns=1)
        return replace(answer, window=self.window)

    def recall(self, key: str, at: int | None = None) -> None:
        """Bring an evicted chunk back with the patch it had: no forward, unless the policy asks for one.

        With a policy, what comes to stand behind it is judged too; see `kamera_jax.guard.planning`.

        Args:
            key: of a chunk in memory, or in the window, where it then stands twice.
            at: before which entry of the window as it stands; None for its end.

        Raises:
            ChunkNotHeldError: the session holds no such chunk.
            ValueError: ``at`` is no place in the window.
            WindowFullError: it does not fit beside what is pinned.
        """
        known = self._find(key)
        if known is None:
            raise ChunkNotHeldError(
                f"the session has no chunk {key[:12]}: it was never added, or was dropped to stay within "
                f"memory_bytes={self._memory_bytes}; add the item again"
            )
        chunk, patches = known
        change = Recall(chunk, None, at)
        gone = in_the_way(self._window, self._pinned, change)
        window = without(self._window, gone)
        change = change.without(gone)
        change = replace(change, patch=best_patch(window, chunk, patches, change.at))
        formed = 0
        rerun: list[Rerun] = []
        if self._policy is None:
            self._commit(window, gone, key, change=change)
        else:
            window, formed, rerun = self._executed(window, change, patches)
            self._commit(window, gone, key, rerun)
        self._count(recalls=1, patched=formed)

    def replace(self, key: str, item: Any, *, patch: bool = True) -> str:
        """Put an item in place of a chunk of the window: an edited page.

        Later chunks keep their patches, or those that the policy asks for.

        Args:
            key: of the chunk; the last one where it stands several times. It can be recalled.
            item: what `encode` takes, or a chunk.
            patch: form a patch on what stands before.

        Returns:
            The new chunk's key; it is pinned if the old one was.

        Raises:
            ChunkNotHeldError: the window holds no such chunk; else see `add`.
        """
        self._check_there(key)
        place = max(i for i, each in enumerate(self.keys) if each == key)
        chunk, patches, encoded = self._chunk(item, None)
        change = Replace(place, chunk)
        gone = in_the_way(self._window, self._pinned, change)
        window = without(self._window, gone)
        change = change.without(gone)
        formed = 0
        if patch:
            before = without(window, range(change.index, len(window.entries)))
            new, formed = self._patch(chunk, patches, before)
            change = replace(change, patch=new)
        pinned = key in self._pinned
        if self._policy is None:
            self._commit(window, [*gone, place], chunk.key, change=change)
        else:
            window, cascade, rerun = self._executed(window, change)
            formed += cascade
            self._commit(window, [*gone, place], chunk.key, rerun)
        self._count(seen=1, encoded=encoded, patched=formed)
        if pinned:
            self.pin(chunk.key)
        return chunk.key

    def pin(self, key: str, pinned: bool = True) -> None:
        """Keep a chunk in the window when others are evicted (instructions, a page in work), or keep it no more.

        Raises:
            ChunkNotHeldError: the window holds no such chunk.
        """
        self._check_there(key)
        self._pinned = self._pinned | {key} if pinned else self._pinned - {key}

    def save(self, folder: str | Path) -> None:
        """Write the session to a folder: its window, and the evicted chunks in host memory.

        A process that dies meanwhile leaves there what was saved before.

        Raises:
            ValueError: the folder holds something else.
        """
        saved = SavedSession(
            window=self._window,
            memory=self._store.records if isinstance(self._store, ChunkMemory) else (),
            evicted=self.evicted,
            pinned=tuple(sorted(self._pinned)),
            memory_bytes=self._memory_bytes,
            rank=self._rank,
            stats=asdict(self.stats),
        )
        save_session(folder_of(folder), saved)

    @classmethod
    def restore(
        cls, vlm: Backbone, folder: str | Path, *, policy: ReusePolicy | None = None, store: Store | None = None
    ) -> "Session":
        """A saved session, to go on with; its policy is not saved, nor is a store of the caller's.

        Raises:
            SnapshotNotFoundError: nothing was saved in the folder.
            SnapshotCorruptError: what was saved is not as it was written.
            ModelMismatchError, PreambleMismatchError: it was another model's, or stood behind another preamble.
        """
        saved = load_session(vlm, folder_of(folder))
        window = saved.window
        memory = ChunkMemory(saved.memory_bytes, saved.memory) if store is None else store
        session = cls(
            vlm,
            window.capacity,
            mode=window.mode,
            memory_bytes=saved.memory_bytes,
            rank=saved.rank,
            policy=policy,
            store=memory,
        )
        session._window = window
        session._evicted = saved.evicted
        session._pinned = frozenset(saved.pinned)
        session._stats = SessionStats(**saved.stats)
        return session

    def _chunk(self, item: Any, key: str | None) -> tuple[Chunk, Sequence[Patch], int]:
        """The item's chunk, the patches that are known of it, and how often it had to be encoded."""
        if key is not None and (known := self._find(key)) is not None:
            return *known, 0
        item = item if isinstance(item, Chunk) else self._vlm.prepare(item)
        preamble = self._window.preamble.chunk.key
        own = item.key if isinstance(item, Chunk) else canonical_key(item, self._vlm.spec, preamble)
        if not own:
            raise MissingKeyError(
                "the chunk has no key, so it could not be found again: it was built by hand, or went through a JAX "
                "transformation or dataclasses.replace; add what encode gave, and move that with its .to(...)"
            )
        if key is not None and key != own:
            raise ValueError(f"the item has the key {own[:12]}, not {key[:12]}; give its own key, or none")
        known = self._find(own)
        if isinstance(item, Chunk):
            return item, () if known is None else known[1], 0
        return (encode_segment(self._vlm, item), (), 1) if known is None else (*known, 0)

    def _check_there(self, key: str) -> None:
        check_key(key)
        if key not in self.keys:
            raise ChunkNotHeldError(f"the window has no chunk {key[:12]}; recall it first, or add the item")

    def _find(self, key: str) -> tuple[Chunk, Sequence[Patch]] | None:
        """A chunk of the window or the store, and what patches there are of it."""
        check_key(key)
        for entry in reversed(self._window.entries):
            if entry.chunk.key == key:
                return entry.chunk, () if entry.patch is None else (entry.patch,)
        chunk = self._store.find(key)
        return None if chunk is None else (chunk, self._store.patches(key))

    def _patch(self, chunk: Chunk, patches: Sequence[Patch], window: Window) -> tuple[Patch | None, int]:
        """The chunk's patch behind a window, and how often one had to be formed."""
        if chunk.conditioned or not window.entries:
            return None, 0
        for patch in patches:
            if window.is_as_formed(chunk, patch):
                return patch, 0
        calibration = None if self._policy is None else self._policy.calibration
        sketch = None if calibration is None else calibration.sketch
        return form_patch(self._vlm, chunk, context=window, rank=self._rank, sketch=sketch), 1

    def _executed(
        self, window: Window, change: Change, patches: Sequence[Patch] = ()
    ) -> tuple[Window, int, list[Rerun]]:
        """The window after a change that the policy has judged, how many forwards that took, and what was run again."""
        assert self._policy is not None
        planned = plan(self._vlm, window, change, policy=self._policy, stored=patches)
        done = execute(self._vlm, planned)
        pairs = [(old, new) for old, new in zip(planned.steps, done.steps, strict=True) if old.chunk is not new.chunk]
        rerun = [(old.chunk, old.stored[0] if old.stored else None, new.chunk) for old, new in pairs]
        return done.window, sum(done.count(action) for action in FORWARDS), rerun

    def _owns(self, window: Window) -> bool:
        """Whether nobody else has a window with these buffers; in place, those made from one another share pools."""
        return not self._lent or (window.mode == "materialise" and window is not self._window)

    def _commit(
        self,
        window: Window,
        gone: Iterable[int],
        used: str | None = None,
        rerun: Sequence[Rerun] = (),
        change: Change | None = None,
    ) -> None:
        """Go on with a window, which the entries at the places ``gone`` are not in, and ``used`` is.

        A ``change`` is done to the window after what leaves is stored, as a store on disk may fail. What was run again
        has another key there: it stays pinned, and as it was it can be recalled.
        """
        after = window.entries if change is None else applied(window.entries, change)
        keys = {each.chunk.key for each in after}
        if change is not None:
            check_changes(window, change)
        leaving: list[Pair | Entry] = [Pair(old, patch) for old, patch, _ in rerun]
        left = [self._window.entries[place] for place in gone]
        leaving = [each for each in (*leaving, *left) if each.chunk.key not in keys]
        evicted = [key for key in self._evicted if key != used]
        if used is not None:
            self._store.release(used)
        for each in leaving:
            self._store.put(each.chunk)
            if each.patch is not None:
                self._store.put(each.patch)
            evicted = [*(key for key in evicted if key != each.chunk.key), each.chunk.key]
        if change is not None:
            window = reserved(window, (each.chunk.kv.rot.shape[1] for each in after))
            window = changed(window, change, donate=self._owns(window))
        self._evicted = tuple(evicted)
        if window.mode == "materialise":
            self._lent.forget()
        self._window = window
        self._pinned |= {new.key for old, _, new in rerun if old.key in self._pinned}
        self._pinned &= set(window.keys)
        self._count(evicted=len(left))

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})
