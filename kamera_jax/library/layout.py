"""The folders of a library, and its first file, which says which format they have."""

import contextlib
import os
import uuid
from pathlib import Path

from kamera_jax.errors import LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from kamera_jax.library.commit import LOCK, OWN_FOLDERS, named_errors
from kamera_jax.library.failures import LIBRARY as LIBRARY
from kamera_jax.library.failures import check_own
from kamera_jax.library.files import locked, read_sealed, write_sealed
from kamera_jax.library.index import FOLDERS
from kamera_jax.library.index_file import INDEX
from kamera_jax.library.leftovers import UNFINISHED
from kamera_jax.library.marks import CHANGES, LOG, TOMBSTONES
from kamera_jax.library.opening import is_there

FORMAT_VERSION = 3
"""In format 2 digests were of sha256 and did not say so; who opens such a library to write makes it one of format 3."""

READABLE = (2, FORMAT_VERSION)
"""In format 1 keys did not say which patches a chunk was run behind."""

_READS = " and ".join(map(str, READABLE))

_OWN = (*OWN_FOLDERS, LOCK, INDEX, LIBRARY, LOG, CHANGES)


def make(root: Path) -> None:
    """Make a library, if there is none.

    Raises:
        LibraryNotFoundError: no library can be there.
        LibraryCorruptError: something else is in the place of one of its folders, such as a link.
        LibraryReadOnlyError, LibraryFullError, LibraryDiskError: it cannot be written.
    """
    check_path(root)
    with named_errors(root):
        if root.exists() and not root.is_dir():
            raise LibraryNotFoundError(f"{root} is a file; give a folder that is empty or a library")
        if root.is_dir() and not is_there(root / LIBRARY):
            foreign = sorted(path.name for path in root.iterdir() if not _is_own(path.name))
            if foreign:
                raise LibraryNotFoundError(
                    f"{root} is no library and holds {', '.join(foreign[:3])}; give a folder that is empty or a library"
                )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise LibraryNotFoundError(f"{root} cannot be a folder: {error}; give another path") from error
        with locked(root / LOCK):
            for name in OWN_FOLDERS:
                if not is_there(root / name):
                    (root / name).mkdir(exist_ok=True)
            check_own(root, OWN_FOLDERS)
            if not is_there(root / LIBRARY):
                write_sealed(root / LIBRARY, {"format_version": FORMAT_VERSION, "uuid": uuid.uuid4().hex})
                return
            with contextlib.suppress(OSError, ValueError, KeyError):  # `check_format` says what is wrong
                first = read_sealed(root / LIBRARY)
                if type(first["format_version"]) is int and first["format_version"] in READABLE[:-1]:
                    write_sealed(root / LIBRARY, first | {"format_version": FORMAT_VERSION})


def _is_own(name: str) -> bool:
    return name in _OWN or UNFINISHED.fullmatch(name) is not None


def check_path(root: Path) -> None:
    """Raise LibraryNotFoundError for what is no path at all."""
    try:
        os.lstat(root)
    except ValueError as error:  # a NUL, or what the system's encoding has not
        raise LibraryNotFoundError(f"{str(root)!r} is no path: {error}; give a folder") from error
    except OSError:
        pass  # there may be none yet


def check_format(root: Path) -> None:
    """Raise unless there is a library that this version reads; see `ChunkLibrary.open`."""
    check_path(root)
    try:
        version = read_sealed(root / LIBRARY)["format_version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LibraryNotFoundError(
            f"{root} is no library: it has no {LIBRARY}; open it with mode='a' to make one"
        ) from error
    except OSError as error:
        if not os.path.isdir(root):
            raise LibraryNotFoundError(f"{root} is no library: {error}; give a library's folder") from error
        raise LibraryCorruptError(
            f"{root / LIBRARY} cannot be read: {error}; check the disk, and who may read it"
        ) from error
    except (ValueError, KeyError) as error:
        raise LibraryCorruptError(
            f"{root / LIBRARY} is not as it was written ({error}); remove it and open the library with mode='a': the "
            "packs say what there is"
        ) from error
    check_own(root, (*FOLDERS.values(), TOMBSTONES))
    if type(version) is not int:
        raise LibraryVersionError(
            f"{root} has format {version!r:.80}, which is no whole number; this version reads formats {_READS}"
        )
    if version in READABLE:
        return
    if version < FORMAT_VERSION:
        raise LibraryVersionError(
            f"{root} has format {version}, whose keys do not say which patches a chunk was run behind, so a chunk may "
            f"not be the one that is asked for; this version reads formats {_READS}: encode the items into a "
            "new folder"
        )
    raise LibraryVersionError(
        f"{root} has format {version}; this version reads formats {_READS}: use a newer kamera-jax"
    )
