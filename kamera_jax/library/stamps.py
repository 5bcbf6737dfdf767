"""When a folder has changed: its stamps, and how far the clock of its file system can be relied on."""

import os
import stat
from collections.abc import Iterable

from kamera_jax.errors import NotRegularError
from kamera_jax.library.opening import kind_of

Stamps = tuple[tuple[int, ...], ...]

_SETTLED_NS = 100_000_000
"""Two changes of a folder within a tick of the file system's clock look like one: no younger time is relied on."""

_COARSE_NS = 3_000_000_000
"""The same where times are whole seconds: those of FAT are even ones."""

_SECOND_NS = 1_000_000_000


def stamps(folders: Iterable[str], files: Iterable[str]) -> Stamps:
    """What of folders and files changes when they do; a file need not be there.

    Raises:
        NotRegularError: something else is in the place of a folder, such as a link to one.
        OSError: a folder is not there, or cannot be looked at.
    """
    return (*map(_folder_stamp, folders), *map(_file_stamp, files))


def _folder_stamp(path: str) -> tuple[int, ...]:
    at = os.lstat(path)
    if not stat.S_ISDIR(at.st_mode):
        raise NotRegularError(f"{path} is {kind_of(at.st_mode)}; expected a folder, and no link to one")
    return (at.st_mtime_ns, at.st_ino, at.st_nlink, at.st_size)


def _file_stamp(path: str) -> tuple[int, ...]:
    try:
        at = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return (at.st_mtime_ns, at.st_ino, at.st_size)


def settled(seen: Stamps, at: int) -> bool:
    """Whether a change after the stamps were taken, at a time in nanoseconds, would have changed them."""
    times = [stamp[0] for stamp in seen if stamp]
    coarse = any(time % _SECOND_NS == 0 for time in times)
    return at - max(times, default=at) > (_COARSE_NS if coarse else _SETTLED_NS)
