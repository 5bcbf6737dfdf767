"""One writer at a time where file locks cannot be relied upon, as over a network: leases, which expire.

A lease is a file with a number, one more than the last; who holds the highest writes. It is renewed while its holder
works, and taken over once it was not for as long as it says: its age is by the clock of the file system, so those of
the hosts need not agree. That alone keeps two from writing only as long as nobody is stopped for longer than that. So
every change of the folder is a rename out of, or into, a folder that belongs to the lease; who takes over first empties
and removes that of everyone before. A writer that was stopped and goes on finds either that its lease is gone, or that
what it was about to rename is.
"""

import contextlib
import errno
import logging
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kamera_jax.errors import LeaseLostError, LockedError
from kamera_jax.library.opening import is_folder, open_regular, read_regular

LEASES = "leases"
"""The folder of the lease."""

SECONDS = 30.0
"""How long a lease is not taken over after it was renewed."""

SHORTEST = 0.5
LONGEST = 3600.0

RENEWALS = 3
"""How often a lease is renewed before it would expire."""

PATIENCE = 1.0
"""Seconds of waiting after which it is logged whom for."""

_LOOK = 0.05
_NUMBER = re.compile(r"[0-9]{16}")
_OWN = re.compile(r"[0-9a-f]{32}")
_DIGITS = 12
_MOST = 2**47
"""Folders of leases begin with their number, of so many hexadecimal digits."""

_FULL = (errno.ENOTEMPTY, errno.EEXIST)

_logger = logging.getLogger(__name__)


