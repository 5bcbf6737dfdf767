"""Evicted chunks in host memory, and the patches that chunks had, up to a bound."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import MissingKeyError
from kamera_jax.record import PatchRecord, Record

PATCHES = 8
"""Patches that are kept of one chunk, at most."""

SHARE = 0.5
"""Of the memory: what patches may take before chunks are dropped for their sake."""


@dataclass(frozen=True)
class _Kept:
    """A patch, how often it was served, and what it is worth."""

    record: PatchRecord
    uses: int
    worth: float


@dataclass
class Contents:
    """What a `ChunkMemory` keeps, and what may be changed beside it before the memory takes it over.

    Attributes:
        limit: bytes at most, None for no bound.
        records: the chunks by key, the least recently used first.
        kept: of each chunk its patches, by key.
        nbytes: bytes of chunks and patches.
        patch_bytes: bytes of patches.
        floor: the worth of the last patch that was dropped.
        dropped: how many chunks were dropped to stay within the limit.
    """

    limit: int | None
    records: dict[str, Record] = field(default_factory=dict)
    kept: dict[str, dict[str, _Kept]] = field(default_factory=dict)
    nbytes: int = 0
    patch_bytes: int = 0
    floor: float = 0.0
    dropped: int = 0

    def copied(self) -> "Contents":
        """The same contents, to be changed without changing these; the records are shared."""
        return replace(self, records=dict(self.records), kept={key: dict(own) for key, own in self.kept.items()})

    def put(self, item: Chunk | Patch) -> None:
        """See `ChunkMemory.put`."""
        if not item.key:
            raise MissingKeyError("what has no key cannot be found again; see kamera_jax.handle for what drops keys")
        if isinstance(item, Chunk):
            self.keep(Record.of(item))
        elif (known := self.kept.get(item.chunk, {}).get(item.key)) is not None:
            uses = known.uses + 1
            self.kept[item.chunk][item.key] = _Kept(known.record, uses, self._worth(known.record, uses))
        else:
            self.keep_patch(PatchRecord.of(item))

    def release(self, key: str) -> None:
        """See `ChunkMemory.release`."""
        if key in self.records:
            self.nbytes -= self.records.pop(key).nbytes

    def keep(self, record: Record) -> None:
        """Keep a chunk as the one that was used last, in place of one of the same key."""
        key = record.chunk["key"]
        self.release(key)
        self.records[key] = record
        self.nbytes += record.nbytes
        self._shrink()

    def keep_patch(self, record: PatchRecord) -> None:
        """Keep a patch that is not kept yet."""
        chunk = record.about["chunk"]
        if len(own := self.kept.get(chunk, {})) == PATCHES:  # before it comes: it is not to be the one that goes
            self._drop_patch(own)
        self.kept.setdefault(chunk, {})[record.about["key"]] = _Kept(record, 1, self._worth(record, 1))
        self.patch_bytes += record.nbytes
        self.nbytes += record.nbytes
        self._shrink()

    def _worth(self, record: PatchRecord, uses: int) -> float:
        return self.floor + uses * record.about["length"] / max(record.nbytes, 1)

    def _drop_patch(self, among: dict[str, _Kept]) -> None:
        key = min(among, key=lambda key: among[key].worth)
        dropped = among.pop(key)
        self.floor = max(self.floor, dropped.worth)
        self.patch_bytes -= dropped.record.nbytes
        self.nbytes -= dropped.record.nbytes
        if not among:
            del self.kept[dropped.record.about["chunk"]]

    def _shrink(self) -> None:
        """Drop what there is no room for."""
        while self.limit is not None and self.nbytes > self.limit:
            turn = next((key for key, record in self.records.items() if record.chunk["turn"]), None)
            if turn is None and self.kept and (self.patch_bytes > SHARE * self.limit or not self.records):
                self._drop_patch(min(self.kept.values(), key=lambda own: min(each.worth for each in own.values())))
                continue
            key = next(iter(self.records)) if turn is None else turn
            self.release(key)
            while own := self.kept.get(key):
                self._drop_patch(own)
            self.dropped += 1


class ChunkMemory:
    """A `kamera_jax.store.Store` in host memory: chunks by key, and of every chunk several patches.

    What a patch is worth is the forward that it saves, times how often it was served, for each of its bytes; what is
    not served loses its worth as others come (Greedy-Dual-Size-Frequency, Cherkasova 1998). Where there is no room,
    kept turns go first, the least recently used of them; then the patches of least worth while patches have more than
    `SHARE` of the memory; then the least recently used chunks, with their patches.

    Whatever changes it does so at once: an operation that is interrupted leaves all as it was.
    """

    def __init__(self, limit: int | None, records: Iterable[Record] = (), patches: Iterable[PatchRecord] = ()) -> None:
        """Begin with these, the least recently used first."""
        contents = Contents(limit)
        for record in records:
            chunk, patch = record.apart()
            contents.keep(chunk)
            if patch is not None:
                contents.keep_patch(patch)
        for patch in patches:
            contents.keep_patch(patch)
        self.contents = contents

    @property
    def limit(self) -> int | None:
        """Bytes at most, None for no bound."""
        return self.contents.limit

    @property
    def nbytes(self) -> int:
        """Bytes now, of chunks and patches."""
        return self.contents.nbytes

    @property
    def dropped(self) -> int:
        """How many chunks were dropped to stay within the limit."""
        return self.contents.dropped

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, the least recently used first."""
        return tuple(self.contents.records)

    @property
    def records(self) -> tuple[Record, ...]:
        """The chunks, the least recently used first."""
        return tuple(self.contents.records.values())

    @property
    def patch_records(self) -> tuple[PatchRecord, ...]:
        """The patches of all chunks, those of least worth first."""
        kept = (each for patches in self.contents.kept.values() for each in patches.values())
        return tuple(each.record for each in sorted(kept, key=lambda each: each.worth))

    def has(self, key: str) -> bool:
        """Whether a chunk of this key is kept."""
        return key in self.contents.records

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """See `Store.find`."""
        record = self.contents.records.get(key)
        if record is None or codec not in (None, record.chunk["codec"]):
            return None
        return record.unpacked()[0]

    def patches(self, key: str) -> Sequence[Patch]:
        """See `Store.patches`; also of a chunk that is in use."""
        return tuple(each.record.unpacked() for each in self.contents.kept.get(key, {}).values())

    def put(self, item: Chunk | Patch) -> str:
        """Copy a chunk, in place of one of the same key, or a patch; one that is kept already was served once more.

        Raises:
            MissingKeyError: it has no key.
        """
        contents = self.contents.copied()
        contents.put(item)
        self.contents = contents
        return item.key

    def release(self, key: str) -> None:
        """Drop a chunk, which is in use and comes back when it is evicted again; its patches are kept."""
        contents = self.contents.copied()
        contents.release(key)
        self.contents = contents
