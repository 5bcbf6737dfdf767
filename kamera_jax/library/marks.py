"""Deleted marks: which rows were deleted, written twice, so that no lost or broken file brings a row back.

A mark, ``<pack>.<key>``, is the name of an empty file in the folder ``tombstones`` and then a line of ``deleted.log``.
Either is enough. A mark stays until its pack is gone and no index lists it; then a collection removes both. The first
line of the log names the last collection: whoever sees a pack gone, and another collection named, need not look for it.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kamera_jax.errors import NotRegularError
from kamera_jax.library.failures import is_full
from kamera_jax.library.files import sha256, sync
from kamera_jax.library.opening import open_regular, read_regular

TOMBSTONES = "tombstones"
LOG = "deleted.log"

CHANGES = "CHANGES"
"""An empty file that takes no room and whose length says how often the library was changed."""

RESERVE = "RESERVE"
"""A file that gives its room to deleted marks when the disk is full."""

RESERVE_BYTES = 2**16

_MARK = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{64})?")
_COLLECTION = re.compile(r"collection [0-9a-f]{32}")
_CHECK = 16
_LOG_BYTES = 2**30


@dataclass(frozen=True)
class Marks:
    """Every mark that either place has.

    Attributes:
        deleted: the marks.
        collection: the name of the last collection; empty where there was none.
        unlogged: those that the log does not have.
        unfiled: those that have no file.
        broken: what is not as it was written, by file.
    """

    deleted: frozenset[str]
    unlogged: frozenset[str]
    unfiled: frozenset[str]
    collection: str
    broken: dict[str, str]


def read(root: Path) -> Marks:
    """Read the marks of both places; what cannot be read of one is taken from the other."""
    files: set[str] = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        files = {name for name in os.listdir(root / TOMBSTONES) if _MARK.fullmatch(name)}
    lines, whole = _lines(root / LOG)
    collection = next((line.partition(" ")[2] for line in lines if _COLLECTION.fullmatch(line)), "")
    logged = {line for line in lines if _MARK.fullmatch(line)}
    broken = {}
    if not whole:
        broken[LOG] = f"{root / LOG} is not as it was written; gc() writes it again from what {TOMBSTONES} has"
    if missing := frozenset(logged - files):
        broken[TOMBSTONES] = (
            f"{root / TOMBSTONES} has lost {len(missing)} deleted marks that {LOG} has; to open the library with "
            "mode='a' writes them again"
        )
    return Marks(frozenset(files | logged), frozenset(files - logged), missing, collection, broken)


def _lines(path: Path) -> tuple[list[str], bool]:
    """The lines of the log that are as they were written, and whether all are but for one that never ended."""
    try:
        written = read_regular(path, _LOG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return [], True
    except (OSError, ValueError):
        return [], False
    *ended, _ = written.split(b"\n")
    lines = []
    for line in ended:
        text, _, check = line.rpartition(b" ")
        if check.decode("latin-1") == sha256(text)[:_CHECK]:
            lines.append(text.decode("latin-1"))
    begun = bool(lines) and bool(_COLLECTION.fullmatch(lines[0]))
    return lines, len(lines) == len(ended) and begun


def _line(text: str) -> bytes:
    return f"{text} {sha256(text.encode())[:_CHECK]}\n".encode()


def begin(root: Path) -> None:
    """Make the files that a writer needs and that are not there; the caller is the one writer."""
    marks = read(root)
    with contextlib.suppress(OSError):  # each of these is of use, and none is needed: the disk may be full
        if not os.path.lexists(root / LOG):
            _write_log(root, marks.deleted)
        elif marks.unlogged or marks.unfiled:
            _append(root, marks.unlogged)
            _touch(root, marks.unfiled)
        for name, size in ((CHANGES, 0), (RESERVE, RESERVE_BYTES)):
            if not os.path.lexists(root / name):
                with os.fdopen(open_regular(root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    file.write(bytes(size))


def add(root: Path, marks: Collection[str]) -> None:
    """Write marks and bring them to the disk; the caller is the one writer.

    Raises:
        OSError: neither place could be written, and no mark was.
    """
    try:
        _add(root, marks)
    except OSError as error:
        if not is_full(error):
            raise
        (root / RESERVE).unlink(missing_ok=True)
        _add(root, marks)


def _add(root: Path, marks: Collection[str]) -> None:
    errors = []
    ways: tuple[Callable[[Path, Collection[str]], None], ...] = (_touch, _append)
    for way in ways:
        try:
            way(root, marks)
        except (OSError, NotRegularError) as error:
            errors.append(error)
    if len(errors) == len(ways):
        raise errors[0]


def _append(root: Path, marks: Iterable[str]) -> None:
    """Write marks at the end of the log, in place of a line that never ended."""
    descriptor = open_regular(root / LOG, os.O_RDWR)
    try:
        end = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 256, max(end - 256, 0))
        if tail and not tail.endswith(b"\n"):
            end -= len(tail) - (tail.rfind(b"\n") + 1)
            os.ftruncate(descriptor, end)
        begun = end
        payload = memoryview(b"".join(map(_line, marks)))
        try:
            while payload:
                count = os.pwrite(descriptor, payload, end)
                payload = payload[count:]
                end += count
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, begun)
            raise
    finally:
        os.close(descriptor)


def _touch(root: Path, marks: Iterable[str]) -> None:
    """Make the files of marks that have none."""
    made = []
    try:
        for mark in marks:
            path = root / TOMBSTONES / mark
            os.close(open_regular(path, os.O_WRONLY | os.O_CREAT))
            made.append(path)
        sync(root / TOMBSTONES)
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _write_log(root: Path, marks: Iterable[str]) -> None:
    """Write the log again, under a new collection: all of it or nothing."""
    beside = root / f"{LOG}.{uuid.uuid4().hex}"
    try:
        with os.fdopen(open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(_line(f"collection {uuid.uuid4().hex}") + b"".join(map(_line, sorted(marks))))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(root / LOG)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(root)


def keep(root: Path, packs: Collection[str]) -> None:
    """Name a new collection, and remove the marks of packs that are not among these; the caller is the one writer.

    What one of the two places has lost is written again from the other.
    """
    deleted = read(root).deleted
    kept = {mark for mark in deleted if mark.partition(".")[0] in packs}
    _write_log(root, kept)
    for mark in deleted - kept:
        (root / TOMBSTONES / mark).unlink(missing_ok=True)
    _touch(root, kept - set(os.listdir(root / TOMBSTONES)))


def count_change(root: Path) -> None:
    """Have everyone who looks see that the library has changed, whatever the times of its folders say."""
    with contextlib.suppress(OSError, NotRegularError):  # the times say it too
        descriptor = open_regular(root / CHANGES, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)
        finally:
            os.close(descriptor)
