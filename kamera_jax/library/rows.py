"""Chunks and patches as rows of a pack: plain fields, arrays, digests, and the key that the index has."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import LibraryCorruptError, MissingKeyError
from kamera_jax.identity import EXACT, content_key
from kamera_jax.kv import Factors
from kamera_jax.library import int8
from kamera_jax.library.arrays import DTYPES
from kamera_jax.library.files import MALFORMED, sha256
from kamera_jax.record import Arrays, Plain, join_chunk, join_patch, split_chunk, split_patch

Storage = Literal["exact", "int8"]
"""How a chunk's KV is stored: bit for bit, or as `kamera_jax.library.int8` says."""

Kind = Literal["chunks", "patches"]

_FACTORS = tuple(f"patch.{field.name}" for field in fields(Factors) if field.name != "ranks")
_TOKENS_LAST = ("patch.u",)


@dataclass(frozen=True)
class Row:
    """What a pack keeps of one chunk or patch.

    Attributes:
        key: its name in the index.
        kind: which packs it belongs in.
        about: its plain fields; the model's spec stands apart.
        spec: of the model, or None.
        leaves: its arrays as stored, by dotted name.
        digests: of every leaf, see `digest`.
    """

    key: str
    kind: Kind
    about: Plain
    spec: Plain | None
    leaves: Arrays
    digests: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(leaf.nbytes for leaf in self.leaves.values())


def blocks(name: str, shape: tuple[int, ...]) -> int:
    """How many digests a leaf has: one a layer where layers can be read apart, else one."""
    return shape[0] if name.startswith("kv.") else 1


def digest(array: np.ndarray, count: int) -> str:
    """sha256 of each of ``count`` equal parts of an array's bytes in C order, one after the other."""
    payload = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return "".join(sha256(part) for part in payload.reshape(count, payload.size // count)) if count else ""


def row_of(item: Chunk | Patch, storage: Storage) -> Row:
    """A copy that shares nothing with the device.

    Raises:
        ValueError: neither a chunk nor a patch, an unknown storage, or arrays that cannot be stored.
        MissingKeyError: it has no key.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {get_args(Storage)}; got {storage!r}")
    if not isinstance(item, Chunk | Patch):
        raise ValueError(f"a library stores chunks and patches; got {type(item).__name__}: encode it first")
    if not item.key:
        what = type(item).__name__.lower()
        raise MissingKeyError(
            f"the {what} has no key, so nothing says how its arrays were computed: it, or what it was run behind, was "
            "built by hand or went through a JAX transformation or dataclasses.replace; put what encode or form_patch "
            "gave, and move that with its .to(...)"
        )
    if isinstance(item, Patch):
        return _patch_row(item)
    about, leaves = split_chunk(item)
    spec = about.pop("spec")
    about |= {"spec": None if spec is None else content_key(spec)}
    about |= {"storage": storage, "dtype": leaves["kv.rot"].dtype.name}
    if storage == "int8":
        leaves |= int8.quantised(leaves["kv.rot"], leaves["kv.free"], item.length)
    return Row(item.key, "chunks", about, spec, leaves, _digests(item.key, leaves))


def _digests(key: str, leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
    for name, leaf in leaves.items():
        if leaf.dtype.name not in DTYPES:
            raise ValueError(f"array {name!r} of {key[:12]} has dtype {leaf.dtype}; stored are {', '.join(DTYPES)}")
    return {name: digest(leaf, blocks(name, leaf.shape)) for name, leaf in leaves.items()}


def _patch_row(patch: Patch) -> Row:
    about, leaves = split_patch(patch)
    ranks = leaves.pop("patch.ranks")
    about |= {"ranks": ranks.tolist(), "components": leaves["patch.u"].shape[1], "rows": leaves["patch.u"].shape[2]}
    used = _used(about)
    for name in _FACTORS:
        if name in leaves:
            packed = leaves[name][used]
            leaves[name] = np.ascontiguousarray(packed[:, : patch.length] if name in _TOKENS_LAST else packed)
    digests = _digests(patch.key, leaves)
    return Row(patch.key, "patches", about, None, leaves, digests)


def _used(about: Mapping[str, Any]) -> np.ndarray:
    """Which components are in use, bool[L, m]."""
    return np.arange(about["components"])[None, :] < np.asarray(about["ranks"], np.int32)[:, None]


REMEDY = "delete its key and put it anew"


@contextmanager
def _wellformed(what: str) -> Iterator[None]:
    try:
        yield
    except MALFORMED as error:
        raise LibraryCorruptError(f"what is stored of {what} does not make one; {REMEDY}") from error


def chunk_of(about: Mapping[str, Any], spec: Plain | None, leaves: Mapping[str, Any]) -> Chunk:
    """The chunk of a row, on the device; its codec says what storing it did to the KV."""
    with _wellformed("a chunk"):
        about = {**about, "codec": codec_of(about["codec"], about["storage"])}
        return join_chunk({**about, "spec": spec if about["spec"] else None}, {**leaves, **kv_leaves(about, leaves)})


def codec_of(codec: str, storage: Storage) -> str:
    """What KV of a codec has gone through when it comes back from a storage."""
    if storage == "exact":
        return codec
    return storage if codec == EXACT else f"{codec}+{storage}"


def kv_leaves(about: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """``kv.rot`` and ``kv.free`` of a row in the model's dtype; of any layers of it."""
    with _wellformed("a chunk"):
        if about["storage"] == "int8":
            return int8.restored(leaves, DTYPES[about["dtype"]])
        return {name: leaves[name] for name in ("kv.rot", "kv.free")}


def patch_of(about: Mapping[str, Any], leaves: Arrays) -> Patch:
    """The patch of a row, on the device; what its packing left out is zero."""
    with _wellformed("a patch"):
        return join_patch(about, _unpacked(about, leaves))


def _unpacked(about: Mapping[str, Any], leaves: Arrays) -> Arrays:
    used = _used(about)
    whole = dict(leaves)
    for name in _FACTORS:
        if name in leaves:
            packed = leaves[name]
            rest = (about["rows"],) if name in _TOKENS_LAST else packed.shape[1:]
            whole[name] = np.zeros((*used.shape, *rest), packed.dtype)
            if name in _TOKENS_LAST:
                whole[name][used, : about["length"]] = packed
            else:
                whole[name][used] = packed
    whole["patch.ranks"] = np.asarray(about["ranks"], np.int32)
    return whole
