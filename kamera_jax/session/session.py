"""The loop an agent's author writes: add what comes, ask, slide when the window is full, recall by key."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ChunkNotHeldError, ModelLengthError, WindowFullError
from kamera_jax.guard.planning import FORWARDS
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.identity import EXACT
from kamera_jax.inference.generate import Decoding, Generation, generate_turn, question_tail, turn_slots
from kamera_jax.inference.parts import parts
from kamera_jax.library.library import ChunkLibrary
from kamera_jax.session.kept import Kept, Note, State, described, stays
from kamera_jax.session.log import Operation, served
from kamera_jax.session.memory import ChunkMemory
from kamera_jax.session.saved import load_session, save_session
from kamera_jax.session.searching import Searched, brought, searched
from kamera_jax.session.serving import Coming, Serving, standing
from kamera_jax.session.settings import MEMORY, check_settings, folder_of
from kamera_jax.session.shown import Shown
from kamera_jax.session.similar import AddsSimilar
from kamera_jax.session.stats import SessionStats
from kamera_jax.store import Store
from kamera_jax.window.changes import reserved, without
from kamera_jax.window.edits import Append, Change, Pair, Recall, Replace, applied
from kamera_jax.window.pool import FIRST_ROWS
from kamera_jax.window.window import Mode, Window


class Session(Shown, AddsSimilar):
    """A window that is kept going: a small mutable object around immutable ones.

    When what comes does not fit, the entries that were not used for longest and are not pinned leave the window. They
    stay in host memory with their patches, so that they can be recalled, up to a bound: a stream runs at fixed memory,
    on the device and beside. What comes back is served with what is stored where the policy finds that safe; `last` and
    `log` say what was done and why. An operation that fails leaves the session as it was. One thread at a time.
    """

    def __init__(
        self,
        vlm: Backbone,
        capacity: int,
        *,
        mode: Mode = "materialise",
        storage: str = EXACT,
        memory_bytes: int | None = MEMORY,
        rank: int | None = None,
        policy: ReusePolicy | None = None,
        store: Store | None = None,
    ) -> None:
        """Begin with the preamble alone.

        Args:
            vlm, capacity, mode: the model, slots of the window, and how it keeps its chunks; see `Window.empty`.
            storage: of ``mode="in_place"``, the codec that the window keeps its chunks packed in: ``"int8"``,
                ``"kivi:B"`` or ``"saw:B"``. What comes is packed by the session, kept turns too, and patches are formed
                for that; what another quantiser packed before is refused.
            memory_bytes: bound on host memory for evicted chunks and patches, or None; not for a store of the caller's.
            rank: components of the patches that are formed, in every layer; by default as in `kamera_jax.form_patch`.
            policy: what may be reused, and what is done otherwise; by default with the model's own calibration.
            store: where evicted chunks go and known ones are looked for, in place of host memory: `kamera_jax.Tiers`, a
                `ChunkLibrary` open for writing, or any other store. What it holds is not encoded again.

        Raises:
            ValueError: an argument of another type, an unknown mode, a rank below 1, negative memory, or too few slots.
            CodecError: a window of this mode cannot keep chunks in the storage.
        """
        rank, memory_bytes = check_settings(rank, memory_bytes, policy, store)
        self._vlm = vlm
        self._memory_bytes = memory_bytes
        self._rank = rank
        window = reserved(Window.empty(vlm, capacity, mode=mode, storage=storage), FIRST_ROWS)
        self._kept = Kept(State(window), ChunkMemory(memory_bytes) if store is None else store)
        self._serving = Serving(vlm, policy, rank)
        self._searched: Searched | None = None

    def __repr__(self) -> str:
        return described(self._vlm, self._kept, self._serving.policy)

    @overload
    def add(
        self, item: Any, key: str | None = None, *, segment: None = None, patch: bool = True, pin: bool = False
    ) -> str: ...

    @overload
    def add(
        self, item: Any, key: None = None, *, segment: float | int, patch: bool = True, pin: bool = False
    ) -> tuple[str, ...]: ...

    def add(
        self,
        item: Any,
        key: str | None = None,
        *,
        segment: float | int | None = None,
        patch: bool = True,
        pin: bool = False,
    ) -> str | tuple[str, ...]:
        """Put an item at the window's end, as one chunk; or a video or recording, or a file of one, segment by segment.

        What the session knows, in its window or in memory, is not encoded again. What stands in the window already
        stays where it is, and counts as just used; `recall` with a place moves it. Of what comes back, the policy
        chooses among no patch, each patch that is stored, and a fresh one or a forward of the chunk: see `last`.

        In segments a file of any length runs at fixed memory: each is read when the one before it is in the window.

        Args:
            item: what `encode` takes, a chunk, or what `kamera_jax.renew` gave.
            key: the item's, where it is known from before: then an item that the session knows is not even read.
            segment: seconds of a video or recording that are a chunk; another item stays whole. None for one chunk.
            patch: patch the chunk for the window as it stands, or leave it as it is; a chunk that is not canonical gets
                none.
            pin: keep it in the window when others are evicted; see `pin`.

        Returns:
            The chunk's key, as it stands in the window; with ``segment`` a tuple of the segments' keys, in order.

        Raises:
            WindowFullError: it does not fit beside what is pinned.
            ValueError: the item cannot be read, or has another key, or both ``key`` and ``segment`` are given.
            ModelMismatchError, PreambleMismatchError, MissingInputsError: see `append` and `form_patch`.
            StalePatchError: no stored patch will do, and the policy asks for an error.
            MissingKeyError: a chunk without a key.
            CodecError: the session's window cannot keep it in its storage: another codec packed it, say.
        """
        if segment is not None:
            if key is not None:
                raise ValueError(
                    f"both key and segment={segment} are given; a key is of one chunk: leave one of them out"
                )
            return self.add_all(item, segment=segment, patch=patch, pin=pin)
        chunk, patches, encoding = self._kept.chunk(self._vlm, item, key)
        if chunk.key in self.keys:
            pinned = chunk.key if pin else None
            self._kept.note(replace(stays("add", chunk.key), pin=pinned, counts={"seen": 1, "reused": 1}))
            return chunk.key
        try:
            return self._put("add", Append(chunk), patches, patch=patch, encoding=encoding, pin=pin).key
        except WindowFullError as error:
            if isinstance(item, Chunk) or isinstance(error, ModelLengthError):
                raise
            hint = "add a long item in parts, add_all(item), a video in segments, add(item, segment=4.0)"
            raise WindowFullError(f"{error}; or {hint}") from error

    def add_all(
        self, item: Any, *, segment: float | int | None = None, tokens: int | None = None, **options: Any
    ) -> tuple[str, ...]:
        """Put a long item at the window's end in parts, one after another: a long video runs at fixed memory.

        Where a part cannot be read or added, those before it are in the session, and the error is raised. `last` is
        about the last part alone, `log` about all.

        Args:
            item: see `kamera_jax.encode_all`; a chunk is one part.
            segment, tokens: see `kamera_jax.encode_all`.
            options: of `add`, for each part.
        """
        cut = parts(self._vlm, item, tokens, segment)
        return tuple(self.add(part, **options) for part in ((item,) if isinstance(item, Chunk) else cut))

    def ask(
        self,
        text: str,
        *,
        library: ChunkLibrary | Searched | None = None,
        top: int = 4,
        linked: bool = False,
        max_new_tokens: int = 16,
        keep: bool = True,
        **options: Any,
    ) -> Generation:
        """Answer a question about the window, and about what a library has.

        Args:
            text: the question.
            library, top: of it, or by a finder, so many chunks come into the window first, with the patches found.
            linked: whether what these were formed behind comes too, so that all is served as the policy accepts it.
            max_new_tokens, keep: at most so many tokens; whether the turn stays in the window, as a chunk at its end.
            options: of `generate`.

        Raises:
            WindowFullError: they do not fit beside what is pinned, or what was found does not: what came before stays.
            ValueError: see `generate`; with a library see `Finder`.
        """
        if library is not None:
            self._searched = searched(self._vlm, library, self._searched)
            found = brought(self._searched, text, top, self.keys, linked=linked)
            for chunk, patches, patch in [(self._kept.packed(chunk), own, patch) for chunk, own, patch in found]:
                self._put("add", Append(chunk), patches, patch=patch)
        decoding = Decoding(max_new_tokens=max_new_tokens, keep=keep, **options)
        tail = question_tail(self._vlm, self._kept.window, text)
        room = turn_slots(self._vlm, tail, decoding)
        gone = self._kept.in_the_way(None, more=(room, tail.advance + room - int(tail.length)))
        window = without(self._kept.window, gone)
        answer, turn = generate_turn(self._vlm, window, text, decoding)
        if turn is None:
            return replace(answer, window=self._kept.lent.lend(window))
        self._kept.commit(window, gone, Note(counts={"turns": 1, "evicted": len(gone)}), change=Append(turn))
        return replace(answer, window=self.window)

    def recall(self, key: str, at: int | None = None, *, patch: bool = True) -> None:
        """Bring an evicted chunk back, or move one that stands in the window.

        The policy chooses what it is served with as in `add`, and judges what comes to stand behind it likewise. A kept
        turn, which no patch can serve, comes as it was run unless the policy falls back to ``"reprefill"``.

        Args:
            key: of a chunk in memory, or in the window: that one stays where it is, or moves if a place is given.
            at: before which entry of the window as it stands; None for its end.
            patch: patch the chunk for what comes to stand before it, or bring it as it is.

        Raises:
            ChunkNotHeldError: the session holds no such chunk.
            ValueError: ``at`` is no place in the window.
            CodecError: the window cannot keep it in its storage.
            WindowFullError: it does not fit beside what is pinned.
            MissingInputsError: no stored patch will do, and the chunk was kept without what runs it again.
            StalePatchError: no stored patch will do, and the policy asks for an error.
        """
        known = self._kept.find(key)
        if known is None:
            raise ChunkNotHeldError(
                f"the session has no chunk {key[:12]}: it was never added, or was dropped to stay within "
                f"memory_bytes={self._memory_bytes}; add the item again"
            )
        chunk, patches = known
        if key not in self.keys:
            self._put("recall", Recall(chunk, None, at), patches, patch=patch)
        elif at is None:
            self._kept.note(replace(stays("recall", key), counts={"recalls": 1}))
        else:
            self._move(key, at, patch=patch)

    def replace(self, key: str, item: Any, *, patch: bool = True) -> str:
        """Put an item in place of a chunk of the window: an edited page. Later chunks are served as in `add`.

        Args:
            key: of the chunk; it can be recalled.
            item: see `add`; of an edited page what `kamera_jax.renew` gave.
            patch: form a patch on what stands before.

        Returns:
            The new chunk's key; it is pinned if the old one was.

        Raises:
            ChunkNotHeldError: the window holds no such chunk; else see `add`.
        """
        self._kept.check_there(key)
        chunk, patches, encoding = self._kept.chunk(self._vlm, item, None)
        pinned = key in self._kept.pinned
        place = self.keys.index(key)
        if chunk.key in self.keys:
            gone = [place] if chunk.key != key else []
            counts = {"seen": 1, "reused": 1, "evicted": len(gone)}
            note = replace(stays("replace", chunk.key), pin=chunk.key if pinned else None, counts=counts)
            self._kept.commit(without(self._kept.window, gone), gone, note)
            return chunk.key
        change = Replace(place, chunk)
        return self._put("replace", change, patches, patch=patch, encoding=encoding, pin=pinned).key

    def pin(self, key: str, pinned: bool = True) -> None:
        """Keep a chunk in the window when others are evicted (instructions, a page in work), or keep it no more.

        Raises:
            ChunkNotHeldError: the window holds no such chunk.
        """
        self._kept.check_there(key)
        self._kept.pin(key, pinned)

    def save(self, folder: str | Path) -> None:
        """Write the session to a folder: its window, and the evicted chunks in host memory.

        A process that dies meanwhile leaves there what was saved before.

        Raises:
            ValueError: the folder holds something else.
        """
        save_session(folder_of(folder), self._kept.saved(self.evicted, self._memory_bytes, self._rank))

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
        memory = ChunkMemory(saved.memory_bytes, saved.memory, saved.patches) if store is None else store
        kept = {"memory_bytes": saved.memory_bytes, "rank": saved.rank}
        session = cls(
            vlm, window.capacity, mode=window.mode, storage=window.storage, policy=policy, store=memory, **kept
        )
        state = State(window, saved.evicted, frozenset(saved.pinned), saved.used, SessionStats(**saved.stats))
        session._kept = Kept(state, memory)
        return session

    def _put(
        self,
        operation: Operation,
        change: Change,
        patches: Sequence[Patch],
        *,
        patch: bool | Patch,
        encoding: float = 0.0,
        pin: bool = False,
    ) -> Chunk:
        """Do an edit by which one chunk comes, and give that chunk as it then stands."""
        gone = self._kept.in_the_way(change)
        staying = [place for place in range(len(self.keys)) if place not in gone]
        after: list[int | Coming] = []
        for each in applied(staying, change.without(gone)):
            new = operation != "recall"
            after.append(Coming(each.chunk, None, tuple(patches), patch, new) if isinstance(each, Pair) else each)
        return self._arrange(operation, after, encoding=encoding, pin=pin)

    def _move(self, key: str, at: int, *, patch: bool) -> None:
        """Move a chunk of the window before another of its entries, or to its end."""
        place = self.keys.index(key)
        entry = self._kept.window.entries[place]
        coming = Coming(entry.chunk, entry.patch, tuple(self._kept.store.patches(key)), patch)
        after: list[int | Coming] = []
        for each in applied(range(len(self.keys)), Recall(entry.chunk, None, at)):
            if each != place:
                after.append(coming if isinstance(each, Pair) else each)
        if after.index(coming) == place:
            self._kept.note(replace(stays("recall", key), counts={"recalls": 1}))
        else:
            self._arrange("recall", after, moved=place)

    def _arrange(
        self,
        operation: Operation,
        after: Sequence[int | Coming],
        *,
        encoding: float = 0.0,
        moved: int | None = None,
        pin: bool = False,
    ) -> Chunk:
        """Make the window of some of its entries and one chunk that comes, which is given as it then stands.

        Args:
            after: what the window is to have: the places of its entries, and what comes.
            encoding: FLOPs that what comes took to be encoded.
            moved: its place in the window as it is, if it has one.
        """
        window = self._kept.window
        came = next(i for i, each in enumerate(after) if isinstance(each, Coming))
        first = came if moved is None else min(came, moved)
        coming = [each if isinstance(each, Coming) else standing(window, each) for each in after[first:]]
        leaving = [place for place in range(len(self.keys)) if place not in (*after, moved)]
        staying = without(window, [place for place in range(len(self.keys)) if place not in after[:first]])
        staying, steps = self._serving.steps(staying, coming, keep=window)
        change = Append(steps[-1].chunk, steps[-1].patch)
        chunk = steps[came - first].chunk
        records = tuple(served(operation, step, came=step.chunk is chunk, encoding=encoding) for step in steps)
        counts = {
            "recalls": int(operation == "recall"),
            "seen": int(operation != "recall"),
            "encoded": int(encoding > 0),
            "patched": sum(step.action in FORWARDS for step in steps),
            "reused": int(records[came - first].reused),
            "evicted": len(leaving),
        }
        note = Note(use=chunk.key, pin=chunk.key if pin else None, records=records, counts=counts)
        self._kept.commit(staying, leaving, note, list(zip(coming, steps, strict=True)), change)
        return chunk
