"""Sessions on disk: a window by its entries, evicted chunks beside it, and the settings."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import LockedError, ModelMismatchError, PreambleMismatchError, SnapshotCorruptError
from kamera_jax.forward import preamble_chunk
from kamera_jax.identity import EXACT
from kamera_jax.kv import KVSpec
from kamera_jax.library import snapshot
from kamera_jax.library.fields import check_chunk
from kamera_jax.library.files import MALFORMED
from kamera_jax.record import Arrays, PatchRecord, Record
from kamera_jax.session.stats import SessionStats
from kamera_jax.window.changes import append
from kamera_jax.window.window import Mode, Window

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KIND = "session"

PATIENCE = 60.0
"""Seconds that a session waits for another process that saves to, or reads, the same folder."""

WINDOW_BYTES = 2**30
"""A restored window may take so much whatever was saved: more only beside a large model, or much that was saved."""

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
        "storage": window.storage,
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
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, write=True):
        snapshot.write(folder, description, arrays)


def load_session(vlm: Backbone, folder: Path) -> SavedSession:
    """Read a session: the window is written anew from its entries, to the same bits.

    In place, its chunks may come to lie in other places of their pools, and answers then differ as sums in another
    order do.

    Raises:
        SnapshotNotFoundError, SnapshotCorruptError: see `snapshot.read`; or the folder holds no session.
        ModelMismatchError, PreambleMismatchError: it was another model's, or stood behind another preamble.
    """
    with _locked(folder, write=False):
        described, arrays = snapshot.read(folder)
    if described.get("kind") != KIND:
        raise SnapshotCorruptError(f"{folder} holds no session but {described.get('kind')!r:.80}")
    try:
        checked = _Described.of(described)
        if checked.model != vlm.spec.fingerprint:
            raise ModelMismatchError(
                f"the session in {folder} belongs to model {checked.model[:12]}, this is "
                f"{vlm.spec.fingerprint[:12]}; restore it with its model"
            )
        preamble = preamble_chunk(vlm).key
        if checked.preamble != preamble:
            raise PreambleMismatchError(
                f"the session in {folder} stands behind preamble {checked.preamble[:12]}, the model's is "
                f"{preamble[:12]}; load the model with the session's system text"
            )
        return _session(vlm, checked, arrays)
    except (ModelMismatchError, PreambleMismatchError, SnapshotCorruptError):
        raise
    except MALFORMED as error:
        raise SnapshotCorruptError(
            f"the session in {folder} is not as one is saved ({type(error).__name__}: {error!s:.500}); use another"
        ) from error


@dataclass(frozen=True)
class _Described:
    """The description of a saved session, whose fields are of the types that they have in one that was saved."""

    model: str
    preamble: str
    capacity: int
    mode: Mode
    storage: str
    entries: tuple[tuple[int, float, int], ...]
    records: tuple[dict[str, Any], ...]
    held: int
    patches: tuple[dict[str, Any], ...]
    used: tuple[str, ...] | None
    evicted: tuple[str, ...] | None
    pinned: tuple[str, ...]
    memory_bytes: int | None
    rank: int | None
    stats: dict[str, int]

    @staticmethod
    def of(described: Mapping[str, Any]) -> "_Described":
        """The description as JSON has it, checked.

        Raises:
            ValueError, KeyError, TypeError: a field is missing, or of another type.
        """
        records = tuple(described["records"])
        entries = []
        for entry in described["entries"]:
            place = _count(entry["record"], "an entry's record", len(records) - 1)
            entries.append((place, _number(entry["base"], "an entry's base"), _count(entry["slot"], "an entry's slot")))
        stats = {_text(name): _count(count, f"stats.{name}", 2**62) for name, count in described["stats"].items()}
        if "held_bytes" in stats:  # its name in what was saved before
            stats["evicted_bytes"] = stats.pop("held_bytes")
        if unknown := stats.keys() - {each.name for each in fields(SessionStats)}:
            raise ValueError(f"the statistics have {sorted(unknown)!r:.200}, which sessions do not count")
        memory_bytes = described["memory_bytes"]
        rank = described["rank"]
        if described["mode"] not in get_args(Mode):
            raise ValueError(f"mode is {described['mode']!r:.80}; expected one of {get_args(Mode)}")
        return _Described(
            model=_text(described["model"]),
            preamble=_text(described["preamble"]),
            capacity=_count(described["capacity"], "capacity", least=1),
            mode=described["mode"],
            storage=_text(described.get("storage", EXACT)),
            entries=tuple(entries),
            records=records,
            held=_count(described["held"], "held", len(records)),
            patches=tuple(described.get("patches", ())),
            used=_texts(described.get("used")),
            evicted=_texts(described.get("evicted")),
            pinned=_texts(described["pinned"]) or (),
            memory_bytes=None if memory_bytes is None else _count(memory_bytes, "memory_bytes", 2**62),
            rank=None if rank is None else _count(rank, "rank", least=1),
            stats=stats,
        )


def _session(vlm: Backbone, described: _Described, arrays: Arrays) -> SavedSession:
    """The session of a checked description."""
    spec = vlm.spec
    own = [_under(f"{i}.", arrays) for i in range(len(described.records))]
    records = [Record(about["chunk"], about["patch"], own[i]) for i, about in enumerate(described.records)]
    for record in records:
        _check_record(record, spec)
    patches = [PatchRecord(about, _under(f"{_PATCH}{i}.", arrays)) for i, about in enumerate(described.patches)]
    for patch in patches:
        _check_patch(patch.about, patch.arrays, spec)
    stored = sum(array.nbytes for array in arrays.values())
    needed = described.capacity * spec.token_bytes if described.mode == "materialise" else 0
    params = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(vlm.params))
    if needed > max(WINDOW_BYTES, 64 * stored, 4 * params) or len(described.entries) > described.capacity:
        raise SnapshotCorruptError(
            f"a window of {described.capacity} slots takes {needed} bytes, and {stored} are saved of the session; "
            "expected a window that a session of this model has: begin a new one"
        )
    unpacked: dict[int, tuple[Chunk, Patch | None]] = {}
    for place, _, _ in described.entries:
        if place not in unpacked:
            unpacked[place] = records[place].unpacked()
    window = Window.empty(vlm, described.capacity, mode=described.mode, storage=described.storage)
    for place, base, slot in described.entries:
        window = append(window, *unpacked[place], donate=True, as_it_stood=True)
        if (window.entries[-1].base, window.entries[-1].slot) != (base, slot):
            raise SnapshotCorruptError("its window does not come to stand where it stood; use another")
    memory = tuple(records[: described.held])
    return SavedSession(
        window=window,
        memory=memory,
        patches=tuple(patches),
        used=window.keys if described.used is None else described.used,
        evicted=tuple(record.chunk["key"] for record in memory) if described.evicted is None else described.evicted,
        pinned=described.pinned,
        memory_bytes=described.memory_bytes,
        rank=described.rank,
        stats=described.stats,
    )


def _check_record(record: Record, spec: KVSpec) -> None:
    """Raise ValueError unless a record is a chunk of this model, with its patch if it has one."""
    about = record.chunk
    check_chunk(about, about["spec"], record.arrays)
    if about["model"] != spec.fingerprint:
        raise ValueError(f"a chunk is of model {about['model']:.12}; expected {spec.fingerprint:.12}, the session's")
    rows = record.arrays["kv.rot"].shape[1]
    wanted: dict[str, tuple[int, ...]] = {
        "kv.rot": (spec.layers, rows, spec.rot_dim),
        "kv.free": (spec.layers, rows, spec.free_dim),
    }
    wanted["positions"] = (spec.rope.axes, rows)
    for name, shape in wanted.items():
        dtype = "float32" if name == "positions" else spec.dtype
        if record.arrays[name].shape != shape or record.arrays[name].dtype.name != dtype:
            raise ValueError(f"{name} is {record.arrays[name].dtype}{record.arrays[name].shape}; expected {shape}")
    if about["length"] < 1:
        raise ValueError("a chunk has no tokens")
    if record.patch is not None:
        _check_patch(record.patch, record.arrays, spec)
        if record.patch["length"] != about["length"]:
            raise ValueError(f"a patch has {record.patch['length']} tokens, its chunk {about['length']}")


def _check_patch(about: Any, arrays: Arrays, spec: KVSpec) -> None:
    """Raise ValueError unless fields and arrays are a patch of this model."""
    if not isinstance(about, dict):
        raise ValueError(f"a patch is {about!r:.80}; expected fields by name")
    for name in ("chunk", "model", "codec", "key", "lineage"):
        _text(about[name])
    _texts(about["antecedents"])
    u, v, ranks = (arrays[f"patch.{name}"] for name in ("u", "v", "ranks"))
    scale = arrays.get("patch.scale")
    width = u.shape[1] if u.ndim == 3 else -1
    right = u.ndim == 3 and u.shape[0] == spec.layers and v.shape == (spec.layers, width, spec.rot_dim + spec.free_dim)
    right = right and ranks.shape == (spec.layers,) and ranks.dtype == np.int32 and u.dtype == v.dtype
    right = right and (scale is None) == (u.dtype != np.int8) and (scale is None or scale.shape == (spec.layers, width))
    if not right or ranks.size == 0 or not 0 <= ranks.min() <= ranks.max() <= width:
        raise ValueError(f"a patch has u {u.dtype}{u.shape}, v {v.dtype}{v.shape} and ranks {ranks.shape}, of no patch")
    if _count(about["length"], "a patch's length") > u.shape[2]:
        raise ValueError(f"a patch has {about['length']} tokens of {u.shape[2]} rows")
    if arrays["patch.mass"].ndim != 2 or arrays["patch.residual"].shape != (spec.layers,):
        raise ValueError("a patch has no mass or residual of its layers")


def _count(value: Any, what: str, most: int = 2**31 - 1, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {value!r:.80}; expected a whole number from {least} to {most}")
    return value


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not -(2**31) < value < 2**31:
        raise ValueError(f"{what} is {value!r:.80}; expected a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80} stands where a text is expected")
    return value


def _texts(values: Any) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise ValueError(f"{values!r:.80} stands where a list of keys is expected")
    return tuple(_text(value) for value in values)


@contextmanager
def _locked(folder: Path, *, write: bool) -> Iterator[None]:
    """The context in which nobody else saves to a session's folder; who reads it shares it with others who do.

    The lock is on the folder itself, so that nothing lies in it beside the session.

    Raises:
        LockedError: another process saves there for longer than `PATIENCE`.
    """
    if fcntl is None:  # a system without such locks: one process at a time is up to the caller
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
    except (FileNotFoundError, NotADirectoryError):
        yield  # whoever reads says what is missing
        return
    until = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise LockedError(
                        f"another process has been saving to {folder} for {PATIENCE:g} seconds; end it, or save "
                        "elsewhere"
                    ) from error
                time.sleep(0.02)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
