"""Some layers of a chunk's KV, read without the rest of its row."""

from typing import Any

from kamera_jax.arguments import check_type
from kamera_jax.errors import LibraryCorruptError
from kamera_jax.identity import EXACT
from kamera_jax.library.fields import grouped
from kamera_jax.library.reading import Reader
from kamera_jax.library.rows import REMEDY, kv_leaves


def read_kv(reader: Reader, key: str, layers: slice) -> tuple[Any, Any]:
    """``rot`` and ``free`` [l, T, ·] of consecutive layers; see `ChunkLibrary.get_kv`."""
    _, (about, _, leaves) = reader.pack_and_row(
        key, "chunks", wanted=lambda name: name.startswith("kv."), layers=layers
    )
    kv = kv_leaves(about, leaves)
    rot, free = (kv[name] for name in ("kv.rot", "kv.free"))
    return (rot[layers], free[layers]) if grouped(about) else (rot, free)


def read_rot(reader: Reader, key: str, layers: slice) -> Any:
    """``rot`` [l, T, Fr] of consecutive layers: of a chunk that is stored exactly no other byte is read.

    What is stored in fewer bits is read with ``free``, as one codec restores both.
    """
    wanted = "kv.rot"
    _, (about, _, leaves) = reader.pack_and_row(key, "chunks", wanted=lambda name: name == wanted, layers=layers)
    if about.get("storage") != EXACT:
        return read_kv(reader, key, layers)[0]
    rot = leaves.get(wanted)
    if rot is None or rot.ndim != 3:
        raise LibraryCorruptError(f"what is stored of {key[:12]} has no keys [L, T, Fr]; {REMEDY}")
    return rot


def consecutive(layers: slice) -> slice:
    """The layers, if they are consecutive; else a ValueError."""
    check_type(layers, slice, "layers", "consecutive layers, such as slice(0, 2)")
    if layers.step not in (None, 1):
        raise ValueError(f"layers must be consecutive; got {layers}")
    return layers
