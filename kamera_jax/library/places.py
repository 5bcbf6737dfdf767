"""Where a library lies, and how its files are read: a folder of the system's, or what stands in the place of one."""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kamera_jax.errors import LibraryCorruptError, NotRegularError
from kamera_jax.library import index_file, marks
from kamera_jax.library.failures import reading_errors
from kamera_jax.library.files import SEALED_BYTES, digests, read_sealed
from kamera_jax.library.index_file import PACK, PackKeys
from kamera_jax.library.leftovers import size
from kamera_jax.library.opening import check_folders, folder_stamp, kind_of, open_regular
from kamera_jax.library.rows import REMEDY, Kind
from kamera_jax.library.stamps import Stamps, stamps

FOLDERS: dict[Kind, str] = {"chunks": "packs", "patches": "patches"}
"""The folder of the packs of each kind."""

MANIFEST = "manifest.json"

Span = tuple[str, int, int]
"""Bytes of a pack's file: its path there, the first byte, and how many."""


@runtime_checkable
class Files(Protocol):
    """The files of one pack, by their paths below it.

    Attributes:
        name: of the pack.
        where: it lies, in errors.
        remedy: what to do where a file is not as it was written.
        folder: of the system's, in which they are files; None where they are none.
        piece: bytes of a whole array that are read at once.
    """

    name: str
    where: str
    remedy: str
    folder: Path | None
    piece: int

    def manifest(self) -> dict[str, Any]:
        """What the sealed manifest says.

        Raises:
            FileNotFoundError: there is none.
            NotRegularError, OSError, ValueError: it is not as it was written, or cannot be read.
        """
        ...

    def there(self) -> bool:
        """Whether anything is there of the pack; where not, it was collected."""
        ...

    def check(self, path: str, nbytes: int) -> None:
        """Raise LibraryCorruptError unless a file has so many bytes; others as `manifest`."""
        ...

    def fill(self, path: str, start: int, into: np.ndarray) -> None:
        """Read bytes of a file, from one on; raises as `check`."""
        ...

    def digests(self, but: Collection[str]) -> dict[str, str]:
        """sha256 of every file but some; see `kamera_jax.library.files.digests`."""
        ...

    def ahead(self, spans: Iterable[Span]) -> AbstractContextManager[None]:
        """The context in which `fill` is asked for these, which are read together where each by itself takes long."""
        ...


@runtime_checkable
class Place(Protocol):
    """Where a library lies, as far as it is read.

    Attributes:
        root: its folder, or the address that is in the place of one.
        batch: bytes of rows that are asked for together, see `Files.ahead`; None where nothing is gained by it.
    """

    @property
    def root(self) -> Path | str:
        """See above."""
        ...

    @property
    def batch(self) -> int | None:
        """See above."""
        ...

    def marks(self) -> marks.Marks:
        """The deleted marks."""
        ...

    def listed(self) -> tuple[Mapping[str, PackKeys], dict[str, str]]:
        """Which keys are known to be in which pack, and what is wrong with what says so."""
        ...

    def names(self, kind: Kind) -> Iterable[str]:
        """The packs of a kind that are there.

        Raises:
            OSError: it cannot be found out.
        """
        ...

    def stamps(self) -> Stamps:
        """What changes when the library does; see `kamera_jax.library.stamps`."""
        ...

    def files(self, kind: Kind, name: str) -> Files:
        """The files of a pack."""
        ...

    def size(self) -> int:
        """Bytes of everything."""
        ...

    def errors(self) -> AbstractContextManager[None]:
        """The context in which what the system says of the library gets its name."""
        ...


class Folder:
    """A folder of the system's; see `Place`."""

    batch: int | None = None

    def __init__(self, root: Path) -> None:
        """Look at nothing yet."""
        self.root = root
        self._folders = [str(root / name) for name in (*FOLDERS.values(), marks.TOMBSTONES)]
        self._files = [str(root / name) for name in (marks.LOG, marks.CHANGES)]

    def marks(self) -> marks.Marks:
        """See `Place.marks`."""
        return marks.read(self.root)

    def listed(self) -> tuple[Mapping[str, PackKeys], dict[str, str]]:
        """See `Place.listed`."""
        return index_file.read(self.root)

    def names(self, kind: Kind) -> Iterator[str]:
        """See `Place.names`."""
        return filter(PACK.fullmatch, os.listdir(self.root / FOLDERS[kind]))

    def stamps(self) -> Stamps:
        """See `Place.stamps`."""
        return stamps(self._folders, self._files)

    def files(self, kind: Kind, name: str) -> "FolderFiles":
        """See `Place.files`."""
        return FolderFiles(self.root / FOLDERS[kind] / name)

    def size(self) -> int:
        """See `Place.size`."""
        return size(self.root)

    def errors(self) -> AbstractContextManager[None]:
        """See `Place.errors`."""
        return reading_errors(self.root)


class FolderFiles:
    """Files below a folder of the system's; see `Files`."""

    remedy = REMEDY
    piece = 2**20  # and is then checked, while the processor's cache still holds it

    def __init__(self, folder: Path) -> None:
        """Look at nothing yet."""
        self.folder: Path | None = folder
        self.name = folder.name
        self.where = str(folder)

    def manifest(self) -> dict[str, Any]:
        """See `Files.manifest`."""
        folder_stamp(self.where)
        return read_sealed(Path(self.where, MANIFEST))

    def there(self) -> bool:
        """See `Files.there`."""
        return os.path.lexists(self.where)

    def check(self, path: str, nbytes: int) -> None:
        """See `Files.check`."""
        check_folders(self.where, path)
        place = os.path.join(self.where, path)
        status = os.lstat(place)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(f"{place} is {kind_of(status.st_mode)}; expected a regular file")
        if status.st_size != nbytes:
            raise LibraryCorruptError(f"{place} is not as long as it was written; {REMEDY}")

    def fill(self, path: str, start: int, into: np.ndarray) -> None:
        """See `Files.fill`."""
        place = os.path.join(self.where, path)
        with os.fdopen(open_regular(place), "rb", buffering=0) as file:
            file.seek(start)
            room = into.data
            while room.nbytes:  # a system reads no more than some 2 GiB at once
                read = file.readinto(room)
                if not read:
                    raise LibraryCorruptError(f"{place} is not as long as it was written; {REMEDY}")
                room = room[read:]

    def digests(self, but: Collection[str]) -> dict[str, str]:
        """See `Files.digests`."""
        return digests(Path(self.where), but=but, most=SEALED_BYTES)

    def ahead(self, spans: Iterable[Span]) -> AbstractContextManager[None]:
        """See `Files.ahead`."""
        return nullcontext()
