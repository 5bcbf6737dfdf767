"""Weights from and to a Hugging Face folder of safetensors, strict both ways, without torch.

A tensor is read as a view of the memory-mapped file (bf16 through ml_dtypes) and copied once, into its place in a
stacked leaf.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.dtypes import DtypeError, floating, named
from models.blocks.params import ParamInfo, Params, is_info
from models.hub.tensor_files import DTYPES, WeightsError, few, open_tensors, write_tensors

LOADABLE = ("F64", "F32", "F16", "BF16")
"""What may fill a parameter: other dtypes are quantised and need their scales."""

WHOLE_BYTES = 64 * 2**20
"""Up to this many bytes of weights, `revision` hashes every byte."""

_PAGE = 4096
"""Bytes that give one sum of `revision`."""

_PAGES = 2**14
"""How many are summed at once."""

_FACTORS = np.arange(_PAGE // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
"""What the words of a page are multiplied with: odd, so that a changed word changes the sum, and each another."""


class MissingTensorError(WeightsError):
    """The model needs a tensor that the folder does not hold."""


class UnexpectedTensorError(WeightsError):
    """The folder holds a tensor that the model has no use for."""


class TensorShapeError(WeightsError):
    """A tensor has another shape than the configuration asks for."""


class TensorDtypeError(WeightsError):
    """A tensor has a dtype that cannot fill a parameter."""


class TensorRangeError(WeightsError):
    """A tensor has values that the parameters' dtype does not reach."""


@dataclass(frozen=True)
class Transform:
    """How one hub tensor becomes one layer's parameter, and back; views where numpy can."""

    from_hub: Callable[[np.ndarray], np.ndarray]
    to_hub: Callable[[np.ndarray], np.ndarray]


AS_IS = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(np.transpose, np.transpose)
"""A dense weight: [out, in] on the hub, [in, out] here."""


def flattened_kernel(kernel: tuple[int, ...]) -> Transform:
    """A convolution whose stride is its kernel: [out, *kernel] on the hub, a dense [prod(kernel), out] here."""
    return Transform(lambda x: x.reshape(x.shape[0], -1).T, lambda x: x.T.reshape(-1, *kernel))


