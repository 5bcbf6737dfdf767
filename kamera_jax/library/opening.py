"""Opening what a folder should hold, whatever it holds instead: links are not followed, pipes and devices do not block.

A library, a session's folder or a run's folder may come from anybody. Its own files are regular files, and its own
folders are folders: a link in their place would lead outside.
"""

import os
import stat
from pathlib import Path

from kamera_jax.errors import NotRegularError

QUIET = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`, as far as the system has them: no pipe is waited for, no child has it, no line end is turned."""

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISREG, "a file"),
)


def kind_of(mode: int) -> str:
    """What a file mode is of, in words."""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "of an unknown kind")


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file; a link in the last place of the path is not followed, and nothing blocks.

    Args:
        path: the file; see `check_folders` for the folders on the way.
        flags: as `os.open` takes them; what protects is added.

    Raises:
        NotRegularError: something else is there.
        OSError: as `os.open` has them.
    """
    try:
        if not hasattr(os, "O_NOFOLLOW"):
            _check(path, os.lstat(path).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | QUIET | _NO_LINKS, 0o666)
    except OSError:
        _check(path, _mode(path))  # a link, or a folder opened for writing, is named as what it is
        raise
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | Path, most: int) -> bytes:
    """All bytes of a regular file that has no more than ``most``.

    Raises:
        NotRegularError: it is no regular file.
        ValueError: it is longer; nothing is read then.
        OSError: as the system has them.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} has {size} bytes; expected at most {most}")
        return file.read(most + 1)


def _mode(path: str | Path) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return stat.S_IFREG  # the error of opening it says more


def _check(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegularError(f"{path} is {kind_of(mode)}; expected a regular file, and no link to one")


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there, itself and not through a link.

    Raises:
        OSError: it cannot be found out.
    """
    return stat.S_ISDIR(_mode_there(path))


def is_regular(path: str | Path) -> bool:
    """Whether a regular file is there; see `is_folder`."""
    return stat.S_ISREG(_mode_there(path))


def is_there(path: str | Path) -> bool:
    """Whether anything is there, a link to nothing too; see `is_folder`."""
    return _mode_there(path) != 0


def _mode_there(path: str | Path) -> int:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def folder_stamp(path: str | Path) -> int:
    """When a folder last changed, in nanoseconds.

    Raises:
        NotRegularError: something else is there, such as a link to a folder.
        OSError: as `os.lstat` has them.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotRegularError(f"{path} is {kind_of(status.st_mode)}; expected a folder, and no link to one")
    return status.st_mtime_ns


def check_folders(root: str | Path, below: str) -> None:
    """Raise unless each folder on the way from a root to a path below it is one, and no link.

    Args:
        root: may itself be reached through links.
        below: the path from there, with ``/``; its last part is not looked at.

    Raises:
        NotRegularError: one of them is something else.
        OSError: as `os.lstat` has them.
    """
    place = os.fspath(root)
    for part in below.split("/")[:-1]:
        place = os.path.join(place, part)
        folder_stamp(place)
