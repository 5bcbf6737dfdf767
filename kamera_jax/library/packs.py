"""Immutable packs: an Orbax checkpoint with its manifest, whose rows are read without the rest."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import BasisError, LibraryCorruptError, NotRegularError, UnstorableError
from kamera_jax.library import arrays
from kamera_jax.library.digests import agrees
from kamera_jax.library.fields import check_about, grouped
from kamera_jax.library.files import MALFORMED, SEALED_BYTES, digests, read_sealed, sync_tree, write_sealed
from kamera_jax.library.manifest import Leaf, Manifest, arranged
from kamera_jax.library.opening import check_folders, folder_stamp, kind_of, open_regular
from kamera_jax.library.rows import REMEDY, Kind, Row, blocks
from kamera_jax.record import Arrays, Plain

MANIFEST = "manifest.json"
THREADS = 4
"""Rows, or pieces of arrays, that are read and checked at once; both leave the interpreter alone."""

PIECE_BYTES = 2**20
"""Of a whole array so much is read and then checked, while the processor's cache still holds it."""

APART_BYTES = 2**18
"""Arrays of as many bytes are checked while the next one is read: fewer are checked sooner than a thread wakes."""

_checkers: dict[int, ThreadPoolExecutor] = {}


def _checker() -> ThreadPoolExecutor:
    """The threads of this process that check rows while more of them is read."""
    pid = os.getpid()
    if pid not in _checkers:
        _checkers[pid] = ThreadPoolExecutor(THREADS, thread_name_prefix="kamera-digests")
    return _checkers[pid]


def write_pack(place: Path, kind: Kind, rows: Iterable[Row]) -> Manifest:
    """Write a pack to a folder that is not there yet, and bring it to the disk; on the writer alone.

    Raises:
        UnstorableError: it would not be read back as it is.
    """
    stacked, manifest = arranged(kind, rows)
    arrays.save(place, stacked)
    data = {arrays.data_file(place, name, array.ndim) for name, array in stacked.items()}
    manifest = replace(manifest, files=_others(place, data))
    write_sealed(place / MANIFEST, manifest.body | {"pack": place.name}, durable=False)
    try:
        again = Manifest.parsed(read_sealed(place / MANIFEST))
        same = json.dumps(again.body, sort_keys=True) == json.dumps(manifest.body, sort_keys=True)
        for key in again.keys:
            again.leaves(key)
    except MALFORMED as error:
        raise UnstorableError(f"{len(manifest.keys)} {kind} would not be read back: {error}") from error
    if not same:
        raise UnstorableError(f"{len(manifest.keys)} {kind} would be read back otherwise; put them one by one")
    sync_tree(place)
    return manifest


def _others(place: Path, data: Iterable[Path]) -> dict[str, str]:
    """Digests of a pack's files but for the data, and the manifest that holds them."""
    known = {path.relative_to(place).as_posix() for path in data} | {MANIFEST}
    return digests(place, but=known, most=SEALED_BYTES)


