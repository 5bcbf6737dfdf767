"""Evicted chunks in host memory, up to a bound."""

from collections import OrderedDict
from collections.abc import Iterable

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.record import Record


class ChunkMemory:
    """Chunks by key, each with the patch it last had; the longest unused make room.

    Attributes:
        limit: bytes at most, None for no bound.
        nbytes: bytes now.
    """

    def __init__(self, limit: int | None, records: Iterable[Record] = ()) -> None:
        """Hold ``records``, the longest unused first."""
        self.limit = limit
        self.nbytes = 0
        self._records: OrderedDict[str, Record] = OrderedDict()
        for record in records:
            self._hold(record)

    @property
    def keys(self) -> tuple[str, ...]:
        """What is held, the longest unused first."""
        return tuple(self._records)

    @property
    def records(self) -> tuple[Record, ...]:
        """As `keys`."""
        return tuple(self._records.values())

    def hold(self, chunk: Chunk, patch: Patch | None) -> int:
        """Hold a copy of a chunk with its patch, in place of one of the same key; how many others had to go for it."""
        return self._hold(Record.of(chunk, patch))

    def _hold(self, record: Record) -> int:
        self.release(record.chunk["key"])
        self._records[record.chunk["key"]] = record
        self.nbytes += record.nbytes
        before = len(self._records)
        while self.limit is not None and self.nbytes > self.limit:
            self.release(next(iter(self._records)))
        return before - len(self._records)

    def find(self, key: str) -> tuple[Chunk, Patch | None] | None:
        """A chunk and its patch, on the device; None if it is not held."""
        return self._records[key].unpacked() if key in self._records else None

    def release(self, key: str) -> None:
        """Hold a chunk no more, if it was."""
        if key in self._records:
            self.nbytes -= self._records.pop(key).nbytes
