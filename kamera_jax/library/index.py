"""Which pack holds which key. The packs are the truth: this is what was seen of them, seen again when they change.

Folder times tell of a change, where they are fine enough and old enough to be relied on, and so does a counter of
changes, which no clock has a part in. Which rows were deleted say `kamera_jax.library.marks`.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library import marks
from kamera_jax.library.files import MALFORMED
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.index_file import PackKeys, keys_of, write
from kamera_jax.library.manifest import Manifest
from kamera_jax.library.packs import Pack
from kamera_jax.library.places import FOLDERS as FOLDERS
from kamera_jax.library.places import Place
from kamera_jax.library.rows import Kind
from kamera_jax.library.stamps import Stamps, settled

OPEN_PACKS = 256
OPEN_ROWS = 2**15
"""Manifests kept in memory, of the packs last read: so many, of no more rows together."""

_SCANS = 10
"""A library that changes while it is looked at is looked at again, so many times."""


class Index:
    """What is alive in a library, as last seen. Any thread may ask; one process may hold several.

    Attributes:
        place: where the library lies.
        damaged: packs whose manifest cannot be read, and why.
        broken: other files that are not as they were written, though nothing is lost with them, and what to do.
        names: every pack that is there, readable or not.
        through: the folder that the one writer's changes come out of; see `kamera_jax.library.writers.Turn`.
    """

    def __init__(self, place: Place) -> None:
        """Nothing is read yet but the index file."""
        self.place = place
        self._pid = os.getpid()
        self.damaged: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.names: dict[str, Kind] = {}
        self.through: Path | None = None
        self._packs: dict[str, PackKeys] = {}
        self._missing: dict[str, PackKeys] = {}
        self._rows: dict[str, tuple[str, ...]] = {}  # the packs of a key, the first seen first
        self._patches: dict[str, dict[str, None]] = {}  # the patches of a chunk
        self._missing_of: dict[str, list[str]] | None = None  # the packs of a key that are missing
        self._open: OrderedDict[str, Pack] = OrderedDict()
        self._open_rows = 0
        self._marks = place.marks()  # before the index file: a collection between the two is noticed
        self._deleted: frozenset[str] = frozenset()
        self._indexed, self._index_broken = place.listed()
        self._missing |= self._indexed
        self._saved = frozenset(self._indexed)
        self._seen: tuple[Stamps, int] = ((), 0)
        self._lock = threading.RLock()

    @property
    def root(self) -> Path:
        """The folder, for who writes to it."""
        return Path(self.place.root)

    def refresh(self, *, force: bool = False, locked: bool = False) -> None:
        """Read what has changed since, if anything has.

        Args:
            force: look again, whatever the stamps say, and at damaged packs too.
            locked: the caller is the one writer: who writes counts the change, so no time need be old.
        """
        check_unforked(f"the library at {self.place.root}", self._pid)  # its lock may never be released here
        with self._lock, self.place.errors():
            now = time.time_ns()
            current = self.place.stamps()
            before, at = self._seen
            if not force and current == before and (locked or settled(before, at)):
                return
            if force:
                self.damaged.clear()
            for _ in range(_SCANS):
                self._scan()
                self._seen = (current, now)
                now = time.time_ns()
                if (after := self.place.stamps()) == current:
                    break
                current = after

    def _scan(self) -> None:
        last = self._marks
        self._marks = self.place.marks()
        # Marks first, and those of the look before too: one goes away only after its pack.
        deleted = self._marks.deleted | self._deleted
        there: dict[str, Kind] = {}
        for kind in FOLDERS:
            there |= dict.fromkeys(self.place.names(kind), kind)
        for mark in deleted - self._deleted:
            pack, _, key = mark.partition(".")
            if key and pack in self._packs:
                self._remove_row(pack, key)
        self._deleted = deleted
        for name, kind in there.items():
            if name not in self._packs and name not in self.damaged and name not in deleted:
                self._see(name, kind)
        for name in [name for name in self._packs if name not in there or name in deleted]:
            keys = self._packs.pop(name)
            self._close(name)
            for key in keys.keys:
                self._remove_row(name, key)
            self._missing[name] = keys
        for name in [name for name in self.damaged if name not in there]:
            del self.damaged[name]
        if self._marks.collection != last.collection:  # what is gone was collected, or given up
            self._missing.clear()
            self._indexed = {}
        for name in [name for name in self._missing if name in there or name in deleted]:
            del self._missing[name]
        self._deleted = self._marks.deleted
        self.names = there
        self.broken = self._marks.broken | self._index_broken
        self._missing_of = None

    def _see(self, name: str, kind: Kind) -> None:
        keys = self._indexed.get(name)
        if keys is None or keys.kind != kind:
            try:
                keys = keys_of(self._opened(name, kind).manifest)
            except FileNotFoundError:  # collected meanwhile
                return
            except (OSError, *MALFORMED) as error:
                self.damaged[name] = str(error)
                return
        self._add(name, keys)

    def _add(self, name: str, keys: PackKeys) -> None:
        self._packs[name] = keys
        alone = (name,)
        for key, chunk in zip(keys.keys, keys.chunks, strict=True):
            if self._deleted and f"{name}.{key}" in self._deleted:
                continue
            if (packs := self._rows.setdefault(key, alone)) is not alone:
                self._rows[key] = (*packs, name)
            if keys.kind == "patches":
                self._patches.setdefault(chunk, {})[key] = None

    def _remove_row(self, name: str, key: str) -> None:
        packs = tuple(each for each in self._rows.get(key, ()) if each != name)
        if packs:
            self._rows[key] = packs
        else:
            self._rows.pop(key, None)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The context in which the caller, the one writer, changes the library and says so here.

        The change is counted before and after: whoever looks in between looks again, and so does whoever comes after a
        writer that died in between.
        """
        with self._lock:
            known = self.place.stamps() == self._seen[0]
        marks.count_change(self.root)
        try:
            yield
        except BaseException:
            self._seen = ((), 0)
            raise
        finally:
            marks.count_change(self.root)
        with self._lock:
            if self.through is not None:
                self._seen = ((), 0)  # of a lease that was taken over since, others have changed it
            elif known:
                self._seen = (self.place.stamps(), time.time_ns())

    def added(self, name: str, manifest: Manifest) -> None:
        """Know of a pack that was written; see `changing`."""
        with self._lock:
            if name not in self._packs:
                self._add(name, keys_of(manifest))
                self.names[name] = manifest.kind
                self._missing_of = None

    def removed(self, names: Iterable[str]) -> None:
        """Forget packs that were collected; see `changing`."""
        with self._lock:
            for name in names:
                self._close(name)
                self.names.pop(name, None)
                self.damaged.pop(name, None)
                self._missing.pop(name, None)
                if (keys := self._packs.pop(name, None)) is not None:
                    for key in keys.keys:
                        self._remove_row(name, key)
            self._missing_of = None

    def folder(self, kind: Kind) -> Path:
        """The folder of the packs of a kind."""
        return self.root / FOLDERS[kind]

    def find(self, key: str, kind: Kind) -> Pack | None:
        """A pack in which the key is alive, or None.

        Raises:
            LibraryCorruptError: its manifest is not as it was written.
            FileNotFoundError: it is gone since it was seen.
        """
        with self._lock:
            for name in self._rows.get(key, ()):
                if self._packs[name].kind == kind:
                    return self._opened(name, kind)
            return None

    def _opened(self, name: str, kind: Kind) -> Pack:
        if name not in self._open:
            pack = Pack(self.place.files(kind, name))
            self._open[name] = pack
            self._open_rows += len(pack.manifest.entries)
            while len(self._open) > 1 and (len(self._open) > OPEN_PACKS or self._open_rows > OPEN_ROWS):
                self._close(next(iter(self._open)))
        self._open.move_to_end(name)
        return self._open[name]

    def _close(self, name: str) -> None:
        if (pack := self._open.pop(name, None)) is not None:
            self._open_rows -= len(pack.manifest.entries)

    @contextmanager
    def ahead(self, keys: Iterable[str], kind: Kind) -> Iterator[None]:
        """The context in which rows are asked for, of each pack in few requests; what is wrong says who reads them."""
        of: dict[str, tuple[Pack, list[str]]] = {}
        with ExitStack() as stack:
            for key in keys:
                with suppress(LibraryCorruptError, FileNotFoundError):
                    if (pack := self.find(key, kind)) is not None:
                        of.setdefault(pack.name, (pack, []))[1].append(key)
            for pack, own in of.values():
                with suppress(LibraryCorruptError, FileNotFoundError):
                    stack.enter_context(pack.ahead(own))
            yield

    def pack(self, name: str) -> Pack:
        """A pack by its name.

        Raises:
            KeyError: there is none.
            LibraryCorruptError, FileNotFoundError: see `find`.
        """
        with self._lock:
            return self._opened(name, self._packs[name].kind)

    def packs(self) -> dict[str, PackKeys]:
        """Every pack that can be read, by name."""
        with self._lock:
            return dict(self._packs)

    def packs_of(self, key: str) -> tuple[str, ...]:
        """Packs in which the key is alive."""
        with self._lock:
            return self._rows.get(key, ())

    def kinds_of(self, key: str) -> set[Kind]:
        """The kinds of the packs in which the key is alive."""
        with self._lock:
            return {self._packs[name].kind for name in self._rows.get(key, ())}

    def keys(self, kind: Kind) -> tuple[str, ...]:
        """Everything of a kind that is alive."""
        with self._lock:
            return tuple(
                key for key, packs in self._rows.items() if any(self._packs[name].kind == kind for name in packs)
            )

    def keys_from(self, start: str) -> dict[str, set[Kind]]:
        """Keys that begin so, in order, and of which kinds they are; those of what was lost with its pack too."""
        with self._lock:
            found: dict[str, set[Kind]] = {key: self.kinds_of(key) for key in self._rows if key.startswith(start)}
            for key in self._missing_packs():
                if key.startswith(start) and (pack := self.lost_pack(key)) is not None:
                    found[key] = {self._missing[pack].kind}
            return dict(sorted(found.items()))

    def patched_from(self, start: str) -> tuple[str, ...]:
        """Keys of chunks that begin so and that have patches which are alive; the chunk need not be there."""
        with self._lock:
            return tuple(sorted(key for key in self._patches if key.startswith(start) and self.patches(key)))

    def patches(self, chunk: str) -> tuple[str, ...]:
        """Keys of the patches of a chunk that are alive."""
        with self._lock:
            return tuple(sorted(key for key in self._patches.get(chunk, ()) if key in self._rows))

    def live(self, name: str) -> tuple[str, ...]:
        """Keys whose first living row is in the pack."""
        with self._lock:
            keys = self._packs[name].keys if name in self._packs else ()
            return tuple(key for key in keys if self._rows.get(key, ("",))[0] == name)

    def dead(self) -> list[str]:
        """Packs of which no row is alive, and those that an earlier version dropped and did not remove."""
        with self._lock:
            dead = [
                name for name, at in self._packs.items() if not any(name in self._rows.get(key, ()) for key in at.keys)
            ]
            return dead + [name for name in self.names if name in self._deleted]

    def lost(self) -> dict[str, str]:
        """Keys that are alive in no pack because theirs is gone, and the pack."""
        with self._lock:
            return {key: pack for key in self._missing_packs() if (pack := self.lost_pack(key)) is not None}

    def lost_pack(self, key: str) -> str | None:
        """The pack with which a key was lost; None if it is alive, was deleted, or was never there."""
        with self._lock:
            packs = () if key in self._rows else self._missing_packs().get(key, ())
            return next((name for name in packs if f"{name}.{key}" not in self._deleted), None)

    def _missing_packs(self) -> dict[str, list[str]]:
        if self._missing_of is None:
            self._missing_of = {}
            for name, at in self._missing.items():
                for key in at.keys:
                    self._missing_of.setdefault(key, []).append(name)
        return self._missing_of

    def mark_deleted(self, keys: Iterable[str]) -> bool:
        """Delete the rows of keys, those of packs that are gone too; the caller is the one writer.

        Returns:
            Whether there was a row to delete.

        Raises:
            OSError: the marks cannot be written, and nothing is deleted.
        """
        with self._lock:
            rows = [
                (name, key)
                for key in dict.fromkeys(keys)
                for name in (*self._rows.get(key, ()), *self._missing_packs().get(key, ()))
                if f"{name}.{key}" not in self._deleted
            ]
        self._mark(rows)
        return bool(rows)

    def mark_packs(self, packs: Iterable[str]) -> None:
        """Delete every row of packs whose files cannot be removed; see `mark_deleted`."""
        with self._lock:
            rows = [(name, key) for name in packs for key in self._packs[name].keys if name in self._rows.get(key, ())]
        self._mark(rows)

    def _mark(self, rows: list[tuple[str, str]]) -> None:
        new = [f"{name}.{key}" for name, key in rows]
        if new:
            with self.changing():
                marks.add(self.root, new, self.through)
                with self._lock:
                    self._deleted |= frozenset(new)
                    for name, key in rows:
                        self._remove_row(name, key)

    def save(self) -> bool:
        """Write down which keys are where, so that the next to open need not read every manifest; whether it is."""
        with self._lock:
            known = self._packs | self._missing
            if known.keys() != self._saved or self._index_broken:
                try:
                    write(self.root, known, self.through)
                except (OSError, ValueError):  # the packs say the same
                    return False
                self._saved = frozenset(known)
                self._index_broken = {}
            return True

    def collected(self) -> None:
        """End a collection: what is lost is given up, and marks of packs that are gone go too."""
        with self._lock:
            gone = any(mark.partition(".")[0] not in self.names for mark in self._deleted)
            if not (gone or self._missing or self.broken or self._saved != self._packs.keys()):
                return
        with self.changing():
            with self._lock:
                self._missing.clear()
                self._missing_of = None
                if self.save():
                    marks.keep(self.root, self.names, self.through)
                self._marks = self.place.marks()
                self._deleted = self._marks.deleted
                self.broken = self._marks.broken | self._index_broken
