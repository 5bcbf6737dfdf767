"""The loop an agent's author writes: add what comes, ask, slide when the window is full, recall by key."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ChunkNotHeldError, MissingKeyError
from kamera_jax.guard.planning import FORWARDS, Change, Recall, Replace, execute, plan
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.identity import canonical_key
from kamera_jax.inference.encode import encode_segment, form_patch
from kamera_jax.inference.generate import Generation, generate, question_tail, turn_slots
from kamera_jax.session.memory import ChunkMemory
from kamera_jax.session.saved import SavedSession, load_session, save_session
from kamera_jax.session.stats import SessionStats
from kamera_jax.window.changes import append, recall, replace_entry, without
from kamera_jax.window.eviction import in_the_way, layout_of
from kamera_jax.window.window import Mode, Window

Rerun = tuple[Chunk, Patch | None, Chunk]
"""A chunk with the patch it had, and what it is where it was run again."""

MEMORY = 2**30
"""Bytes of host memory for evicted chunks unless said: 1 GiB."""


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
        rank: int = 32,
        policy: ReusePolicy | None = None,
    ) -> None:
        """Begin with the preamble alone.

        Args:
            vlm: the model.
            capacity: slots of the window.
            mode: as of `Window.empty`.
            memory_bytes: at most so much host memory for evicted chunks, the longest unused of which are dropped; None
                for no bound.
            rank: components of the patches that are formed.
            policy: when a patch may be trusted behind other chunks than it was formed behind; without one it always is.

        Raises:
            WindowFullError: the preamble does not fit.
            ValueError: an unknown or unsupported mode, a rank below 1, or negative memory.
        """
        if rank < 1 or (memory_bytes or 0) < 0:
            raise ValueError(f"rank must be ≥ 1 and memory_bytes ≥ 0 or None; got {rank} and {memory_bytes}")
        self._vlm = vlm
        self._window = Window.empty(vlm, capacity, mode=mode)
        self._memory = ChunkMemory(memory_bytes)
        self._rank = rank
        self._policy = policy
        self._pinned: frozenset[str] = frozenset()
        self._stats = SessionStats()
        self._lent = False

    @property
    def window(self) -> Window:
        """The window as it stands: the caller's to keep, whatever the session does next."""
        self._lent = True
        return self._window

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the window's chunks, in order."""
        return self._window.keys

    @property
    def held(self) -> tuple[str, ...]:
        """Keys of the evicted chunks that can be recalled, the longest unused first."""
        return self._memory.keys

    @property
    def stats(self) -> SessionStats:
        """What the session has done so far."""
        return replace(self._stats, held_bytes=self._memory.nbytes)

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
            ModelMismatchError, PreambleMismatchError, MissingInputsError: as of `append` and `form_patch`.
            MissingKeyError: a chunk without a key.
        """
        chunk, old, encoded = self._chunk(item, key)
        gone = in_the_way(self._window, self._pinned, [*layout_of(self._window), (None, chunk.length, chunk.advance)])
        window = without(self._window, gone)
        new, formed = self._patch(chunk, old, window) if patch else (None, 0)
        self._commit(append(window, chunk, new, donate=self._owns(window)), gone, chunk.key)
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
            options: as of `generate`.

        Raises:
            WindowFullError: question and answer do not fit beside what is pinned.
            ValueError: as of `generate`.
        """
        tail = question_tail(self._vlm, self._window, text)
        room = turn_slots(self._vlm, tail, max_new_tokens, keep)
        advance = tail.advance + room - int(tail.length)
        gone = in_the_way(self._window, self._pinned, [*layout_of(self._window), (None, room, advance)])
        window = without(self._window, gone)
        answer = generate(self._vlm, window, text, max_new_tokens=max_new_tokens, keep=keep, **options)
        if keep:
            self._commit(answer.window, gone)
            self._count(turns=1)
        self._lent = True  # to the caller, in the answer
        return answer

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
        layout = layout_of(self._window)
        if at is not None and not 0 <= at <= len(layout):
            raise ValueError(f"at must be in 0..{len(layout)}; got {at}")
        if (known := self._find(key)) is None:
            raise ChunkNotHeldError(
                f"the session holds no chunk {key[:12]}: it was never added, or was dropped to stay within "
                f"memory_bytes={self._memory.limit}; add the item again"
            )
        chunk, patch = known
        place = len(layout) if at is None else at
        gone = in_the_way(
            self._window, self._pinned, [*layout[:place], (None, chunk.length, chunk.advance), *layout[place:]]
        )
        window = without(self._window, gone)
        formed = 0
        rerun: list[Rerun] = []
        there = place - sum(other < place for other in gone)
        if self._policy is not None:
            window, formed, rerun = self._executed(window, Recall(chunk, patch, there))
        elif place == len(layout):
            window = append(window, chunk, patch, donate=self._owns(window))
        else:
            window = recall(window, chunk, patch, at=there)
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
            ChunkNotHeldError: the window holds no such chunk. Else as of `add`.
        """
        self._check_there(key)
        place = max(i for i, each in enumerate(self.keys) if each == key)
        chunk, old, encoded = self._chunk(item, None)
        layout = layout_of(self._window)
        layout[place] = (None, chunk.length, chunk.advance)
        gone = in_the_way(self._window, self._pinned, layout)
        window = without(self._window, gone)
        index = place - sum(other < place for other in gone)
        new = None
        formed = 0
        if patch:
            new, formed = self._patch(chunk, old, without(window, range(index, len(window.entries))))
        pinned = key in self._pinned
        rerun: list[Rerun] = []
        if self._policy is None:
            window = replace_entry(window, index, chunk, new)
        else:
            window, cascade, rerun = self._executed(window, Replace(index, chunk, new))
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
        """Write the session to a folder: its window, and what is held in memory.

        A process that dies meanwhile leaves there what was saved before.

        Raises:
            ValueError: the folder holds something else.
        """
        memory = self._memory
        pinned = tuple(sorted(self._pinned))
        saved = SavedSession(self._window, memory.records, pinned, memory.limit, self._rank, asdict(self.stats))
        save_session(Path(folder), saved)

    @classmethod
    def restore(cls, vlm: Backbone, folder: str | Path, *, policy: ReusePolicy | None = None) -> "Session":
        """A saved session, to go on with; its policy is not saved.

        Raises:
            SnapshotNotFoundError: nothing was saved in the folder.
            SnapshotCorruptError: what was saved is not as it was written.
            ModelMismatchError, PreambleMismatchError: it was another model's, or stood behind another preamble.
        """
        saved = load_session(vlm, Path(folder))
        session = cls(
            vlm,
            saved.window.capacity,
            mode=saved.window.mode,
            memory_bytes=saved.memory_bytes,
            rank=saved.rank,
            policy=policy,
        )
        session._window = saved.window
        session._pinned = frozenset(saved.pinned)
        session._stats = SessionStats(**saved.stats)
        session._memory = ChunkMemory(saved.memory_bytes, saved.held)
        return session

    def _chunk(self, item: Any, key: str | None) -> tuple[Chunk, Patch | None, int]:
        """The item's chunk, the patch that the session last had it with, and how often it had to be encoded."""
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
            return item, None if known is None else known[1], 0
        return (encode_segment(self._vlm, item), None, 1) if known is None else (*known, 0)

    def _check_there(self, key: str) -> None:
        if key not in self.keys:
            raise ChunkNotHeldError(f"the window holds no chunk {key[:12]}; recall it first, or add the item")

    def _find(self, key: str) -> tuple[Chunk, Patch | None] | None:
        for entry in reversed(self._window.entries):
            if entry.chunk.key == key:
                return entry.chunk, entry.patch
        return self._memory.find(key)

    def _patch(self, chunk: Chunk, old: Patch | None, window: Window) -> tuple[Patch | None, int]:
        """The chunk's patch behind a window, and how often one had to be formed."""
        if chunk.conditioned or not window.entries:
            return None, 0
        if old is not None and window.is_as_formed(chunk, old):
            return old, 0
        calibration = None if self._policy is None else self._policy.calibration
        sketch = None if calibration is None else calibration.sketch
        return form_patch(self._vlm, chunk, context=window, rank=self._rank, sketch=sketch), 1

    def _executed(self, window: Window, change: Change) -> tuple[Window, int, list[Rerun]]:
        """The window after a change that the policy has judged, how many forwards that took, and what was run again."""
        assert self._policy is not None
        planned = plan(self._vlm, window, change, policy=self._policy)
        done = execute(self._vlm, planned)
        pairs = [(old, new) for old, new in zip(planned.steps, done.steps, strict=True) if old.chunk is not new.chunk]
        rerun = [(old.chunk, old.held[0] if old.held else None, new.chunk) for old, new in pairs]
        return done.window, sum(done.count(action) for action in FORWARDS), rerun

    def _owns(self, window: Window) -> bool:
        """Whether nobody else has a window with these buffers; in place, those made from one another share pools."""
        return not self._lent or (window.mode == "materialise" and window is not self._window)

    def _commit(
        self, window: Window, gone: Iterable[int], used: str | None = None, rerun: Sequence[Rerun] = ()
    ) -> None:
        """Go on with a window, which the entries at the places ``gone`` are not in, and ``used`` is.

        What was run again has another key there: it stays pinned, and as it was it can be recalled.
        """
        entries = [self._window.entries[place] for place in gone]
        self._window = window
        self._lent = self._lent and window.mode == "in_place"
        self._pinned |= {new.key for old, _, new in rerun if old.key in self._pinned}
        self._pinned &= set(window.keys)
        if used is not None:
            self._memory.release(used)
        for old, patch, _ in rerun:
            if old.key not in window.keys:
                self._count(forgotten=self._memory.hold(old, patch))
        for entry in entries:
            forgotten = 0 if entry.chunk.key in window.keys else self._memory.hold(entry.chunk, entry.patch)
            self._count(evicted=1, forgotten=forgotten)

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})
