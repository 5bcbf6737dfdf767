"""How rows come into a library: copied by whoever puts them, written in packs by the one writer of the process.

A pack is written to a folder of its own in ``staging``, brought to the disk, and renamed to its place: before that it
is not there, after that it is there for good. One writer at a time, over all processes, holds the library's lock or
lease, so whatever else lies in ``staging`` was left by one that died.
"""

import shutil
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from kamera_jax.errors import LibraryCorruptError, LibraryDiskError, LibraryFullError, UnstorableError
from kamera_jax.library.arrays import writer
from kamera_jax.library.failures import check_own, is_forbidden, is_full
from kamera_jax.library.failures import named_errors as named_errors
from kamera_jax.library.files import sync
from kamera_jax.library.index import FOLDERS, Index
from kamera_jax.library.marks import TOMBSTONES
from kamera_jax.library.packs import write_pack
from kamera_jax.library.rows import Kind, Row
from kamera_jax.library.writers import STAGING, Turn, Writers

PACK_BYTES = 2**28
"""Rows are put into one pack until they have so many bytes."""

PACK_ROWS = 2**9
"""No pack has more rows: whoever reads one of them reads the pack's whole manifest."""

PENDING_BYTES = 2**30
"""Rows that wait to be written have no more bytes than about so many: whoever puts more waits."""

_ROOM = 2**24
"""Bytes of the disk that are left alone."""

_DESCRIBED = 2**26
"""Bytes of what the rows of a pack say of themselves, about: no manifest is too long to be read."""

OWN_FOLDERS = (*FOLDERS.values(), STAGING, TOMBSTONES)


class Committer:
    """The way in. Any thread may add."""

    def __init__(self, root: Path, index: Index, writers: Writers) -> None:
        """Nothing is to be written yet."""
        self.root = root
        self.index = index
        self.writers = writers
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
        failed: dict[str, BaseException] = {}
        try:
            with self.writing() as turn:
                fresh: dict[str, Row] = {}
                for row, _ in batch:
                    kinds = self.index.kinds_of(row.key)
                    if kinds - {kind}:
                        failed[row.key] = UnstorableError(
                            f"{row.key[:12]} is the key of one of the {', '.join(kinds)} in {self.root}, and a key is "
                            f"of one item; one of the {kind} needs another"
                        )
                    elif not kinds:
                        fresh.setdefault(row.key, row)  # the first to put a key wins
                    elif (damage := self._damage(row.key, kind)) is not None:
                        failed[row.key] = damage
                self._write_apart(turn, kind, list(fresh.values()), failed)
        except BaseException as error:
            failed = {row.key: error for row, _ in batch}
        for row, future in batch:
            if row.key in failed:
                future.set_exception(failed[row.key])
            else:
                future.set_result(row.key)

    def _damage(self, key: str, kind: Kind) -> Exception | None:
        """Why what is there under a key cannot be read, as far as is known without reading it."""
        try:
            self.index.find(key, kind)
        except (LibraryCorruptError, OSError) as error:
            return LibraryCorruptError(f"{key[:12]} is there and cannot be read: {error}")
        return None

    def _write_apart(self, turn: Turn, kind: Kind, rows: list[Row], failed: dict[str, BaseException]) -> None:
        """Write rows; those that cannot be written, for what they are, cost no other row."""
        if not rows:
            return
        try:
            self.write(turn, kind, rows)
        except Exception as error:
            turn.check()  # of a lease that was lost nothing else can be said
            if (
                isinstance(error, OSError | LibraryFullError | LibraryDiskError)
                or is_full(error)
                or is_forbidden(error)
            ):
                raise
            if len(rows) == 1:
                failed[rows[0].key] = UnstorableError(f"{rows[0].key[:12]} cannot be stored: {error}")
                failed[rows[0].key].__cause__ = error
                return
            for row in rows:
                self._write_apart(turn, kind, [row], failed)

    @contextmanager
    def writing(self) -> Iterator[Turn]:
        """The context in which this is the library's one writer, and has read all that is there."""
        with named_errors(self.root):
            check_own(self.root, OWN_FOLDERS)
            with self.writers.one() as turn:
                check_own(self.root, OWN_FOLDERS)
                self.index.refresh(locked=True)
                self.index.through = turn.through
                try:
                    yield turn
                finally:
                    self.index.through = None

    def write(self, turn: Turn, kind: Kind, rows: Sequence[Row]) -> list[Path]:
        """Write rows into new packs, and give their folders; the caller is the one writer, on the writer's thread.

        Raises:
            LibraryFullError: there is no room.
            UnstorableError: they would not be read back.
            LeaseLostError: another writes now.
        """
        places = []
        part: list[Row] = []
        described = 0
        for row in rows:
            if part and described + row.described > _DESCRIBED:
                places.append(self._write_pack(turn, kind, part))
                part = []
                described = 0
            part.append(row)
            described += row.described
        return [*places, self._write_pack(turn, kind, part)]

    def _write_pack(self, turn: Turn, kind: Kind, rows: Sequence[Row]) -> Path:
        needed = sum(row.nbytes for row in rows) + _ROOM
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise LibraryFullError(
                f"{len(rows)} {kind} need {needed} bytes, and the disk of {self.root} has {free}; nothing was stored. "
                "Make room, or delete chunks and collect"
            )
        name = uuid.uuid4().hex
        staged = turn.staging / name
        place = self.index.folder(kind)
        try:
            manifest = write_pack(staged, kind, rows)
            with self.index.changing():
                turn.check()
                staged.rename(place / name)
                try:
                    sync(place)
                except OSError:  # it may not outlast a power failure: nobody is to rely on it
                    (place / name).rename(staged)
                    raise
                self.index.added(name, manifest)
        except BaseException:
            for left in staged.parent.glob(f"{name}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise
        return place / name
