"""Evicted chunks in host memory, up to a bound."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import MissingKeyError
from kamera_jax.record import Record


class ChunkMemory:
    """A `kamera_jax.store.Store` in host memory: chunks by key, each with the patch it last had.

    Where a new one does not fit, the least recently used are dropped.

    Attributes:
        limit: bytes at most, None for no bound.
        nbytes: bytes now.
        dropped: how many chunks were dropped to stay within the limit.
    """

    def __init__(self, limit: int | None, records: Iterable[Record] = ()) -> None:
        """Begin with ``records``, the least recently used first."""
        self.limit = limit
        self.nbytes = 0
        self.dropped = 0
        self._records: OrderedDict[str, Record] = OrderedDict()
        for record in records:
            self._keep(record)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, the least recently used first."""
        return tuple(self._records)

    @property
    def records(self) -> tuple[Record, ...]:
        """The chunks with their patches, the least recently used first."""
        return tuple(self._records.values())

    def has(self, key: str) -> bool:
        """Whether a chunk of this key is kept."""
        return key in self._records

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """See `Store.find`."""
        record = self._records.get(key)
        if record is None or codec not in (None, record.chunk["codec"]):
            return None
        return record.unpacked()[0]

    def patches(self, key: str) -> Sequence[Patch]:
        """See `Store.patches`; one at most."""
        record = self._records.get(key)
        patch = None if record is None else record.unpacked()[1]
        return () if patch is None else (patch,)

    def put(self, item: Chunk | Patch) -> str:
        """Copy a chunk, in place of one of the same key, or a patch of a chunk that is kept, in place of its last one.

        Raises:
            MissingKeyError: it has no key.
        """
        if not item.key:
            raise MissingKeyError("what has no key cannot be found again; see kamera_jax.handle for what drops keys")
        if isinstance(item, Chunk):
            self._keep(Record.of(item, None))
        elif item.chunk in self._records:
            self._keep(self._records[item.chunk].with_patch(item))
        return item.key

    def release(self, key: str) -> None:
        """Drop a chunk with its patch: it is in use, and comes back when it is evicted again."""
        if key in self._records:
            self.nbytes -= self._records.pop(key).nbytes

    def _keep(self, record: Record) -> None:
        key = record.chunk["key"]
        self.release(key)
        self._records[key] = record
        self.nbytes += record.nbytes
        while self.limit is not None and self.nbytes > self.limit:
            self.release(next(iter(self._records)))
            self.dropped += 1
