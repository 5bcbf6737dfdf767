"""When a folder has changed: its stamps, and how far the clock of its file system can be relied on."""

import os
from pathlib import Path

Stamps = tuple[tuple[int, ...], ...]

_SETTLED_NS = 100_000_000
"""Two changes of a folder within a tick of the file system's clock look like one: no younger time is relied on."""

_COARSE_NS = 3_000_000_000
"""The same where times are whole seconds: those of FAT are even ones."""

_SECOND_NS = 1_000_000_000


def stamps(paths: list[str]) -> Stamps:
    """What of folders and files changes when they do; empty for what is not there."""
    return tuple(map(_stamp, paths))


def _stamp(path: str) -> tuple[int, ...]:
    try:
        at = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return (at.st_mtime_ns, at.st_ino, at.st_nlink, at.st_size)


def settled(seen: Stamps, at: int) -> bool:
    """Whether a change after the stamps were taken, at a time in nanoseconds, would have changed them."""
    times = [stamp[0] for stamp in seen if stamp]
    coarse = any(time % _SECOND_NS == 0 for time in times)
    return at - max(times, default=at) > (_COARSE_NS if coarse else _SETTLED_NS)


def names(folder: Path) -> list[str]:
    """What is in a folder; nothing if it is not there."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