@dataclass
class Lease:
    """A lease that this process holds, until somebody takes it over.

    Attributes:
        number: one more than that of whoever wrote before.
        path: its file.
        staging: the folder that belongs to it.
        seconds: without being renewed, after which it may be taken over.
    """

    number: int
    path: Path
    staging: Path
    seconds: float
    _released: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise LeaseLostError unless it is still held; to be called between making something and renaming it."""
        try:
            os.utime(self.path)
            last = _last(self.path.parent)
        except FileNotFoundError:
            last = _last(self.path.parent)
            if last == self.number:
                last = None
        if last != self.number:
            by = "" if last is None else f" by {_holder(_file(self.path.parent, last))}"
            raise LeaseLostError(
                f"the lease on {self.path.parent.parent} was taken over{by}: this process had not renewed it for "
                f"{self.seconds:g} s, as one that is stopped or cannot reach the disk; it changes nothing any more. "
                "What was put before is there: put again what was not"
            )

    def renew(self) -> None:
        """Renew it until it is released or lost; on a thread of its own."""
        while not self._released.wait(self.seconds / RENEWALS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return
            except OSError as error:
                _logger.warning("the lease %s could not be renewed: %s", self.path, error)


@contextmanager
def leased(root: Path, staging: Path, seconds: float = SECONDS, *, wait: bool = True) -> Iterator[Lease]:
    """The context in which no other thread, process or host writes, or else this one cannot.

    Args:
        root: the folder that is written to; it has a folder `LEASES`.
        staging: the folder in it in which everything is made; only holders of leases have anything there.
        seconds: after which the lease may be taken over, if it is not renewed, which a thread does.
        wait: for whoever has the lease; False: raise at once.

    Raises:
        LeaseLostError: it was taken over while something was to be changed, which was not.
        LockedError: another has it, and ``wait`` is False.
        OSError: the folders cannot be written to.
    """
    lease = _acquired(root / LEASES, staging, seconds, wait)
    renewing = threading.Thread(target=lease.renew, name="kamera-lease", daemon=True)
    with contextlib.suppress(RuntimeError):  # an interpreter that ends starts no threads
        renewing.start()
    try:
        _fence(staging, lease)
        yield lease
    except LeaseLostError:
        raise
    except Exception:
        lease.check()  # what is taken away under a writer fails in many ways
        raise
    finally:
        lease._released.set()
        if renewing.ident is not None:
            renewing.join()
        shutil.rmtree(lease.staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.utime(lease.path, (0, 0))  # as old as can be: the next need not wait, nor is there room needed


def _acquired(folder: Path, staging: Path, seconds: float, wait: bool) -> Lease:
    beside = folder / uuid.uuid4().hex
    began = time.monotonic()
    warned = False
    os.close(open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        while True:
            # Listed before the leases are: the folder of one that is taken after they were must not raise the number,
            # for its holder would then be passed over instead of found to be faster.
            staged = max(map(_number_of, os.listdir(staging)), default=0)
            last = _last(folder)
            if last is None or _is_free(_file(folder, last), beside, seconds):
                number = max(last or 0, staged) + 1
                if (lease := _taken(folder, staging, number, seconds)) is not None:
                    return lease
                continue
            if not wait:
                raise LockedError(f"{folder.parent} is leased by {_holder(_file(folder, last))}; wait until it is done")
            if not warned and time.monotonic() - began > PATIENCE:
                _logger.warning(
                    "waiting for %s, which has the lease on %s", _holder(_file(folder, last)), folder.parent
                )
                warned = True
            time.sleep(_LOOK)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _taken(folder: Path, staging: Path, number: int, seconds: float) -> Lease | None:
    """The lease of a number, if nobody else was faster."""
    path = _file(folder, number)
    try:
        descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return None
    try:
        with contextlib.suppress(OSError):  # a full disk: it holds all the same
            os.write(descriptor, f"{seconds} {os.getpid()} {platform.node()}\n".encode())
    finally:
        os.close(descriptor)
    numbers = _numbers(folder)
    if numbers[-1:] != [number]:  # it had been given before, and its file removed: this was late
        path.unlink(missing_ok=True)
        return None
    for before in numbers[:-1]:
        _file(folder, before).unlink(missing_ok=True)
    _sweep(folder, path)
    own = staging / f"{number:0{_DIGITS}x}{uuid.uuid4().hex[_DIGITS:]}"
    own.mkdir()
    return Lease(number, path, own, seconds)


def _sweep(folder: Path, path: Path) -> None:
    """Remove what those left who died while they waited; who waits renews it at every look."""
    for name in filter(_OWN.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime - os.lstat(folder / name).st_mtime > LONGEST:
                (folder / name).unlink()


def _fence(staging: Path, lease: Lease) -> None:
    """Take away what writers before this one have under way: each thing by itself, then the folder it lay in.

    A folder that is gone fails also whoever has it open, as a host with a cache of the file system's has.
    """
    for name in os.listdir(staging):
        place = staging / name
        if not 0 < _number_of(name) < lease.number or not is_folder(place):
            continue  # its own; or this one has been taken over already
        emptied = False
        while not emptied:
            with contextlib.suppress(FileNotFoundError):
                for child in os.listdir(place):
                    os.rename(place / child, lease.staging / uuid.uuid4().hex)
            try:
                os.rmdir(place)
                emptied = True
            except FileNotFoundError:
                emptied = True
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            if not emptied:
                lease.check()
    for left in lease.staging.iterdir():
        if is_folder(left):
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _number_of(name: str) -> int:
    """The number of the lease that a folder in ``staging`` belongs to; 0 for what is none."""
    number = int(name[:_DIGITS], 16) if _OWN.fullmatch(name) else 0
    return number if number < _MOST else 0


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:016d}"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(folder) if _NUMBER.fullmatch(name))


def _last(folder: Path) -> int | None:
    """The highest number that there is a file of."""
    return max(_numbers(folder), default=None)


def _is_free(path: Path, beside: Path, seconds: float) -> bool:
    """Whether a lease was released, or not renewed for as long as it says, by the clock of its file system."""
    try:
        descriptor = open_regular(path)  # opened, for a network file system then asks what it has
    except FileNotFoundError:
        return False
    try:
        renewed = os.fstat(descriptor).st_mtime
        words = os.read(descriptor, 1000).split()
    finally:
        os.close(descriptor)
    with contextlib.suppress(ValueError, IndexError):
        seconds = min(max(float(words[0]), SHORTEST), LONGEST)
    try:
        os.utime(beside)
    except FileNotFoundError:  # this one was stopped for so long that it was taken for dead
        os.close(open_regular(beside, os.O_WRONLY | os.O_CREAT))
    return beside.stat().st_mtime - renewed > seconds


def _holder(path: Path) -> str:
    """Who has a lease, in words."""
    try:
        words = read_regular(path, 1000).decode().split()
        where = "" if words[2] == platform.node() else f" on {words[2]}"
        return f"process {int(words[1])}{where}"
    except (OSError, ValueError, IndexError):
        return "another process"
