"""Which pack holds which key. The packs are the truth: this is what was seen of them, seen again when they change.

A deleted mark, an empty file in the folder ``tombstones``, names a row that was deleted, ``<pack>.<key>``, or a pack
that a collection dropped.
"""

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library.failures import reading_errors
from kamera_jax.library.files import MALFORMED, read_sealed, sync, write_sealed
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.manifest import KEY, Manifest
from kamera_jax.library.opening import folder_stamp, open_regular
from kamera_jax.library.packs import Pack
from kamera_jax.library.rows import Kind

FOLDERS: dict[Kind, str] = {"chunks": "packs", "patches": "patches"}
"""The folder of the packs of each kind."""

TOMBSTONES = "tombstones"
INDEX = "index.json"

PACK = re.compile(r"[0-9a-f]{32}")
OPEN_PACKS = 64
"""Manifests kept in memory, of the packs last read."""

_SETTLED_NS = 100_000_000
"""Two changes of a folder within a tick of the file system's clock look like one: no younger time is relied on."""


@dataclass(frozen=True)
class PackKeys:
    """The keys of a pack's rows, and for each the chunk it is of: itself, or the patch's."""

    kind: Kind
    keys: tuple[str, ...]
    chunks: tuple[str, ...]


class Index:
    """What is alive in a library, as last seen. Any thread may ask; one process may hold several.

    Attributes:
        damaged: packs whose manifest cannot be read, and why.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is read yet."""
        self.root = root
        self._pid = os.getpid()
        self.damaged: dict[str, str] = {}
        self._packs: dict[str, PackKeys] = {}
        self._missing: dict[str, PackKeys] = {}
        self._rows: dict[str, dict[str, None]] = {}  # the packs of a key, the first seen first
        self._patches: dict[str, dict[str, None]] = {}  # the patches of a chunk
        self._deleted: set[str] = set()
        self._open: OrderedDict[str, Pack] = OrderedDict()
        self._indexed: dict[str, PackKeys] = _read_index(root)
        self._seen: tuple[tuple[int, ...], int] = ((), 0)
        self._watched = [str(root / name) for name in (*FOLDERS.values(), TOMBSTONES)]
        self._lock = threading.RLock()

    def refresh(self, *, force: bool = False) -> None:
        """Read what has changed since, if anything has."""
        check_unforked(f"the library at {self.root}", self._pid)  # its lock may never be released here
        with self._lock, reading_errors(self.root):
            now = time.time_ns()
            stamps = tuple(map(folder_stamp, self._watched))
            before, at = self._seen
            if not force and stamps == before and at - max(stamps) > _SETTLED_NS:
                return
            self._scan()
            self._seen = (stamps, now)

    def _scan(self) -> None:
        # Deleted marks first: of what is collected meanwhile the copy is seen, or the old pack, not yet marked.
        deleted = set(os.listdir(self.root / TOMBSTONES))
        there: dict[str, Kind] = {}
        for kind in FOLDERS:
            there |= {name: kind for name in os.listdir(self.folder(kind)) if PACK.fullmatch(name)}
        for name, kind in there.items():
            if name not in self._packs and name not in self.damaged and name not in deleted:
                self._see(name, kind)
        for name in [name for name in self._packs if name not in there or name in deleted]:
            keys = self._packs.pop(name)
            self._open.pop(name, None)
            self._remove_pack(name, keys)
            if name not in deleted:
                self._missing[name] = keys
        for name in [name for name in self.damaged if name not in there]:
            del self.damaged[name]
        for name, keys in self._indexed.items():  # in the index file, and perhaps never seen
            if name not in there and name not in deleted:
                self._missing.setdefault(name, keys)
        for mark in deleted - self._deleted:
            pack, _, key = mark.partition(".")
            if key and pack in self._packs:
                self._remove_row(pack, key)
            if not key:
                self._missing.pop(pack, None)
        self._deleted = deleted

    def _see(self, name: str, kind: Kind) -> None:
        keys = self._indexed.get(name)
        if keys is None or keys.kind != kind:
            try:
                keys = _keys(self._opened(name, kind).manifest)
            except FileNotFoundError:  # collected meanwhile
                return
            except (LibraryCorruptError, OSError, *MALFORMED) as error:
                self.damaged[name] = str(error)
                return
        self._packs[name] = keys
        self._missing.pop(name, None)
        for key, chunk in zip(keys.keys, keys.chunks, strict=True):
            if f"{name}.{key}" not in self._deleted:
                self._rows.setdefault(key, {})[name] = None
                if kind == "patches":
                    self._patches.setdefault(chunk, {})[key] = None

    def _remove_pack(self, name: str, keys: PackKeys) -> None:
        for key in keys.keys:
            self._remove_row(name, key)

    def _remove_row(self, name: str, key: str) -> None:
        packs = self._rows.get(key, {})
        packs.pop(name, None)
        if not packs:
            self._rows.pop(key, None)

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
            for name in self._rows.get(key, {}):
                if self._packs[name].kind == kind:
                    return self._opened(name, kind)
            return None

    def _opened(self, name: str, kind: Kind) -> Pack:
        if name not in self._open:
            self._open[name] = Pack(self.folder(kind) / name)
            while len(self._open) > OPEN_PACKS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

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
            return tuple(self._rows.get(key, ()))

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

    def patches(self, chunk: str) -> tuple[str, ...]:
        """Keys of the patches of a chunk that are alive."""
        with self._lock:
            return tuple(sorted(key for key in self._patches.get(chunk, ()) if key in self._rows))

    def live(self, name: str) -> tuple[str, ...]:
        """Keys whose first living row is in the pack."""
        with self._lock:
            keys = self._packs[name].keys if name in self._packs else ()
            return tuple(key for key in keys if next(iter(self._rows.get(key, ())), None) == name)

    def lost(self) -> dict[str, str]:
        """Keys that are alive in no pack because theirs is gone, and the pack."""
        with self._lock:
            return {
                key: name
                for name, keys in self._missing.items()
                for key in keys.keys
                if key not in self._rows and f"{name}.{key}" not in self._deleted
            }

    def mark_deleted(self, marks: Iterable[str]) -> None:
        """Write deleted marks and bring them to the disk; the caller is the one writer."""
        folder = self.root / TOMBSTONES
        for mark in marks:
            os.close(open_regular(folder / mark, os.O_WRONLY | os.O_CREAT))
        sync(folder)
        self.refresh(force=True)

    def give_up_missing(self) -> None:
        """Give up what is lost."""
        self.mark_deleted(self._missing)

    def save(self) -> None:
        """Write down which keys are where, so that the next to open need not read every manifest."""
        with self._lock:
            known = self._packs | self._missing
            if known.keys() != self._indexed.keys():
                packs = {name: {"kind": at.kind, "keys": at.keys, "chunks": at.chunks} for name, at in known.items()}
                with contextlib.suppress(OSError, ValueError):  # the packs say the same
                    write_sealed(self.root / INDEX, {"packs": packs})
                    self._indexed = known


def _keys(manifest: Manifest) -> PackKeys:
    return PackKeys(manifest.kind, manifest.keys, manifest.chunks)


def _read_index(root: Path) -> dict[str, PackKeys]:
    """What the index file says; nothing if it is not there or not as it was written."""
    try:
        packs: dict[str, Any] = read_sealed(root / INDEX)["packs"]
        listed = {name: PackKeys(at["kind"], tuple(at["keys"]), tuple(at["chunks"])) for name, at in packs.items()}
    except (OSError, *MALFORMED):
        return {}
    right = all(
        PACK.fullmatch(name)
        and each.kind in get_args(Kind)
        and len(each.keys) == len(each.chunks)
        and all(isinstance(key, str) and KEY.fullmatch(key) for key in (*each.keys, *each.chunks))
        for name, each in listed.items()
    )
    return listed if right else {}
