"""The folders of a library, and its first file, which says which format they have."""

import contextlib
import os
import uuid
from pathlib import Path
from typing import get_args

from kamera_jax.arguments import check_choice, real_number
from kamera_jax.errors import LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from kamera_jax.library.commit import OWN_FOLDERS, named_errors
from kamera_jax.library.failures import LIBRARY as LIBRARY
from kamera_jax.library.failures import check_own
from kamera_jax.library.files import locked, read_sealed, write_sealed
from kamera_jax.library.index import FOLDERS
from kamera_jax.library.index_file import INDEX
from kamera_jax.library.leases import LEASES, LONGEST, SHORTEST
from kamera_jax.library.leftovers import UNFINISHED
from kamera_jax.library.marks import CHANGES, LOG, TOMBSTONES
from kamera_jax.library.opening import is_there
from kamera_jax.library.writers import LOCK, Lock

FORMAT_VERSION = 3
"""In format 2 digests were of sha256 and did not say so; who opens such a library to write makes it one of format 3."""

LEASED_VERSION = 4
"""Format 3, of which writers take turns by leases: earlier versions, which know none, are not to write to it."""

READABLE = (2, FORMAT_VERSION, LEASED_VERSION)
"""In format 1 keys did not say which patches a chunk was run behind."""

_READS = f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"

_OWN = (*OWN_FOLDERS, LEASES, LOCK, INDEX, LIBRARY, LOG, CHANGES)


def make(root: Path, lock: Lock = "file") -> None:
    """Make a library, if there is none.

    Args:
        root: its folder.
        lock: by what its writers are to take turns; one that is there keeps to its own.

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
        if _is_leased(root) or (lock == "lease" and not is_there(root / LIBRARY)):
            _make_leased(root)
            return
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
                if type(first["format_version"]) is int and first["format_version"] == READABLE[0]:
                    write_sealed(root / LIBRARY, first | {"format_version": FORMAT_VERSION})


def check_lease(lock: Lock | None, seconds: float) -> None:
    """Raise ValueError unless writers can take turns so; see `ChunkLibrary.open`."""
    check_choice(lock, (*get_args(Lock), None), "lock")
    if not SHORTEST <= real_number(seconds, "lease_seconds", 0.0) <= LONGEST:
        raise ValueError(f"lease_seconds is {seconds}; expected from {SHORTEST:g} to {LONGEST:g} seconds")


def _is_leased(root: Path) -> bool:
    try:
        return read_sealed(root / LIBRARY)["format_version"] == LEASED_VERSION
    except (OSError, ValueError, KeyError):  # `check_format` says what is wrong
        return False


def _make_leased(root: Path) -> None:
    """Make what is missing of a library with leases; several may do so at once."""
    for name in (*OWN_FOLDERS, LEASES):
        (root / name).mkdir(exist_ok=True)
    check_own(root, (*OWN_FOLDERS, LEASES))
    if not is_there(root / LIBRARY):
        write_sealed(root / LIBRARY, {"format_version": LEASED_VERSION, "uuid": uuid.uuid4().hex})


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


def check_format(root: Path, lock: Lock | None = None) -> Lock:
    """By what a library's writers take turns; raises unless this version reads it; see `ChunkLibrary.open`.

    Args:
        root: its folder.
        lock: what is asked for; None for whatever it is.
    """
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
        own: Lock = "lease" if version == LEASED_VERSION else "file"
        if lock not in (None, own):
            raise ValueError(
                f"{root} was made with lock={own!r}, by which its writers take turns; got {lock!r}: leave it out, or "
                "export the library into a new one"
            )
        return own
    if version < FORMAT_VERSION:
        raise LibraryVersionError(
            f"{root} has format {version}, whose keys do not say which patches a chunk was run behind, so a chunk may "
            f"not be the one that is asked for; this version reads formats {_READS}: encode the items into a "
            "new folder"
        )
    raise LibraryVersionError(
        f"{root} has format {version}; this version reads formats {_READS}: use a newer kamera-jax"
    )