class Pack:
    """A pack to be read."""

    def __init__(self, folder: Path) -> None:
        """Read its manifest.

        Raises:
            FileNotFoundError: there is no such pack.
            LibraryCorruptError: its manifest is not as it was written.
        """
        self.folder = folder
        self._place = str(folder)
        try:
            folder_stamp(folder)
            body = read_sealed(folder / MANIFEST)
            if body.get("pack", folder.name) != folder.name:
                raise ValueError("a manifest of another pack")
            self.manifest = Manifest.parsed(body)
        except FileNotFoundError:
            if os.path.lexists(folder):
                raise LibraryCorruptError(f"pack {folder} has lost its manifest; {REMEDY}") from None
            raise
        except (NotRegularError, OSError) as error:
            raise LibraryCorruptError(f"pack {folder} cannot be read: {error}; {REMEDY}") from error
        except MALFORMED as error:
            raise LibraryCorruptError(f"the manifest of pack {folder} is not as it was written; {REMEDY}") from error

        self._data = {
            name: arrays.data_file(Path(), name, len(shape)).as_posix()
            for name, (_, shape) in self.manifest.arrays.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(map(self.manifest.nbytes, self.manifest.arrays))

    def row(
        self,
        key: str,
        *,
        wanted: Callable[[str], bool] | None = None,
        layers: slice = slice(None),
        verified: bool = True,
    ) -> tuple[Plain, Plain | None, Arrays]:
        """A row's plain fields, its model's spec, and its arrays as stored.

        Args:
            key: of the row.
            wanted: which arrays to read, by name; all by default.
            layers: of ``kv.*``; step 1. All are read where they are stored together (`grouped`).
            verified: compare what is read with its digests.

        Raises:
            FileNotFoundError: the pack is gone.
            LibraryCorruptError: it is not as it was written.
        """
        with self.manifest_errors():
            about = dict(self.manifest.entries[key]["about"])
            if grouped(about):
                layers = slice(None)
            leaves = {name: leaf for name, leaf in self.manifest.leaves(key).items() if wanted is None or wanted(name)}
            read = self._leaves(leaves, layers, verified)
            return about, self.manifest.specs.get(str(about.get("spec"))), read

    def facts(self, key: str) -> tuple[Plain, Plain | None, int]:
        """A row's plain fields, its model's spec, and the bytes of its arrays, which are not read; raises as `row`."""
        with self.manifest_errors():
            about = dict(self.manifest.entries[key]["about"])
            check_about(about, of_patch=self.manifest.kind == "patches")
            return about, self.manifest.specs.get(str(about.get("spec"))), self.manifest.row_nbytes(key)

    @contextmanager
    def manifest_errors(self) -> Iterator[None]:
        """Where the manifest is relied on: a LibraryCorruptError if it says what cannot be."""
        try:
            yield
        except (LibraryCorruptError, BasisError):
            raise
        except FileNotFoundError as error:
            if os.path.lexists(self.folder):
                raise LibraryCorruptError(f"pack {self.folder} has lost data: {error}; {REMEDY}") from error
            raise
        except (NotRegularError, OSError) as error:
            raise LibraryCorruptError(f"pack {self.folder} cannot be read: {error}; {REMEDY}") from error
        except MALFORMED as error:
            raise LibraryCorruptError(f"the manifest of pack {self.folder} says what cannot be; {REMEDY}") from error

    def _leaves(self, leaves: Mapping[str, Leaf], layers: slice, verified: bool) -> Arrays:
        """Arrays of a row; a long one is checked while the next is read."""
        read: Arrays = {}
        checks: list[Future[None]] = []
        try:
            for name, leaf in leaves.items():
                part, payload = self._read(name, leaf, layers)
                read[name] = payload.view(leaf.dtype).reshape(part.shape)
                if verified and payload.nbytes >= APART_BYTES:
                    checks.append(_checker().submit(self._check, name, part, payload))
                elif verified:
                    self._check(name, part, payload)
        finally:
            wait(checks)
        for check in checks:
            check.result()
        return read

    def _read(self, name: str, leaf: Leaf, layers: slice) -> tuple["_Part", np.ndarray]:
        part = _Part.of(name, leaf, layers)
        if not leaf.array:
            return part, np.zeros(0, np.uint8)
        into = _aligned(self._size(leaf.array, part.nbytes))
        self._fill(leaf.array, part.start, into)
        return part, into

    def _fill(self, array: str, start: int, into: np.ndarray) -> None:
        """Read bytes of an array, from one on."""
        path = os.path.join(self._place, self._data[array])
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            file.seek(start)
            room = into.data
            while room.nbytes:  # a system reads no more than some 2 GiB at once
                read = file.readinto(room)
                if not read:
                    raise LibraryCorruptError(f"{path} is not as long as it was written; {REMEDY}")
                room = room[read:]

    def _check(self, name: str, part: "_Part", payload: np.ndarray) -> None:
        if part.count and payload.nbytes and not agrees(payload, part.leaf.digest, part.first, part.count):
            path = os.path.join(self._place, self._data[part.leaf.array])
            raise LibraryCorruptError(f"array {name!r} in {path} is not as it was written; {REMEDY}")

    def _size(self, array: str, size: int) -> int:
        """The size, once it is known to be no more than there is."""
        place = self._data[array]
        check_folders(self._place, place)
        path = os.path.join(self._place, place)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(f"{path} is {kind_of(status.st_mode)}; expected a regular file")
        if status.st_size != self.manifest.nbytes(array):
            raise LibraryCorruptError(f"{path} is not as long as it was written; {REMEDY}")
        return size

    def whole(self, rows: Iterable[Mapping[str, Leaf]], *, verified: bool) -> Arrays:
        """Its arrays, read in pieces of several rows, several at once; raises as `row`.

        Args:
            rows: what `Manifest.leaves` says of each.
            verified: compare what is read with its digests.
        """
        manifest = self.manifest
        with self.manifest_errors():
            buffers = {name: _aligned(self._size(name, manifest.nbytes(name))) for name in manifest.arrays}

            def fill(piece: list[tuple[str, Leaf]]) -> None:
                array = piece[0][1].array
                begin = piece[0][1].start
                into = buffers[array][begin : piece[-1][1].start + piece[-1][1].nbytes]
                self._fill(array, begin, into)
                for name, leaf in piece if verified else ():
                    self._check(name, _Part.of(name, leaf), into[leaf.start - begin :][: leaf.nbytes])

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fill, _pieces(rows)))
            return {name: buffers[name].view(dtype).reshape(shape) for name, (dtype, shape) in manifest.arrays.items()}

    def check(self) -> dict[str, str]:
        """What is wrong, by the key of each row that is not as it was written, and by file; empty if nothing is.

        Raises:
            FileNotFoundError: the pack is gone: it was collected meanwhile.
        """
        wrong: dict[str, str] = {}

        def read(key: str) -> None:
            try:
                self.row(key)
            except LibraryCorruptError as error:
                wrong[key] = str(error)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, self.manifest.keys))
        return wrong | self.check_files()

    def check_files(self) -> dict[str, str]:
        """What is wrong with what Orbax wrote beside the data, by file; empty if nothing is; raises as `check`."""
        present = _others(self.folder, (self.folder / place for place in self._data.values()))
        names = sorted(
            name for name in present | self.manifest.files if present.get(name) != self.manifest.files.get(name)
        )
        if names and not os.path.lexists(self.folder):
            raise FileNotFoundError(f"pack {self.folder} is gone")
        return {name: f"{self.folder / name} is not as it was written; {REMEDY}" for name in names}

    def restored(self, targets: dict[str, Any] | None) -> dict[str, Any]:
        """Its arrays through Orbax; see `kamera_jax.library.arrays.load`.

        Raises:
            LibraryCorruptError: what Orbax wrote beside the data is not as it was, or the data are not.
            ValueError: the data are as they were written, and Orbax cannot read them onto the devices.
        """
        for message in self.check_files().values():
            raise LibraryCorruptError(message)
        with self.manifest_errors():
            for array, (dtype, shape) in self.manifest.arrays.items():
                self._size(array, 0)  # of files that are not whole Orbax leaves reads behind
                arrays.check_layout(self.folder, array, dtype, shape)
        try:
            return arrays.load(self.folder, targets)
        except Exception as error:  # whatever the storage library makes of missing or broken files, or of the targets
            for message in self.check().values():
                raise LibraryCorruptError(message) from error
            raise ValueError(
                f"pack {self.folder} is as it was written, and was not read onto the devices "
                f"({type(error).__name__}: {error}); give a sharding that its arrays can have, on devices with room "
                "for them, or none"
            ) from error


