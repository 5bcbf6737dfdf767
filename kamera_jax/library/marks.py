"""Deleted marks: which rows were deleted, written twice, so that no lost or broken file brings a row back.

A mark, ``<pack>.<key>``, is the name of an empty file in the folder ``tombstones`` and then a line of ``deleted.log``.
Either is enough. A mark stays until its pack is gone and no index lists it; then a collection removes both. The first
line of the log names the last collection: whoever sees a pack gone, and another collection named, need not look for it.

Where writers have leases, ``through`` is the folder of theirs out of which all changes are renamed; the log is then
written anew instead of on.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kamera_jax.errors import NotRegularError
from kamera_jax.library.files import sha256, sync
from kamera_jax.library.opening import open_regular, read_regular

TOMBSTONES = "tombstones"
LOG = "deleted.log"

CHANGES = "CHANGES"
"""An empty file that takes no room and whose length says how often the library was changed."""

PADDING = 2**16
"""Bytes of empty lines at the end of the log, about, which marks are written over: they need no room on a full disk."""

MARK = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{64})?")
"""A pack, or a row of one, that was deleted."""

_COLLECTION = re.compile(r"collection [0-9a-f]{32}")
_ALONE = "alone "
"""Before a mark in the log that has no file: there was no room for one."""

_CHECK = 16
_LINE = 32 + 1 + 64 + 1 + _CHECK
_TAIL = 4 * PADDING
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
        files = {name for name in os.listdir(root / TOMBSTONES) if MARK.fullmatch(name)}
    lines, whole = _lines(root / LOG)
    collection = next((line.partition(" ")[2] for line in lines if _COLLECTION.fullmatch(line)), "")
    filed = {line for line in lines if MARK.fullmatch(line)}
    logged = filed | {mark for line in lines if MARK.fullmatch(mark := line.removeprefix(_ALONE))}
    broken = {}
    if not whole:
        broken[LOG] = f"{root / LOG} is not as it was written; gc() writes it again from what {TOMBSTONES} has"
    if missing := filed - files:
        broken[TOMBSTONES] = (
            f"{root / TOMBSTONES} has lost {len(missing)} deleted marks that {LOG} has; to open the library with "
            "mode='a' writes them again"
        )
    return Marks(frozenset(files | logged), frozenset(files - logged), frozenset(logged - files), collection, broken)


def _lines(path: Path) -> tuple[list[str], bool]:
    """The lines of the log that are as they were written, and whether all are but for one that never ended."""
    try:
        written = read_regular(path, _LOG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return [], True
    except (OSError, ValueError):
        return [], False
    ended = list(filter(None, written.split(b"\n")))
    texts = list(map(_text, ended))
    if texts and texts[-1] is None:
        whole = _LINE + len(_ALONE) * ended[-1].startswith(_ALONE.encode())
        if len(ended[-1]) < whole:  # its writer died
            texts.pop()
    lines = [text for text in texts if text is not None]
    return lines, len(lines) == len(texts) and bool(lines) and bool(_COLLECTION.fullmatch(lines[0]))


def _text(line: bytes) -> str | None:
    """What a line of the log says; None if it is not as it was written."""
    text, _, check = line.rpartition(b" ")
    return text.decode("latin-1") if check.decode("latin-1") == sha256(text)[:_CHECK] else None


def _line(text: str) -> bytes:
    return f"{text} {sha256(text.encode())[:_CHECK]}\n".encode()


def begin(root: Path, through: Path | None = None) -> None:
    """Make the files that a writer needs and that are not there; the caller is the one writer."""
    marks = read(root)
    with contextlib.suppress(OSError):  # each of these is of use, and none is needed: the disk may be full
        if not os.path.lexists(root / LOG):
            _write_log(root, marks.deleted, through)
        elif marks.unlogged or marks.unfiled:
            _append(root, marks.unlogged, through)
            _touch(root, marks.unfiled, through)
        if not os.path.lexists(root / CHANGES):
            os.close(open_regular(root / CHANGES, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def add(root: Path, marks: Collection[str], through: Path | None = None) -> None:
    """Write marks and bring them to the disk; the caller is the one writer.

    Raises:
        OSError: neither place could be written, and no mark was.
    """
    try:
        _touch(root, marks, through)
    except (OSError, NotRegularError) as error:
        if through is not None:
            raise
        try:
            _append(root, [f"{_ALONE}{mark}" for mark in marks])
        except (OSError, NotRegularError):
            raise error from None
        return
    with contextlib.suppress(OSError, NotRegularError):  # the files are enough
        _append(root, marks, through)


def _append(root: Path, marks: Iterable[str], through: Path | None = None) -> None:
    """Write marks behind the last line of the log, over its empty ones, or over a line whose writer died."""
    if through is not None:
        there = read(root)
        _write_log(root, there.deleted - there.unlogged | set(marks), through, there.collection or None)
        return
    payload = b"".join(map(_line, marks))
    descriptor = open_regular(root / LOG, os.O_RDWR)
    try:
        end = os.fstat(descriptor).st_size
        first = max(end - _TAIL, 0)
        tail = os.pread(descriptor, _TAIL, first)
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        place = first + len(tail.rstrip(b"\n"))
        if last and _text(last) is None:
            place -= len(last)
        elif last:
            payload = b"\n" + payload
        try:
            _write(descriptor, payload, place)
        except OSError:
            _write(descriptor, b"\n" * (min(end, place + len(payload)) - place), place)
            raise
        if end - place - len(payload) < PADDING // 2:
            with contextlib.suppress(OSError):  # there is still some
                _write(descriptor, b"\n" * PADDING, max(end, place + len(payload)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, payload: bytes, place: int) -> None:
    while payload:
        count = os.pwrite(descriptor, payload, place)
        payload = payload[count:]
        place += count


def _touch(root: Path, marks: Iterable[str], through: Path | None = None) -> None:
    """Make the files of marks that have none."""
    made = []
    try:
        for mark in marks:
            os.close(open_regular((through or root / TOMBSTONES) / mark, os.O_WRONLY | os.O_CREAT))
            if through is not None:
                os.rename(through / mark, root / TOMBSTONES / mark)
            made.append(mark)
        sync(root / TOMBSTONES)
    except OSError:
        with contextlib.suppress(FileNotFoundError):  # of a lease that was lost
            _untouch(root, made, through)
        raise


def _untouch(root: Path, marks: Iterable[str], through: Path | None) -> None:
    """Remove the files of marks."""
    for mark in marks:
        path = root / TOMBSTONES / mark
        if through is None:
            path.unlink(missing_ok=True)
        else:
            os.rename(path, through / mark)
            (through / mark).unlink(missing_ok=True)


def _write_log(root: Path, marks: Iterable[str], through: Path | None = None, collection: str | None = None) -> None:
    """Write the log again, under a new collection by default: all of it or nothing."""
    beside = (through or root) / f"{LOG}.{uuid.uuid4().hex}"
    try:
        with os.fdopen(open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(_line(f"collection {collection or uuid.uuid4().hex}") + b"".join(map(_line, sorted(marks))))
            file.flush()
            with contextlib.suppress(OSError):  # the disk may be full
                file.write(b"\n" * PADDING)
                file.flush()
            os.fsync(file.fileno())
        beside.replace(root / LOG)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(root)


def keep(root: Path, packs: Collection[str], through: Path | None = None) -> None:
    """Name a new collection, and remove the marks of packs that are not among these; the caller is the one writer.

    What one of the two places has lost is written again from the other.
    """
    deleted = read(root).deleted
    kept = {mark for mark in deleted if mark.partition(".")[0] in packs}
    _write_log(root, kept, through)
    there = set(os.listdir(root / TOMBSTONES))
    _untouch(root, (deleted - kept) & there, through)
    _touch(root, kept - there, through)


def count_change(root: Path) -> None:
    """Have everyone who looks see that the library has changed, whatever the times of its folders say."""
    with contextlib.suppress(OSError, NotRegularError):  # the times say it too
        descriptor = open_regular(root / CHANGES, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)
        finally:
            os.close(descriptor)
