"""What the system says of a library's folder, in words that say what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kamera_jax.errors import (
    LibraryCorruptError,
    LibraryDiskError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    NotRegularError,
)
from kamera_jax.library.opening import folder_stamp

LIBRARY = "LIBRARY.json"
"""A library's first file."""


FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's part of it, is full."""
    return _says(error, FULL)


def is_forbidden(error: BaseException) -> bool:
    """Whether an error says that something may not be written to."""
    return _says(error, _FORBIDDEN)


def _says(error: BaseException, numbers: tuple[int, ...]) -> bool:
    """Whether an error, or one that it came of, has one of the system's numbers; the storage library has its words."""
    words = tuple(map(os.strerror, numbers))
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            if seen.errno in numbers:
                return True
        elif any(each in str(seen) for each in words):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def named_errors(root: Path) -> Iterator[None]:
    """Give what the system says while a library is written its names."""
    try:
        yield
    except Exception as error:
        named = _named(root, error)
        if named is None:
            raise
        raise named from error


def _named(root: Path, error: Exception) -> ValueError | None:
    if is_full(error):
        return LibraryFullError(
            f"the disk of {root} is full: {error}; nothing was stored. Make room, or delete chunks and collect"
        )
    if isinstance(error, NotRegularError):
        return _irregular(root, error)
    if is_forbidden(error):
        return LibraryReadOnlyError(
            f"{root} may not be written to: {error}; open it with mode='r', or give another folder"
        )
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError | NotADirectoryError) and not _is_there(root):
        return _moved(root)
    return LibraryDiskError(
        f"the system could not write to {root}: {error}; what was stored before is there. Check the disk, and try again"
    )


@contextmanager
def reading_errors(root: Path) -> Iterator[None]:
    """Give what the system says while a library's folders are read its names."""
    try:
        yield
    except NotRegularError as error:
        raise _irregular(root, error) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if not _is_there(root):
            raise _moved(root) from error
        raise LibraryCorruptError(
            f"{root} has lost its folder {Path(error.filename or '').name}; open it with mode='a' to go on with what "
            "is left"
        ) from error
    except OSError as error:
        raise LibraryCorruptError(f"{root} cannot be read: {error}; check the disk, and who may read it") from error


def _is_there(root: Path) -> bool:
    return os.path.lexists(root / LIBRARY)


def _moved(root: Path) -> LibraryNotFoundError:
    return LibraryNotFoundError(f"{root} is no library any more: it was moved or removed; open it where it is now")


def _irregular(root: Path, error: NotRegularError) -> LibraryCorruptError:
    return LibraryCorruptError(
        f"{error}: {root} would be read or written somewhere else; put its own in its place, or remove what is there "
        "and open the library with mode='a'"
    )


def check_own(root: Path, names: tuple[str, ...]) -> None:
    """Raise unless a library's own folders are there, themselves and not through links.

    Raises:
        LibraryNotFoundError: the library is gone.
        LibraryCorruptError: a folder is gone, or something else is in its place.
    """
    with reading_errors(root):
        for name in names:
            folder_stamp(root / name)
