"""What a pack says of itself: which arrays, which rows, where in the arrays, with which digests.

It is read from disk, so nothing in it is trusted: names are no paths, and a size is compared with the file before
anything of that size is made.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from kamera_jax.library.arrays import DTYPES
from kamera_jax.library.digests import check_digest
from kamera_jax.library.fields import AXES, NAME, NAME_LENGTH
from kamera_jax.library.fields import KEY as KEY
from kamera_jax.library.rows import Kind, Row, blocks


@dataclass(frozen=True)
class Leaf:
    """Where an array of a row lies.

    Attributes:
        array: of the pack, or empty for an array that is empty.
        dtype, shape: of the row's own array.
        start: the first byte in the pack's array.
        digest: see `kamera_jax.library.digests`.
    """

    array: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of the row's own array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Manifest:
    """A pack's table of contents.

    Attributes:
        kind: of its rows.
        arrays: dtype and shape of every array.
        entries: of every key, its plain fields and its leaves, as JSON has them; see `leaves`.
        specs: of the models, by their digest.
        files: sha256 of what Orbax wrote beside the data.
    """

    kind: Kind
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]]
    entries: dict[str, dict[str, Any]]
    specs: dict[str, Any]
    files: dict[str, str]

    @staticmethod
    def parsed(body: Mapping[str, Any]) -> "Manifest":
        """Read what `body` gives.

        Raises:
            ValueError: it is no such thing.
        """
        arrays = {_name(name): (_dtype(dtype), _shape(shape)) for name, (dtype, shape) in body["arrays"].items()}
        entries = body["entries"]
        if body["kind"] not in get_args(Kind) or not all(KEY.fullmatch(key) for key in entries):
            raise ValueError("a manifest of unknown rows")
        for key, entry in entries.items():
            if not isinstance(entry["about"], dict) or not isinstance(entry["leaves"], dict):
                raise ValueError(f"row {key[:12]} has no fields or arrays by name")
            if entry["about"]["key"] != key:
                raise ValueError("a manifest that gives a row another's key")
            if body["kind"] == "patches":
                _key(entry["about"]["chunk"])
        if not all(isinstance(spec, dict) for spec in body["specs"].values()):
            raise ValueError("a manifest of models that have no fields")
        if not all(isinstance(digest, str) and KEY.fullmatch(digest) for digest in body["files"].values()):
            raise ValueError("a manifest of files that have no digests")
        return Manifest(body["kind"], arrays, entries, body["specs"], body["files"])

    @property
    def body(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        arrays = {name: [dtype.name, list(shape)] for name, (dtype, shape) in self.arrays.items()}
        return {
            "kind": self.kind,
            "arrays": arrays,
            "entries": self.entries,
            "specs": self.specs,
            "files": self.files,
        }

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its rows."""
        return tuple(self.entries)

    @property
    def chunks(self) -> tuple[str, ...]:
        """For every row, the chunk it is of."""
        field = "chunk" if self.kind == "patches" else "key"
        return tuple(_key(entry["about"][field]) for entry in self.entries.values())

    def nbytes(self, array: str) -> int:
        """Bytes of a pack's array."""
        dtype, shape = self.arrays[array]
        return math.prod(shape) * dtype.itemsize

    def row_nbytes(self, key: str) -> int:
        """Bytes of a row's arrays, wherever they lie."""
        leaves = self.entries[key]["leaves"].values()
        return sum(math.prod(_shape(shape)) * _dtype(dtype).itemsize for _, dtype, shape, _, _ in leaves)

    def leaves(self, key: str) -> dict[str, Leaf]:
        """Where the arrays of a row lie, by their names.

        Raises:
            ValueError: the manifest places them outside of its arrays, or has no digests of them.
            LibraryCorruptError: it has digests by an algorithm that this version does not know.
        """
        leaves = {}
        for name, (array, dtype, shape, start, digest) in self.entries[key]["leaves"].items():
            leaf = Leaf(array, _dtype(dtype), _shape(shape), _size(start), digest)
            inside = leaf.start + leaf.nbytes <= self.nbytes(array) if array in self.arrays else not leaf.nbytes
            if not inside:
                raise ValueError(f"leaf {name!r} lies outside of its array")
            check_digest(digest, blocks(name, leaf.shape))
            leaves[_name(name)] = leaf
        return leaves


def arranged(kind: Kind, rows: Iterable[Row]) -> tuple[dict[str, np.ndarray], Manifest]:
    """The arrays of a pack, and its manifest but for the files.

    Chunks of equal shapes and one storage are stacked [N, …]. Patches, of which no two are alike, lie one after the
    other.
    """
    parts: dict[str, list[np.ndarray]] = {}
    entries = {}
    specs = {}
    groups = {}
    sizes = {}
    for row in rows:
        shapes = tuple((name, leaf.dtype.name, leaf.shape) for name, leaf in row.leaves.items())
        alike = (row.about.get("storage"), str(row.about.get("packed")), *shapes)
        group = groups.setdefault(alike, len(groups)) if kind == "chunks" else None
        leaves = {}
        for name, leaf in row.leaves.items():
            array = f"{leaf.dtype.name}.{name}" if group is None else f"{group}.{name}"
            leaves[name] = [array if leaf.size else "", leaf.dtype.name, list(leaf.shape), 0, row.digests[name]]
            if leaf.size:
                leaves[name][3] = sizes.get(array, 0)
                sizes[array] = leaves[name][3] + leaf.nbytes
                # Orbax ends in the middle where a byte of an array of truths is neither 0 nor 1.
                stored = leaf.view(np.uint8) if leaf.dtype == np.bool_ else leaf
                parts.setdefault(array, []).append(stored.reshape(-1) if group is None else stored)
        entries[row.key] = {"about": row.about, "leaves": leaves}
        if row.spec is not None:
            specs[row.about["spec"]] = row.spec
    join = np.stack if kind == "chunks" else np.concatenate
    arrays = {name: join(part) for name, part in parts.items()}
    return arrays, Manifest(kind, {name: (a.dtype, a.shape) for name, a in arrays.items()}, entries, specs, {})


def _name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > NAME_LENGTH + 50:  # with its group or dtype
        raise ValueError(f"{name!r} is no name of an array")
    return name


def _key(key: Any) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key")
    return key


def _dtype(name: Any) -> np.dtype:
    if name not in DTYPES:
        raise ValueError(f"{name!r} is no dtype that is stored")
    return DTYPES[name]


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > AXES + 1:  # those of a row, and which row
        raise ValueError(f"{shape!r} is no shape")
    return tuple(_size(size) for size in shape)


def _size(size: Any) -> int:
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is no size")
    return size