def _aligned(size: int) -> np.ndarray:
    """Uninitialised bytes that a CPU backend takes as they are: it copies what does not start at a multiple of 64."""
    room = np.empty(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size]


@dataclass(frozen=True)
class _Part:
    """Layers of a row's array, or all of it.

    Attributes:
        leaf: the whole.
        first, count: of its parts that have a digest each.
        start, nbytes: in the pack's array.
        shape: of the part.
    """

    leaf: Leaf
    first: int
    count: int
    start: int
    nbytes: int
    shape: tuple[int, ...]

    @staticmethod
    def of(name: str, leaf: Leaf, layers: slice = slice(None)) -> "_Part":
        parts = blocks(name, leaf.shape)
        if not name.startswith("kv."):
            return _Part(leaf, 0, parts, leaf.start, leaf.nbytes, leaf.shape)
        first, stop, _ = layers.indices(leaf.shape[0])
        count = max(stop - first, 0)
        each = leaf.nbytes // parts if parts else 0
        return _Part(leaf, first, count, leaf.start + first * each, each * count, (count, *leaf.shape[1:]))


def _pieces(rows: Iterable[Mapping[str, Leaf]]) -> Iterator[list[tuple[str, Leaf]]]:
    """The arrays of rows, those that lie one after the other together, up to `PIECE_BYTES` or one alone."""
    stored = [each for leaves in rows for each in leaves.items() if each[1].array]
    piece: list[tuple[str, Leaf]] = []
    begin = 0
    end: tuple[str, int] | None = None
    for name, leaf in sorted(stored, key=lambda each: (each[1].array, each[1].start)):
        stop = leaf.start + leaf.nbytes
        if (leaf.array, leaf.start) != end or stop - begin > PIECE_BYTES:
            if piece:
                yield piece
            piece = []
            begin = leaf.start
        piece.append((name, leaf))
        end = (leaf.array, stop)
    if piece:
        yield piece
