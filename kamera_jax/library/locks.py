"""One process at a time: a lock on a file, which the system releases when its process dies.

It serves the folders of libraries, sessions and runs. The process that has the lock writes its number into the file,
so that whoever waits can say for whom.
"""

import contextlib
import importlib
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kamera_jax.errors import LockedError, NoFileLocksError
from kamera_jax.library.opening import open_regular, read_regular

PATIENCE = 1.0
"""Seconds of waiting after which it is logged whom for."""

_logger = logging.getLogger(__name__)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_FCNTL = _module("fcntl")
_MSVCRT = _module("msvcrt")

_PLACE = 2**30
"""Windows keeps others from reading what is locked: so a byte is, far behind the process's number."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """The context in which no other thread or process has the lock; a process that dies releases it.

    Args:
        path: the lock's file, which is made; its folder is there.
        wait: for another process that has the lock, for as long as that takes: after a second a warning is logged that
            says which process it is. False: raise at once.

    Raises:
        LockedError: another has it, and ``wait`` is False.
        NoFileLocksError: this system has no file locks that Python knows.
        NotRegularError: a link, or anything else than a file, is there.
        OSError: the file cannot be opened for writing.
    """
    path = Path(path)
    if _FCNTL is None and _MSVCRT is None:
        raise NoFileLocksError(
            f"{path} cannot be locked: this system has no file locks that Python knows (neither fcntl nor msvcrt); "
            "open for reading, or write on another system"
        )
    descriptor = _locked_file(path, wait)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.ftruncate(descriptor, os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode()))
        yield
    finally:
        _release(descriptor)


def holder(path: Path) -> str:
    """The process that has, or last had, a lock, in words."""
    try:
        number, _, host = read_regular(path, 1000).decode().strip().partition(" ")
        pid = int(number)
    except (OSError, ValueError):
        return "another process"
    where = "" if host == platform.node() else f" on {host}"
    return f"process {pid}{where}{', which is stopped' if not where and _is_stopped(pid) else ''}"


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


def _locked_file(path: Path, wait: bool) -> int:
    """A descriptor with the lock of the file that is at the path."""
    while True:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            _acquire(descriptor, path, wait)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        _release(descriptor)  # while it waited the file was replaced


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, path: Path, wait: bool) -> None:
    if _try(descriptor):
        return
    if not wait:
        raise LockedError(f"{path} is locked by {holder(path)}; wait until it is done, or end it")
    timer = threading.Timer(PATIENCE, lambda: _logger.warning("waiting for %s to release %s", holder(path), path))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # an interpreter that ends starts no threads
        timer.start()
    try:
        if _FCNTL is not None:
            _FCNTL.flock(descriptor, _FCNTL.LOCK_EX)
        else:
            while not _try(descriptor):
                time.sleep(0.02)
    finally:
        timer.cancel()


def _try(descriptor: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        if _FCNTL is not None:
            _FCNTL.flock(descriptor, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        else:
            os.lseek(descriptor, _PLACE, os.SEEK_SET)
            _MSVCRT.locking(descriptor, _MSVCRT.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _release(descriptor: int) -> None:
    try:
        if _FCNTL is not None:
            _FCNTL.flock(descriptor, _FCNTL.LOCK_UN)  # a process forked meanwhile has the descriptor too
        else:
            os.lseek(descriptor, _PLACE, os.SEEK_SET)
            _MSVCRT.locking(descriptor, _MSVCRT.LK_UNLCK, 1)
    finally:
        os.close(descriptor)
