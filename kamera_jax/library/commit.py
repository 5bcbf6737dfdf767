"""How rows come into a library: copied by whoever puts them, written in packs by the one writer of the process.

A pack is written to a folder of its own in ``staging``, brought to the disk, and renamed to its place: before that it
is not there, after that it is there for good. One writer at a time, over all processes, holds the library's lock, so
whatever else lies in ``staging`` was left by one that died.
"""

import errno
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from kamera_jax.errors import LibraryFullError, LibraryReadOnlyError
from kamera_jax.library.arrays import writer
from kamera_jax.library.files import locked, sync
from kamera_jax.library.index import FOLDERS, Index
from kamera_jax.library.marks import FULL
from kamera_jax.library.packs import write_pack
from kamera_jax.library.rows import Kind, Row

STAGING = "staging"
LOCK = "LOCK"

PACK_BYTES = 2**28
"""Rows are put into one pack until they have so many bytes."""

PACK_ROWS = 2**12
"""No pack has more rows: whoever reads one of them reads the pack's whole manifest."""

PENDING_BYTES = 2**30
"""Rows that wait to be written have no more bytes than about so many: whoever puts more waits."""

_ROOM = 2**24
"""Bytes of the disk that are left alone."""


@contextmanager
def named_errors(root: Path) -> Iterator[None]:
    """Give a full disk and a folder that may not be changed their names."""
    try:
        yield
    except Exception as error:
        if _is(error, *FULL):
            raise LibraryFullError(
                f"the disk of {root} is full: {error}; nothing was stored. Make room, or delete chunks and collect"
            ) from error
        if _is(error, errno.EROFS, errno.EACCES, errno.EPERM):
            raise LibraryReadOnlyError(
                f"{root} may not be written to: {error}; open it with mode='r', or give another folder"
            ) from error
        raise


def _is(error: BaseException, *numbers: int) -> bool:
    """Whether an error, or what caused it, has one of the system's numbers, or the system's words for one."""
    words = tuple(os.strerror(number) for number in numbers)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in numbers:
            return True
        if not isinstance(seen, OSError) and any(each in str(seen) for each in words):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class Committer:
    """The way in. Any thread may add."""

    def __init__(self, root: Path, index: Index) -> None:
        """Nothing is to be written yet."""
        self.root = root
        self.index = index
        self._pending: deque[tuple[Row, Future[str]]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def add(self, row: Row) -> "Future[str]":
        """Queue a row for the next `flush`; the future gives its key once it is stored for good."""
        future: Future[str] = Future()
        with self._changed:
            while self._bytes > PENDING_BYTES:
                self.flush()
                self._changed.wait()
            self._pending.append((row, future))
            self._bytes += row.nbytes
        return future

    def flush(self) -> None:
        """Write all that was added, soon: on the writer's thread."""
        writer().submit(self._drain)

    def _drain(self) -> None:
        while batch := self._batch():
            for kind in FOLDERS:
                if of_kind := [each for each in batch if each[0].kind == kind]:
                    self._commit(kind, of_kind)

    def _batch(self) -> list[tuple[Row, "Future[str]"]]:
        batch = []
        size = 0
        with self._changed:
            while self._pending and size < PACK_BYTES and len(batch) < PACK_ROWS:
                row, future = self._pending.popleft()
                size += row.nbytes
                if future.set_running_or_notify_cancel():
                    batch.append((row, future))
            self._bytes -= size
            self._changed.notify_all()
        return batch

    def _commit(self, kind: Kind, batch: Sequence[tuple[Row, "Future[str]"]]) -> None:
        try:
            with self.writing():
                fresh = {row.key: row for row, _ in batch if not self.index.packs_of(row.key)}
                if fresh:
                    self.write(kind, list(fresh.values()))
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for row, future in batch:
                future.set_result(row.key)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The context in which this is the library's one writer, and has read all that is there."""
        with named_errors(self.root), locked(self.root / LOCK):
            self.index.refresh(locked=True)
            yield

    def write(self, kind: Kind, rows: Sequence[Row]) -> Path:
        """Write rows into a new pack, and give its folder; the caller is the one writer, on the writer's thread.

        Raises:
            LibraryFullError: there is no room.
        """
        needed = sum(row.nbytes for row in rows) + _ROOM
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise LibraryFullError(
                f"{len(rows)} {kind} need {needed} bytes, and the disk of {self.root} has {free}; nothing was stored. "
                "Make room, or delete chunks and collect"
            )
        name = uuid.uuid4().hex
        staged = self.root / STAGING / name
        place = self.index.folder(kind)
        try:
            manifest = write_pack(staged, kind, rows)
            with self.index.changing():
                staged.rename(place / name)
                sync(place)
                self.index.added(name, manifest)
        except BaseException:
            for left in staged.parent.glob(f"{name}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise
        return place / name
