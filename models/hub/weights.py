"""Weights from and to a Hugging Face folder of safetensors, strict both ways, without torch.

A tensor is read as a view of the memory-mapped file (bf16 through ml_dtypes) and copied once, into its place in a
stacked leaf, or in the shard of it that a device needs. `models.hub.weight_table` says which tensor is which leaf.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.dtypes import DtypeError, floating, named
from models.blocks.params import ParamInfo, Params, is_info
from models.errors import (
    MissingTensorError,
    NonFiniteWeightsError,
    TensorDtypeError,
    TensorRangeError,
    TensorShapeError,
    UnexpectedTensorError,
    WeightsError,
    few,
)
from models.hub.fields import UnsupportedConfigError
from models.hub.tensor_files import DTYPES, open_tensors, release, write_tensors
from models.hub.weight_table import (
    AS_IS,
    TRANSPOSED,
    Either,
    HubTensor,
    Part,
    Row,
    Transform,
    WeightTable,
    flattened_kernel,
)

__all__ = [
    "AS_IS",
    "LOADABLE",
    "TRANSPOSED",
    "WHOLE_BYTES",
    "Either",
    "MissingTensorError",
    "Row",
    "TensorDtypeError",
    "TensorRangeError",
    "TensorShapeError",
    "Transform",
    "UnexpectedTensorError",
    "WeightTable",
    "WeightsError",
    "flattened_kernel",
    "load_params",
    "revision",
    "save_params",
    "stored_dtype",
]

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


Source = tuple[Part, np.ndarray]
"""A part of a leaf, and the hub tensor that it is in."""


def load_params(
    folder: str | os.PathLike[str],
    declaration: Params,
    table: WeightTable,
    dtype: Any,
    shardings: Params | None = None,
    stored_as: Callable[[str, jax.Array], Any] = lambda path, leaf: leaf,
) -> Params:
    """The parameters of a Hugging Face folder.

    Leaf by leaf: the host has no copy of more than one, and of the files nothing beyond what is being read. On a mesh
    each leaf is placed shard by shard: of the files only what this process's devices need, as far as a row's transform
    is a view, and no more than one shard is in the host's memory at a time.

    Args:
        folder: has ``model.safetensors``, or ``model.safetensors.index.json`` and its shards.
        declaration: nested dict of `ParamInfo`, what the model needs.
        table: which tensor fills which leaf.
        dtype: of the parameters that are not declared in another; tensors stored in another one are cast.
        shardings: where each leaf goes, a nested dict as `models.blocks.sharding.param_shardings` gives it; the default
            device if left out.
        stored_as: what a leaf, by its path and as it was placed, is kept as; as it is if left out.

    Returns:
        Nested dict of arrays, shaped as declared.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
        MissingTensorError, UnexpectedTensorError: some leaf would not be filled, or some tensor not used.
        TensorShapeError, TensorDtypeError, TensorRangeError: a tensor does not fit its place.
        NonFiniteWeightsError: a tensor has values that are NaN or infinite.
        DtypeError: parameters cannot have the dtype.
    """
    dtype = floating(dtype)
    infos, treedef = _flatten(declaration, is_leaf=is_info)
    stored = _renamed(open_tensors(folder), table)
    shapes = {path: info.shape for path, info in infos.items()}
    if (least := table.least(shapes)) > 4 * len(stored) + 1000:  # before they are counted up
        raise MissingTensorError(
            f"{folder} has {len(stored)} tensors, and the configuration asks for {least} at least; check that "
            "config.json and the weights are of the same model"
        )
    tensors = table.tensors(shapes, {name: tensor.shape for name, tensor in stored.items()})
    _check(folder, tensors, stored, table)

    sources: dict[str, list[Source]] = {path: [] for path in infos}
    for name, tensor in tensors.items():
        for part in tensor.parts:
            sources[part.path].append((part, stored[name]))
    placed = dict.fromkeys(infos) if shardings is None else _flatten(shardings)[0]
    kinds = {path: np.dtype(info.dtype or dtype) for path, info in infos.items()}
    leaves = [stored_as(path, _place(info, placed[path], sources[path], kinds[path])) for path, info in infos.items()]
    return jax.tree.unflatten(treedef, leaves)


def _place(
    info: ParamInfo, sharding: jax.sharding.Sharding | None, sources: Sequence[Source], dtype: np.dtype
) -> jax.Array:
    """A leaf on the devices that it is for."""
    if sharding is None:
        whole = [(0, size) for size in info.shape]
        return jax.block_until_ready(jax.device_put(_read(info.shape, whole, sources, dtype)))
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(info.shape).items():
        assert index is not None
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, info.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, alike in devices.items():
        shard = _read(info.shape, bounds, sources, dtype)
        # Waited for, so that the host does not keep what the devices have already been sent.
        arrays += jax.block_until_ready([jax.device_put(shard, device) for device in alike])
    return jax.make_array_from_single_device_arrays(info.shape, sharding, arrays)


def _read(
    shape: tuple[int, ...], bounds: Sequence[tuple[int, int]], sources: Sequence[Source], dtype: np.dtype
) -> np.ndarray:
    """What lies between these bounds, (start, stop) on every axis of a leaf."""
    values = np.empty([stop - start for start, stop in bounds], dtype)
    for part, tensor in sources:
        leading = len(part.index)
        if not all(start <= i < stop for i, (start, stop) in zip(part.index, bounds[:leading], strict=True)):
            continue
        within = tuple(slice(*each) for each in bounds[leading:])
        given = part.transform.from_hub(tensor[part.piece])[within]
        place = (*(i - start for i, (start, _) in zip(part.index, bounds[:leading], strict=True)), ...)
        with np.errstate(over="ignore"):
            values[place] = given
        _check_range(part, given, values[place])
        _check_finite(part, values[place])
        release(tensor[part.piece])
    return values


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
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    tensors = dict(sorted(table.tensors(shapes).items()))

    def stored(part: Part) -> np.ndarray:
        values = np.asarray(leaves[part.path][(*part.index, ...)])
        with np.errstate(over="ignore"):
            cast = values.astype(DTYPES[kind])
        _check_range(part, values, cast)
        return part.transform.to_hub(cast)

    def whole(tensor: HubTensor) -> np.ndarray:
        parts = [stored(part) for part in tensor.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=tensor.axis)

    hub_shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(folder, kind, hub_shapes, (whole(tensor) for tensor in tensors.values()))


def stored_dtype(folder: str | os.PathLike[str]) -> np.dtype:
    """The dtype in which most bytes of a folder's floating-point weights are stored.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
        TensorDtypeError: it has no such weights.
    """
    sizes: dict[np.dtype, int] = {}
    for tensor in open_tensors(folder).values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    floats = [dtype for dtype in sizes if dtype in [DTYPES[kind] for kind in LOADABLE]]
    if not floats:
        raise TensorDtypeError(f"{folder} has weights in {few(map(str, sizes))}; expected some in {LOADABLE}")
    return max(floats, key=lambda dtype: sizes[dtype])


def declared_dtype(folder: Path, mapping: Mapping[str, Any]) -> np.dtype:
    """The dtype that config.json states; where it does not, that in which most of the weights are stored.

    Raises:
        UnsupportedConfigError: parameters cannot have it.
    """
    field = next((name for name in ("dtype", "torch_dtype") if mapping.get(name) not in (None, "auto")), None)
    dtype = stored_dtype(folder) if field is None else mapping[field]
    try:
        return floating(dtype, f"config.json: {field}" if field else "the dtype that most of the weights are stored in")
    except DtypeError as error:
        raise UnsupportedConfigError(f'{error}; say what to load it in, such as load(…, dtype="float32")') from error


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
        for start in range(0, pages, _PAGES):  # a part at a time, so that a mapped file does not stay in memory
            part = content[start * _PAGE : min(start + _PAGES, pages) * _PAGE]
            digest.update((part.view(np.uint64).reshape(-1, len(_FACTORS)) @ _FACTORS).data)
            release(part)
        digest.update(content[pages * _PAGE :].data)
        release(content)
    return digest.hexdigest()


def _check_range(part: Part, given: np.ndarray, cast: np.ndarray) -> None:
    """Refuse a cast that made infinite what is finite; only these narrow the exponent by much."""
    if given.dtype == cast.dtype or not (cast.dtype == np.float16 or given.dtype == np.float64):
        return
    if not np.isfinite(cast).all() and np.isfinite(given).all():
        raise TensorRangeError(
            f"{part.label} has values up to {float(np.abs(given).max()):.3g}, and {cast.dtype} ends at "
            f"{float(jnp.finfo(cast.dtype).max):.3g}; use bfloat16 or float32"
        )


def _check_finite(part: Part, values: np.ndarray) -> None:
    """Refuse NaN and infinity, which would make every answer empty; two passes at the speed of memory.

    In their order as whole numbers, those of which all bits of the exponent are set come after all others.
    """
    if not values.size or values.dtype.kind in "iub":
        return
    bits = 8 * values.dtype.itemsize
    infinite = int(np.asarray(np.inf, values.dtype).view(f"u{bits // 8}"))
    largest = values.view(f"i{bits // 8}").max()  # of those without a sign, if there are any
    signed = values.view(f"u{bits // 8}").max()
    if largest >= infinite or signed >= infinite + 2 ** (bits - 1):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise NonFiniteWeightsError(
            f"{part.label} has {count} of {values.size} values that are NaN or infinite; fetch the weights again, or "
            "take a checkpoint from before training diverged"
        )


def _flatten(tree: Params, is_leaf: Callable[[Any], bool] | None = None) -> tuple[dict[str, Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}, treedef


def _renamed(tensors: Mapping[str, np.ndarray], table: WeightTable) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        canonical = table.canonical(name)
        if canonical in renamed:
            raise UnexpectedTensorError(f"{name} is there twice, under two spellings of {canonical}; expected one")
        renamed[canonical] = tensor
    return renamed


def _check(folder: Any, tensors: Mapping[str, HubTensor], stored: Mapping[str, np.ndarray], table: WeightTable) -> None:
    """Names, shapes and dtypes, before anything is copied."""
    copies = dict(table.copies)
    missing = [name for name in tensors if name not in stored]
    unexpected = [name for name in stored if not (name in tensors or name in copies or table.skips(name))]
    if missing:
        raise MissingTensorError(
            f"{folder} lacks {few(missing)}, which the configuration asks for; it also has {few(unexpected)}: "
            "check that config.json and the weights are of the same model"
        )
    if unexpected:
        raise UnexpectedTensorError(
            f"{folder} has {few(unexpected)}, which the configuration has no place for; "
            "check that config.json and the weights are of the same model"
        )
    for name, tensor in tensors.items():
        if stored[name].shape != tensor.shape:
            raise TensorShapeError(
                f"{name} is {list(stored[name].shape)}; the configuration asks for {list(tensor.shape)}: "
                "check that config.json and the weights are of the same model"
            )
        if stored[name].dtype not in [DTYPES[kind] for kind in LOADABLE]:
            raise TensorDtypeError(
                f"{name} is stored as {stored[name].dtype}; expected {LOADABLE}: use one that is not quantised"
            )
    for name, original in copies.items():
        if name in stored and not np.array_equal(stored[name], stored[original]):
            raise UnexpectedTensorError(
                f"{name} differs from {original}, to which the configuration ties it; "
                "set tie_word_embeddings to what the weights are"
            )
