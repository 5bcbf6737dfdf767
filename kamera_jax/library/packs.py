"""Immutable packs: an Orbax checkpoint with its manifest, whose rows are read without the rest."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import BasisError, LibraryCorruptError, LibraryDiskError, NotRegularError, UnstorableError
from kamera_jax.library import arrays
from kamera_jax.library.digests import agrees
from kamera_jax.library.fields import check_about, grouped
from kamera_jax.library.files import MALFORMED, read_sealed, sync_tree, write_sealed
from kamera_jax.library.manifest import Leaf, Manifest, arranged
from kamera_jax.library.places import MANIFEST, Files, FolderFiles, Span
from kamera_jax.library.rows import Kind, Row, blocks
from kamera_jax.record import Arrays, Plain

THREADS = 4
"""Rows, or pieces of arrays, that are read and checked at once; both leave the interpreter alone."""

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
    data = [arrays.data_file(Path(), name, array.ndim).as_posix() for name, array in stacked.items()]
    manifest = replace(manifest, files=FolderFiles(place).digests((*data, MANIFEST)))
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


class Pack:
    """A pack to be read."""

    def __init__(self, files: Files) -> None:
        """Read its manifest.

        Raises:
            FileNotFoundError: there is no such pack.
            LibraryCorruptError: its manifest is not as it was written.
            LibraryDiskError: an object store does not answer.
        """
        self.files = files
        self.name = files.name
        try:
            body = files.manifest()
            if body.get("pack", files.name) != files.name:
                raise ValueError("a manifest of another pack")
            self.manifest = Manifest.parsed(body)
        except (LibraryCorruptError, LibraryDiskError):
            raise
        except FileNotFoundError:
            if files.there():
                raise LibraryCorruptError(f"pack {files.where} has lost its manifest; {files.remedy}") from None
            raise
        except (NotRegularError, OSError) as error:
            raise LibraryCorruptError(f"pack {files.where} cannot be read: {error}; {files.remedy}") from error
        except MALFORMED as error:
            raise LibraryCorruptError(
                f"the manifest of pack {files.where} is not as it was written; {files.remedy}"
            ) from error

        self._data = {
            name: arrays.data_file(Path(), name, len(shape)).as_posix()
            for name, (_, shape) in self.manifest.arrays.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(map(self.manifest.nbytes, self.manifest.arrays))

    def paths(self) -> list[str]:
        """The paths of all its files below it; the manifest, which names the others, is the last."""
        return [*sorted(self._data.values()), *sorted(self.manifest.files), MANIFEST]

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
            with self.files.ahead(self._spans(leaves, layers)):
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
        files = self.files
        try:
            yield
        except (LibraryCorruptError, LibraryDiskError, BasisError):
            raise
        except FileNotFoundError as error:
            if files.there():
                raise LibraryCorruptError(f"pack {files.where} has lost data: {error}; {files.remedy}") from error
            raise
        except (NotRegularError, OSError) as error:
            raise LibraryCorruptError(f"pack {files.where} cannot be read: {error}; {files.remedy}") from error
        except MALFORMED as error:
            raise LibraryCorruptError(
                f"the manifest of pack {files.where} says what cannot be; {files.remedy}"
            ) from error

    @contextmanager
    def ahead(self, keys: Iterable[str]) -> Iterator[None]:
        """The context in which whole rows are asked for, in few requests where each file is one; see `Files.ahead`."""
        with self.manifest_errors():
            spans = [span for key in keys for span in self._spans(self.manifest.leaves(key), slice(None))]
        with self.files.ahead(spans):
            yield

    def _spans(self, leaves: Mapping[str, Leaf], layers: slice) -> Iterator[Span]:
        for name, leaf in leaves.items():
            if leaf.array:
                part = _Part.of(name, leaf, layers)
                yield self._data[leaf.array], part.start, part.nbytes

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
        self._check_size(leaf.array)
        into = _aligned(part.nbytes)
        self.files.fill(self._data[leaf.array], part.start, into)
        return part, into

    def _check(self, name: str, part: "_Part", payload: np.ndarray) -> None:
        if part.count and payload.nbytes and not agrees(payload, part.leaf.digest, part.first, part.count):
            path = f"{self.files.where}/{self._data[part.leaf.array]}"
            raise LibraryCorruptError(f"array {name!r} in {path} is not as it was written; {self.files.remedy}")

    def _check_size(self, array: str) -> None:
        """Raise unless there is as much of an array as is said, before there is room made for it."""
        self.files.check(self._data[array], self.manifest.nbytes(array))

    def whole(self, rows: Iterable[Mapping[str, Leaf]], *, verified: bool) -> Arrays:
        """Its arrays, read in pieces of several rows, several at once; raises as `row`.

        Args:
            rows: what `Manifest.leaves` says of each.
            verified: compare what is read with its digests.
        """
        manifest = self.manifest
        with self.manifest_errors():
            for name in manifest.arrays:
                self._check_size(name)
            buffers = {name: _aligned(manifest.nbytes(name)) for name in manifest.arrays}

            def fill(piece: list[tuple[str, Leaf]]) -> None:
                array = piece[0][1].array
                begin = piece[0][1].start
                into = buffers[array][begin : piece[-1][1].start + piece[-1][1].nbytes]
                self.files.fill(self._data[array], begin, into)
                for name, leaf in piece if verified else ():
                    self._check(name, _Part.of(name, leaf), into[leaf.start - begin :][: leaf.nbytes])

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fill, _pieces(rows, self.files.piece)))
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
        files = self.files
        present = files.digests((*self._data.values(), MANIFEST))
        names = sorted(
            name for name in present | self.manifest.files if present.get(name) != self.manifest.files.get(name)
        )
        if names and not files.there():
            raise FileNotFoundError(f"pack {files.where} is gone")
        return {name: f"{files.where}/{name} is not as it was written; {files.remedy}" for name in names}

    def restored(self, folder: Path, targets: dict[str, Any] | None) -> dict[str, Any]:
        """Its arrays through Orbax; see `kamera_jax.library.arrays.load`.

        Args:
            folder: of its files.
            targets: as `kamera_jax.library.arrays.load` takes them.

        Raises:
            LibraryCorruptError: what Orbax wrote beside the data is not as it was, or the data are not.
            ValueError: the data are as they were written, and Orbax cannot read them onto the devices.
        """
        for message in self.check_files().values():
            raise LibraryCorruptError(message)
        with self.manifest_errors():
            for array, (dtype, shape) in self.manifest.arrays.items():
                self._check_size(array)  # of files that are not whole Orbax leaves reads behind
                arrays.check_layout(folder, array, dtype, shape)
        try:
            return arrays.load(folder, targets)
        except Exception as error:  # whatever the storage library makes of missing or broken files, or of the targets
            for message in self.check().values():
                raise LibraryCorruptError(message) from error
            raise ValueError(
                f"pack {folder} is as it was written, and was not read onto the devices "
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


def _pieces(rows: Iterable[Mapping[str, Leaf]], most: int) -> Iterator[list[tuple[str, Leaf]]]:
    """The arrays of rows, those that lie one after the other together, up to ``most`` bytes or one alone."""
    stored = [each for leaves in rows for each in leaves.items() if each[1].array]
    piece: list[tuple[str, Leaf]] = []
    begin = 0
    end: tuple[str, int] | None = None
    for name, leaf in sorted(stored, key=lambda each: (each[1].array, each[1].start)):
        stop = leaf.start + leaf.nbytes
        if (leaf.array, leaf.start) != end or stop - begin > most:
            if piece:
                yield piece
            piece = []
            begin = leaf.start
        piece.append((name, leaf))
        end = (leaf.array, stop)
    if piece:
        yield piece