@dataclass(frozen=True)
class Row:
    """One line of a weight table.

    Attributes:
        name: the hub name; each ``{}`` stands for the index on one leading axis of a stacked leaf: layer, then expert.
        path: where it goes in the parameters, keys joined by ``/``.
        transform: how.
        first: the layer that stands first in the leaf.
    """

    name: str
    path: str
    transform: Transform = AS_IS
    first: int = 0

    def names(self, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every hub name that a leaf of this shape is made of, and its index on the leading axes."""
        for index in np.ndindex(shape[: self.name.count("{}")]):
            yield self.name.format(*(i + self.first * (axis == 0) for axis, i in enumerate(index))), index


@dataclass(frozen=True)
class WeightTable:
    """Every tensor of a checkpoint format.

    Attributes:
        rows: what goes where.
        renames: (regex, replacement) pairs that turn other spellings of a name into the rows'.
        copies: names that may be there and must then hold the same bytes as another (tied weights saved twice).
        ignored: regexes of whole names that may be there and are not parameters (buffers).
    """

    rows: tuple[Row, ...]
    renames: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def canonical(self, name: str) -> str:
        """A name in the rows' spelling."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def skips(self, name: str) -> bool:
        """Whether a tensor of this name is not a parameter."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


@dataclass(frozen=True)
class _Slot:
    """Where one hub tensor goes."""

    row: Row
    index: tuple[int, ...]
    hub_shape: tuple[int, ...]


def load_params(folder: str | os.PathLike[str], declaration: Params, table: WeightTable, dtype: Any) -> Params:
    """The parameters of a Hugging Face folder.

    Args:
        folder: holds ``model.safetensors``, or ``model.safetensors.index.json`` and its shards.
        declaration: nested dict of `ParamInfo`, what the model needs.
        table: which tensor fills which leaf.
        dtype: of the parameters that are not declared in another; tensors stored in another one are cast.

    Returns:
        Nested dict of arrays, shaped as declared.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
        MissingTensorError, UnexpectedTensorError: some leaf would not be filled, or some tensor not used.
        TensorShapeError, TensorDtypeError, TensorRangeError: a tensor does not fit its place.
        DtypeError: parameters cannot have the dtype.
    """
    dtype = floating(dtype)
    infos, treedef = _flatten(declaration, is_leaf=is_info)
    slots = _slots({path: info.shape for path, info in infos.items()}, table)
    tensors = _renamed(open_tensors(folder), table)
    _check(folder, slots, tensors, table)

    places: dict[str, list[tuple[_Slot, np.ndarray]]] = {path: [] for path in infos}
    for name, slot in slots.items():
        places[slot.row.path].append((slot, tensors[name]))

    def fill(path: str, info: ParamInfo) -> jax.Array:
        leaf = np.empty(info.shape, np.dtype(info.dtype or dtype))
        for slot, tensor in places[path]:
            with np.errstate(over="ignore"):
                leaf[(*slot.index, ...)] = slot.row.transform.from_hub(tensor)
            _check_range(slot, tensor, leaf[(*slot.index, ...)])
        return jnp.asarray(leaf)

    return jax.tree.unflatten(treedef, [fill(path, info) for path, info in infos.items()])


def save_params(folder: str | os.PathLike[str], params: Params, table: WeightTable, dtype: Any) -> None:
    """Write parameters as ``model.safetensors`` under their hub names: the inverse of `load_params`.

    Nothing half-written stays: the file appears whole, or not at all.

    Args:
        folder: made if it is not there.
        params: nested dict of arrays.
        table: which leaf is which tensor.
        dtype: to store, one of f64, f32, f16, bf16.

    Raises:
        UnexpectedTensorError, MissingTensorError: the table and the parameters do not name the same leaves.
        TensorDtypeError: the dtype cannot be stored.
        TensorRangeError: a parameter has values that it does not reach.
    """
    leaves, _ = _flatten(params)
    try:
        asked = named(dtype)
    except DtypeError as error:
        raise TensorDtypeError(f"cannot store {dtype!r}: {error}") from error
    kind = next((kind for kind in LOADABLE if DTYPES[kind] == asked), None)
    if kind is None:
        raise TensorDtypeError(f"cannot store {asked}; expected one of {[str(DTYPES[k]) for k in LOADABLE]}")
    slots = dict(sorted(_slots({path: tuple(leaf.shape) for path, leaf in leaves.items()}, table).items()))

    def stored(slot: _Slot) -> np.ndarray:
        leaf = leaves[slot.row.path]
        values = np.asarray(leaf[(*slot.index, ...)])
        with np.errstate(over="ignore"):
            cast = values.astype(DTYPES[kind])
        _check_range(slot, values, cast)
        return slot.row.transform.to_hub(cast)

    shapes = {name: slot.hub_shape for name, slot in slots.items()}
    write_tensors(folder, kind, shapes, (stored(slot) for slot in slots.values()))


def stored_dtype(folder: str | os.PathLike[str]) -> np.dtype:
    """The dtype in which most bytes of a folder's floating-point weights are stored.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
        TensorDtypeError: it holds no such weights.
    """
    sizes: dict[np.dtype, int] = {}
    for tensor in open_tensors(folder).values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    floats = [dtype for dtype in sizes if dtype in [DTYPES[kind] for kind in LOADABLE]]
    if not floats:
        raise TensorDtypeError(f"{folder} holds weights in {few(map(str, sizes))}; expected some in {LOADABLE}")
    return max(floats, key=lambda dtype: sizes[dtype])


def revision(folder: str | os.PathLike[str]) -> str:
    """A fingerprint of a folder's weights: sha256 over every tensor's name, dtype, shape and content, in hexadecimal.

    How the tensors are spread over files does not matter. Weights of up to 64 MiB are hashed to the last byte. Larger
    ones are summed first, at the speed of memory: every 4 KiB give 64 bits, in which no change of a single byte, value
    or group of eight bytes is lost, and these are hashed.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
    """
    tensors = open_tensors(folder)
    whole = sum(tensor.nbytes for tensor in tensors.values()) <= WHOLE_BYTES
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content = tensor.reshape(-1).view(np.uint8)
        pages = 0 if whole else content.size // _PAGE
        for start in range(0, pages, _PAGES):  # a part at a time, so that a mapped file is not held in memory
            part = content[start * _PAGE : min(start + _PAGES, pages) * _PAGE]
            digest.update((part.view(np.uint64).reshape(-1, len(_FACTORS)) @ _FACTORS).data)
        digest.update(content[pages * _PAGE :].data)
    return digest.hexdigest()


def _check_range(slot: _Slot, given: np.ndarray, cast: np.ndarray) -> None:
    """Refuse a cast that made infinite what is finite; only these narrow the exponent by much."""
    if given.dtype == cast.dtype or not (cast.dtype == np.float16 or given.dtype == np.float64):
        return
    if not np.isfinite(cast).all() and np.isfinite(given).all():
        index = "".join(f"[{i}]" for i in slot.index)
        raise TensorRangeError(
            f"{slot.row.path}{index} has values up to {float(np.abs(given).max()):.3g}, and {cast.dtype} ends at "
            f"{float(jnp.finfo(cast.dtype).max):.3g}; use bfloat16 or float32"
        )


def _flatten(tree: Params, is_leaf: Callable[[Any], bool] | None = None) -> tuple[dict[str, Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}, treedef


def _slots(shapes: Mapping[str, tuple[int, ...]], table: WeightTable) -> dict[str, _Slot]:
    """Every hub name that leaves of these shapes are made of."""
    rows = {row.path: row for row in table.rows}
    if rows.keys() != shapes.keys():
        unknown = sorted(rows.keys() - shapes.keys())
        unfilled = sorted(shapes.keys() - rows.keys())
        raise (MissingTensorError if unfilled else UnexpectedTensorError)(
            f"weight table and parameters do not agree: no row for {few(unfilled)}, no parameter for {few(unknown)}"
        )
    slots = {}
    for path, row in rows.items():
        shape = shapes[path][row.name.count("{}") :]
        hub_shape = row.transform.to_hub(np.broadcast_to(np.float32(0), shape)).shape
        for name, index in row.names(shapes[path]):
            slots[name] = _Slot(row, index, hub_shape)
    return slots


def _renamed(tensors: Mapping[str, np.ndarray], table: WeightTable) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        canonical = table.canonical(name)
        if canonical in renamed:
            raise UnexpectedTensorError(f"{name} is there twice, under two spellings of {canonical}; expected one")
        renamed[canonical] = tensor
    return renamed


def _check(folder: Any, slots: Mapping[str, _Slot], tensors: Mapping[str, np.ndarray], table: WeightTable) -> None:
    """Names, shapes and dtypes, before anything is copied."""
    copies = dict(table.copies)
    missing = [name for name in slots if name not in tensors]
    unexpected = [name for name in tensors if not (name in slots or name in copies or table.skips(name))]
    if missing:
        raise MissingTensorError(
            f"{folder} lacks {few(missing)}, which the configuration asks for; it also holds {few(unexpected)}: "
            "check that config.json and the weights are of the same model"
        )
    if unexpected:
        raise UnexpectedTensorError(
            f"{folder} holds {few(unexpected)}, which the configuration has no place for; "
            "check that config.json and the weights are of the same model"
        )
    for name, slot in slots.items():
        if tensors[name].shape != slot.hub_shape:
            raise TensorShapeError(
                f"{name} is {list(tensors[name].shape)}; the configuration asks for {list(slot.hub_shape)}: "
                "check that config.json and the weights are of the same model"
            )
        if tensors[name].dtype not in [DTYPES[kind] for kind in LOADABLE]:
            raise TensorDtypeError(
                f"{name} is stored as {tensors[name].dtype}; expected {LOADABLE}: use one that is not quantised"
            )
    for name, original in copies.items():
        if name in tensors and not np.array_equal(tensors[name], tensors[original]):
            raise UnexpectedTensorError(
                f"{name} differs from {original}, to which the configuration ties it; "
                "set tie_word_embeddings to what the weights are"
            )
