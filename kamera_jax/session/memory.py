"""Evicted chunks in host memory, and the patches that chunks had, up to a bound."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import MissingKeyError
from kamera_jax.record import PatchRecord, Record

PATCHES = 8
"""Patches that are kept of one chunk, at most."""

SHARE = 0.5
"""Of the memory: what patches may take before chunks are dropped for their sake."""


@dataclass
class _Kept:
    """A patch, how often it was served, and what it is worth."""

    record: PatchRecord
    uses: int
    worth: float


class ChunkMemory:
    """A `kamera_jax.store.Store` in host memory: chunks by key, and of every chunk several patches.

    What a patch is worth is the forward that it saves, times how often it was served, for each of its bytes; what is
    not served loses its worth as others come (Greedy-Dual-Size-Frequency, Cherkasova 1998). Where there is no room,
    kept turns go first, the least recently used of them; then the patches of least worth while patches have more than
    `SHARE` of the memory; then the least recently used chunks, with their patches.

    Attributes:
        limit: bytes at most, None for no bound.
        nbytes: bytes now, of chunks and patches.
        dropped: how many chunks were dropped to stay within the limit.
    """

    def __init__(self, limit: int | None, records: Iterable[Record] = (), patches: Iterable[PatchRecord] = ()) -> None:
        """Begin with these, the least recently used first."""
        self.limit = limit
        self.nbytes = 0
        self.dropped = 0
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._patches: dict[str, dict[str, _Kept]] = {}
        self._patch_bytes = 0
        self._floor = 0.0
        for record in records:
            chunk, patch = record.apart()
            self._keep(chunk)
            if patch is not None:
                self._keep_patch(patch)
        for patch in patches:
            self._keep_patch(patch)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, the least recently used first."""
        return tuple(self._records)

    @property
    def records(self) -> tuple[Record, ...]:
        """The chunks, the least recently used first."""
        return tuple(self._records.values())

    @property
    def patch_records(self) -> tuple[PatchRecord, ...]:
        """The patches of all chunks, those of least worth first."""
        kept = (each for patches in self._patches.values() for each in patches.values())
        return tuple(each.record for each in sorted(kept, key=lambda each: each.worth))

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
        """See `Store.patches`; also of a chunk that is in use."""
        return tuple(each.record.unpacked() for each in self._patches.get(key, {}).values())

    def put(self, item: Chunk | Patch) -> str:
        """Copy a chunk, in place of one of the same key, or a patch; one that is kept already was served once more.

        Raises:
            MissingKeyError: it has no key.
        """
        if not item.key:
            raise MissingKeyError("what has no key cannot be found again; see kamera_jax.handle for what drops keys")
        if isinstance(item, Chunk):
            self._keep(Record.of(item))
        elif (kept := self._patches.get(item.chunk, {}).get(item.key)) is not None:
            kept.uses += 1
            kept.worth = self._worth(kept.record, kept.uses)
        else:
            self._keep_patch(PatchRecord.of(item))
        return item.key

    def release(self, key: str) -> None:
        """Drop a chunk, which is in use and comes back when it is evicted again; its patches are kept."""
        if key in self._records:
            self.nbytes -= self._records.pop(key).nbytes

    def _keep(self, record: Record) -> None:
        key = record.chunk["key"]
        self.release(key)
        self._records[key] = record
        self.nbytes += record.nbytes
        self._shrink()

    def _keep_patch(self, record: PatchRecord) -> None:
        chunk = record.about["chunk"]
        if len(own := self._patches.get(chunk, {})) == PATCHES:  # before it comes: it is not to be the one that goes
            self._drop_patch(own)
        self._patches.setdefault(chunk, {})[record.about["key"]] = _Kept(record, 1, self._worth(record, 1))
        self._patch_bytes += record.nbytes
        self.nbytes += record.nbytes
        self._shrink()

    def _worth(self, record: PatchRecord, uses: int) -> float:
        return self._floor + uses * record.about["length"] / max(record.nbytes, 1)

    def _drop_patch(self, among: dict[str, _Kept]) -> None:
        key = min(among, key=lambda key: among[key].worth)
        kept = among.pop(key)
        self._floor = max(self._floor, kept.worth)
        self._patch_bytes -= kept.record.nbytes
        self.nbytes -= kept.record.nbytes
        if not among:
            del self._patches[kept.record.about["chunk"]]

    def _shrink(self) -> None:
        """Drop what there is no room for."""
        while self.limit is not None and self.nbytes > self.limit:
            turn = next((key for key, record in self._records.items() if record.chunk["turn"]), None)
            if turn is None and self._patches and (self._patch_bytes > SHARE * self.limit or not self._records):
                self._drop_patch(min(self._patches.values(), key=lambda own: min(each.worth for each in own.values())))
                continue
            key = next(iter(self._records)) if turn is None else turn
            self.release(key)
            while own := self._patches.get(key):
                self._drop_patch(own)
            self.dropped += 1
