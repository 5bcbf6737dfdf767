"""Sessions on disk: a window by its entries, evicted chunks beside it, and the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ModelMismatchError, PreambleMismatchError, SnapshotCorruptError
from kamera_jax.forward import preamble_chunk
from kamera_jax.library import snapshot
from kamera_jax.record import Arrays, PatchRecord, Record
from kamera_jax.window.changes import append
from kamera_jax.window.window import Window

KIND = "session"

_PATCH = "patch"


@dataclass(frozen=True)
class SavedSession:
    """What a session goes on with.

    Attributes:
        window: the window as it stands.
        memory: evicted chunks in host memory, the least recently used first.
        patches: patches in host memory, of evicted chunks and others, those of least worth first.
        used: keys of the window's chunks, the least recently used first.
        evicted: keys of the evicted chunks, wherever they are stored, the least recently used first.
        pinned: keys of the chunks that stay when others are evicted.
        memory_bytes: at most so many bytes of them; None for no bound.
        rank: components of the patches that are formed; None for the default of `kamera_jax.form_patch`.
        stats: what the session has done, by the names of `SessionStats`.
    """

    window: Window
    memory: tuple[Record, ...]
    patches: tuple[PatchRecord, ...]
    used: tuple[str, ...]
    evicted: tuple[str, ...]
    pinned: tuple[str, ...]
    memory_bytes: int | None
    rank: int | None
    stats: Mapping[str, int]


def save_session(folder: Path, session: SavedSession) -> None:
    """Write a session; see `snapshot.write`. A chunk that stands several times with the same patch is written once."""
    window = session.window
    records = list(session.memory)
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
        "held": len(session.memory),
        "patches": [patch.about for patch in session.patches],
        "used": session.used,
        "evicted": session.evicted,
        "pinned": session.pinned,
        "memory_bytes": session.memory_bytes,
        "rank": session.rank,
        "stats": session.stats,
    }
    arrays = {f"{i}.{name}": array for i, record in enumerate(records) for name, array in record.arrays.items()}
    for i, patch in enumerate(session.patches):
        arrays |= {f"{_PATCH}{i}.{name}": array for name, array in patch.arrays.items()}
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
        records.append(Record(about["chunk"], about["patch"], _under(f"{i}.", arrays)))
    patches = [
        PatchRecord(about, _under(f"{_PATCH}{i}.", arrays)) for i, about in enumerate(described.get("patches", ()))
    ]
    unpacked: dict[int, tuple[Chunk, Patch | None]] = {}
    window = Window.empty(vlm, described["capacity"], mode=described["mode"])
    for entry in described["entries"]:
        place = entry["record"]
        if place not in unpacked:
            unpacked[place] = records[place].unpacked()
        window = append(window, *unpacked[place], donate=True, as_it_stood=True)
        if (window.entries[-1].base, window.entries[-1].slot) != (entry["base"], entry["slot"]):
            raise SnapshotCorruptError(f"the window in {folder} does not come to stand where it stood; use another")
    memory = tuple(records[: described["held"]])
    stats = {str(name): count for name, count in described["stats"].items()}
    if "held_bytes" in stats:  # its name in what was saved before
        stats["evicted_bytes"] = stats.pop("held_bytes")
    return SavedSession(
        window=window,
        memory=memory,
        patches=tuple(patches),
        used=tuple(described.get("used", window.keys)),
        evicted=tuple(described.get("evicted", [record.chunk["key"] for record in memory])),
        pinned=tuple(described["pinned"]),
        memory_bytes=described["memory_bytes"],
        rank=described["rank"],
        stats=stats,
    )


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
