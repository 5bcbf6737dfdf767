"""Reports of a library: what is stored, what is damaged, what a collection did."""

from dataclasses import dataclass
from typing import Any

from kamera_jax.handle import in_bytes
from kamera_jax.library.origin import Origin
from kamera_jax.library.rows import Kind


@dataclass(frozen=True)
class LibraryStats:
    """What a library holds.

    Attributes:
        chunks, patches: how many can be read.
        packs: folders they lie in.
        bytes: of all files.
        deleted: rows whose room is not free yet.
        damaged: packs whose manifest cannot be read.
        lost: keys whose pack is gone.
        deleted_bytes: of the arrays of rows whose room is not free yet.
    """

    chunks: int
    patches: int
    packs: int
    bytes: int
    deleted: int
    damaged: int
    lost: int
    deleted_bytes: int = 0


@dataclass(frozen=True)
class Item:
    """What is stored under a key, but for the arrays.

    Attributes:
        key: of a chunk or a patch.
        kind: which of them.
        fields: those of the chunk or patch that are no arrays, and how it is stored.
        spec: the model's, None if it is not known; of a chunk.
        bytes: of the arrays, as stored.
        pack: where they lie.
        patches: keys of the patches of a chunk.
        origin: where a chunk came from; None if that is not known.
    """

    key: str
    kind: Kind
    fields: dict[str, Any]
    spec: dict[str, Any] | None
    bytes: int
    pack: str
    patches: tuple[str, ...] = ()
    origin: Origin | None = None

    def __repr__(self) -> str:
        of = "" if self.origin is None else f" of {self.origin.name}"
        chunk = self.kind == "chunks"
        beside = f", {len(self.patches)} patches" if chunk else ""
        what = "chunk" if chunk else "patch"
        return f"<Item {self.key[:12]}, a {what}{of}: {in_bytes(self.bytes)}{beside}, in pack {self.pack[:12]}>"


@dataclass(frozen=True)
class LibraryReport:
    """What `ChunkLibrary.verify` found.

    Attributes:
        packs, rows: how many were read.
        damaged: what is not as it was written, by key, by pack, by file of a pack or by other file.
        lost: keys whose pack is gone, and the pack.
    """

    packs: int
    rows: int
    damaged: dict[str, str]
    lost: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether all is there as it was written."""
        return not self.damaged and not self.lost


@dataclass(frozen=True)
class Collected:
    """What `ChunkLibrary.gc` did.

    Attributes:
        dropped: packs that are gone.
        moved: rows that were copied out of them.
        freed: bytes, less those of the copies.
        swept: unfinished writes of processes that died.
        kept: packs left as they are, because what is alive in them is not as it was written.
        left: packs left as they are for lack of room; collect again once there is more.
    """

    dropped: int
    moved: int
    freed: int
    swept: int
    kept: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchanged:
    """What `ChunkLibrary.export` and `ChunkLibrary.import_from` did.

    Attributes:
        chunks, patches: how many were copied.
        known: how many the other library had already.
        bytes: of the arrays of what was copied.
        failed: why others could not be copied, by key.
    """

    chunks: int
    patches: int
    known: int
    bytes: int
    failed: dict[str, str]


@dataclass(frozen=True)
class Publication:
    """What was done to publish a library.

    Attributes:
        url: the address, with ``/`` at its end.
        state: the digest of what readers open from now on.
        uploaded: objects that were not there yet.
        bytes: of these.
        known: objects that were there already.
        removed: objects that readers of earlier states may have needed.
    """

    url: str
    state: str
    uploaded: int
    bytes: int
    known: int
    removed: int
