"""Immutable packs: an Orbax checkpoint with its manifest, whose rows are read without the rest."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import BasisError, LibraryCorruptError, NotRegularError, UnstorableError
from kamera_jax.library import arrays
from kamera_jax.library.fields import check_about, grouped
from kamera_jax.library.files import MALFORMED, SEALED_BYTES, digests, read_sealed, sha256, sync_tree, write_sealed
from kamera_jax.library.manifest import Leaf, Manifest, arranged
from kamera_jax.library.opening import check_folders, folder_stamp, kind_of, open_regular
from kamera_jax.library.rows import REMEDY, Kind, Row, blocks
from kamera_jax.record import Arrays, Plain

MANIFEST = "manifest.json"
THREADS = 4
"""Rows that are checked at once; hashing leaves the interpreter alone."""


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
            read = {name: self._read(name, leaf, layers, verified) for name, leaf in leaves.items()}
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

    def _read(self, name: str, leaf: Leaf, layers: slice, verified: bool, into: np.ndarray | None = None) -> np.ndarray:
        shape = leaf.shape
        start = leaf.start
        parts = blocks(name, leaf.shape)
        first = 0
        count = parts
        if name.startswith("kv."):
            first, stop, _ = layers.indices(leaf.shape[0])
            count = max(stop - first, 0)
            shape = (count, *shape[1:])
            start = start + first * (leaf.nbytes // parts)
        if not leaf.array:
            return np.zeros(shape, leaf.dtype)
        if into is None:
            into = _aligned(self._size(leaf.array, leaf.nbytes // parts * count))
        path = os.path.join(self._place, self._data[leaf.array])
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            file.seek(start)
            room = into.data
            while room.nbytes:  # a system reads no more than some 2 GiB at once
                read = file.readinto(room)
                if not read:
                    raise LibraryCorruptError(f"{path} is not as long as it was written; {REMEDY}")
                room = room[read:]
        if verified and count:
            wanted = leaf.sha256[64 * first : 64 * (first + count)]
            if "".join(sha256(part) for part in into.reshape(count, -1)) != wanted:
                raise LibraryCorruptError(f"array {name!r} in {path} is not as it was written; {REMEDY}")
        return into.view(leaf.dtype).reshape(shape)

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

    def whole(self, *, verified: bool) -> Arrays:
        """Its arrays, read row by row, several at once; raises as `row`."""
        manifest = self.manifest
        with self.manifest_errors():
            buffers = {name: _aligned(self._size(name, manifest.nbytes(name))) for name in manifest.arrays}

            def fill(key: str) -> None:
                for name, leaf in manifest.leaves(key).items():
                    if leaf.array:
                        place = buffers[leaf.array][leaf.start : leaf.start + leaf.nbytes]
                        self._read(name, leaf, slice(None), verified, place)

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fill, manifest.keys))
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
