"""The lowest tier: a library on disk, or none."""

import contextlib
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import (
    ChunkNotFoundError,
    CodecError,
    LibraryCorruptError,
    LibraryDiskError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    UnstorableError,
)
from kamera_jax.identity import EXACT
from kamera_jax.library.library import ChunkLibrary
from kamera_jax.record import PatchRecord
from kamera_jax.tiers.forms import Embedded, Packed, device_bytes
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.stats import TierStats
from kamera_jax.tiers.usage import record
from kamera_jax.tiers.value import Held, Value

UNSTORED = (LibraryFullError, LibraryDiskError, LibraryNotFoundError, LibraryReadOnlyError, OSError)
"""Why a library cannot store anything now."""

TOGETHER = 16
"""Chunks of one pack that are read at once when they are fetched ahead, at most."""

COLLECT = 1 / 8
"""Of the budget: what may be deleted before its room is made free."""


class Disk:
    """A library below other tiers: what leaves them is stored there, within a budget of what they stored.

    Nothing that others put there is ever deleted.
    """

    def __init__(self, library: ChunkLibrary | None, codec: str | None, shelf: Shelf, policy: Value) -> None:
        """Nothing was stored yet; see `kamera_jax.Tiers`."""
        self._library = library
        self._codec = codec
        self._shelf = shelf
        self._policy = policy
        self._deleted = 0
        self._seconds = 0.0  # of a byte that was read, lately
        self._closed = False

    def __str__(self) -> str:
        return "no library" if self._library is None else f"the library {Path(self._library.root).name!r}"

    def has(self, key: str) -> bool:
        """Whether the library has a chunk or patch of this key."""
        return self._library is not None and self._library.has(key)

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """A chunk, read and verified; see `ChunkLibrary.find`."""
        if self._library is None:
            return None
        began = time.perf_counter()
        chunk = self._library.find(key, codec)
        if chunk is not None:
            seconds = (time.perf_counter() - began) / max(device_bytes(chunk), 1)
            self._seconds = seconds if not self._seconds else 0.8 * self._seconds + 0.2 * seconds
        return chunk

    def slower(self, key: str, seconds: float) -> bool:
        """Whether reading a chunk takes longer than so many seconds, as far as is known."""
        if self._library is None:
            return True
        try:
            return self._seconds * self._library.info(key).bytes > seconds
        except (ChunkNotFoundError, LibraryCorruptError):
            return True

    def patches(self, key: str, there: Container[str]) -> tuple[Patch, ...]:
        """The patches of a chunk that are not there already; see `ChunkLibrary.patches`."""
        if self._library is None:
            return ()
        try:
            keys = self._library.info(key).patches
        except ChunkNotFoundError:  # patches may be stored without their chunk
            return tuple(patch for patch in self._library.patches(key) if patch.key not in there)
        found = []
        for each in keys:
            if each not in there:
                with contextlib.suppress(ChunkNotFoundError):  # deleted meanwhile
                    found.append(self._library.get_patch(each))
        return tuple(found)

    def together(self, keys: Sequence[str]) -> Sequence[str]:
        """Of keys the first, and others of its pack."""
        found: list[str] = []
        packs: set[str] = set()
        if self._library is None:
            return keys[:1]
        for key in keys:
            try:
                pack = self._library.info(key).pack
            except (ChunkNotFoundError, LibraryCorruptError):
                pack = ""
            if not found or (pack and pack in packs):
                found.append(key)
                packs.add(pack)
            if len(found) == TOGETHER:
                break
        return found or keys[:1]

    def read(self, keys: Sequence[str]) -> dict[str, Chunk | None | Exception]:
        """Chunks, read several at once: of each key the chunk, None where there is none, or why it cannot be read."""
        if self._library is None or not keys:
            return {}
        try:
            return dict(zip(keys, self._library.get_many(keys), strict=True))
        except ValueError:  # of one of them, or of several
            found: dict[str, Chunk | None | Exception] = {}
            for key in keys:
                try:
                    found[key] = self._library.find(key)
                except Exception as error:
                    found[key] = error
            return found

    def write(self, leaving: Sequence[Held]) -> dict[str, int]:
        """Store what left the tiers above, in one pack of each kind; what is there already is left as it is.

        Returns:
            What `TierStats` counts of it.

        Raises:
            UNSTORED: nothing was stored.
        """
        leaving = [held for held in leaving if not isinstance(held.item, Embedded)]
        new = [held for held in leaving if not self.has(held.key)]
        if self._library is None or self._library.mode == "r":
            return {"dropped": sum(not isinstance(held.item, PatchRecord) for held in new)}
        shelf = self._shelf.copied()
        gone: list[Held] = []
        for held in new:
            gone += shelf.offer(replace(held, item=None), self._policy) or ()
        stored = [held for held in new if held.key in shelf]
        failed = self._put(self._library, stored)
        for key in failed:
            shelf.drop(key)
        lost = [held for held in new if held.key not in shelf and not isinstance(held.item, PatchRecord)]
        for held in gone:
            if held.key not in shelf and self._library.delete(held.key):
                self._deleted += held.nbytes
                for patch in [each.key for each in shelf if each.of == held.key]:  # they go with their chunk
                    shelf.drop(patch)
        self._shelf = shelf
        if shelf.limit is not None and self._deleted > COLLECT * shelf.limit:
            self._deleted = 0
            self._library.gc()
        return {"dropped": len(lost), "written_bytes": sum(held.nbytes for held in stored if held.key not in failed)}

    def _put(self, library: ChunkLibrary, stored: Sequence[Held]) -> set[str]:
        """Store these, and give the keys of those that no library can store."""
        items = [held.item if isinstance(held.item, Chunk) else _unpacked(held.item) for held in stored]
        packed = [item for item in items if self._codec is not None and item.codec == EXACT and isinstance(item, Chunk)]
        rest = [item for item in items if all(item is not each for each in packed)]
        failed: set[str] = set()
        for some, storage in ((packed, self._codec or EXACT), (rest, EXACT)):
            try:
                library.put_many(some, storage=storage)
            except (UnstorableError, CodecError):
                for item in some:
                    try:
                        library.put(item)
                    except UnstorableError:
                        failed.add(item.key)
        return failed

    def close(self, stats: TierStats) -> None:
        """Write down what was served, once, where the library may be written to."""
        if self._library is not None and self._library.mode == "a" and stats.looks and not self._closed:
            self._closed = True
            with contextlib.suppress(OSError, ValueError):  # it is for people to read, and no more
                record(Path(self._library.root), stats)


def _unpacked(item: Packed | PatchRecord) -> Chunk | Patch:
    return item.chunk() if isinstance(item, Packed) else item.unpacked()
