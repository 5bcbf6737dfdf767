"""Sessions on disk: a window by its entries, evicted chunks beside it, and the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ModelMismatchError, PreambleMismatchError, SnapshotCorruptError
from kamera_jax.forward import preamble_chunk
from kamera_jax.library import snapshot
from kamera_jax.record import Record
from kamera_jax.window.changes import append
from kamera_jax.window.window import Window

KIND = "session"


@dataclass(frozen=True)
class SavedSession:
    """What a session goes on with.

    Attributes:
        window: as it stands.
        held: evicted chunks, the longest unused first.
        pinned: keys.
        memory_bytes: bound on what is held, None for none.
        rank: of the patches that are formed.
        stats: what it has done.
    """

    window: Window
    held: tuple[Record, ...]
    pinned: tuple[str, ...]
    memory_bytes: int | None
    rank: int
    stats: Mapping[str, int]


def save_session(folder: Path, session: SavedSession) -> None:
    """Write a session; see `snapshot.write`. A chunk that stands several times with the same patch is written once."""
    window = session.window
    records = list(session.held)
    places = {}
    for entry in window.entries:
        if (id(entry.chunk), id(entry.patch)) not in places:
            places[id(entry.chunk), id(entry.patch)] = len(records)
            records.append(Record.of(entry.chunk, entry.patch))
    description = {
        "kind": KIND,
        "model": window.spec.fingerprint,
        "preamble": window.preamble.chunk.key,
        "capacity": window.capacity,
        "mode": window.mode,
        "entries": [
            {"record": places[id(entry.chunk), id(entry.patch)], "base": entry.base, "slot": entry.slot}
            for entry in window.entries
        ],
        "records": [{"chunk": record.chunk, "patch": record.patch} for record in records],
        "held": len(session.held),
        "pinned": session.pinned,
        "memory_bytes": session.memory_bytes,
        "rank": session.rank,
        "stats": session.stats,
    }
    arrays = {f"{i}.{name}": array for i, record in enumerate(records) for name, array in record.arrays.items()}
    snapshot.write(folder, description, arrays)


def load_session(vlm: Backbone, folder: Path) -> SavedSession:
    """Read a session: the window is written anew from its entries, to the same bits.

    In place, its chunks may come to lie in other places of their pools, and answers then differ as sums in another
    order do.

    Raises:
        SnapshotNotFoundError, SnapshotCorruptError: see `snapshot.read`; or the folder holds no session.
        ModelMismatchError, PreambleMismatchError: it was another model's, or stood behind another preamble.
    """
    described, arrays = snapshot.read(folder)
    if described.get("kind") != KIND:
        raise SnapshotCorruptError(f"{folder} holds no session but {described.get('kind')!r}")
    if described["model"] != vlm.spec.fingerprint:
        raise ModelMismatchError(
            f"the session in {folder} belongs to model {described['model'][:12]}, this is {vlm.spec.fingerprint[:12]}; "
            "restore it with its model"
        )
    preamble = preamble_chunk(vlm).key
    if described["preamble"] != preamble:
        raise PreambleMismatchError(
            f"the session in {folder} stands behind preamble {described['preamble'][:12]}, the model's is "
            f"{preamble[:12]}; load the model with the session's system text"
        )
    records = []
    for i, about in enumerate(described["records"]):
        own = {name.removeprefix(f"{i}."): array for name, array in arrays.items() if name.startswith(f"{i}.")}
        records.append(Record(about["chunk"], about["patch"], own))
    unpacked: dict[int, tuple[Chunk, Patch | None]] = {}
    window = Window.empty(vlm, described["capacity"], mode=described["mode"])
    for entry in described["entries"]:
        place = entry["record"]
        if place not in unpacked:
            unpacked[place] = records[place].unpacked()
        window = append(window, *unpacked[place], donate=True)
        if (window.entries[-1].base, window.entries[-1].slot) != (entry["base"], entry["slot"]):
            raise SnapshotCorruptError(f"the window in {folder} does not come to stand where it stood; use another")
    return SavedSession(
        window=window,
        held=tuple(records[: described["held"]]),
        pinned=tuple(described["pinned"]),
        memory_bytes=described["memory_bytes"],
        rank=described["rank"],
        stats=described["stats"],
    )
