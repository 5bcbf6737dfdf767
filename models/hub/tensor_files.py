"""The safetensors files of a Hugging Face folder, read as views of the memory-mapped file (bf16 through ml_dtypes)."""

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds

from models.errors import GitLfsPointerError, WeightsError, few
from models.hub.files import JSON_BYTES as HEADER_BYTES
from models.hub.files import LFS_POINTER, check_no_pointer, is_regular, parsed, read_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The dtype names of the safetensors format."""


class MissingFileError(WeightsError, FileNotFoundError):
    """A weight file is not there."""


class TruncatedFileError(WeightsError):
    """A weight file ends before what its header declares."""


class CorruptFileError(WeightsError):
    """A weight file or index does not keep to its format."""


def open_tensors(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a folder as a read-only view of its memory-mapped file, under the name it has there.

    Raises:
        MissingFileError, TruncatedFileError, CorruptFileError: the files are not whole.
        GitLfsPointerError: one is a pointer of Git LFS, whose file was not fetched.
    """
    folder = Path(folder)
    if is_regular(folder / SINGLE):
        return dict(_open_file(folder / SINGLE))
    if not is_regular(folder / INDEX):
        raise MissingFileError(
            f"{folder} has neither {SINGLE} nor {INDEX}; expected a Hugging Face folder of safetensors"
        )
    try:
        index = parsed(read_bytes(folder / INDEX, HEADER_BYTES), folder / INDEX, unique=True)
        placed = {name: os.fspath(shard) for name, shard in index["weight_map"].items()}
    except GitLfsPointerError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{folder / INDEX} is not an index with a weight_map ({error}); fetch it again"
        ) from error
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(placed.values())):
        if Path(shard).name != shard or "\0" in shard or "\\" in shard:
            raise CorruptFileError(
                f"{folder / INDEX} names the shard {shard!r:.200}; expected a file name in the same folder"
            )
        if not is_regular(folder / shard):
            raise MissingFileError(f"{folder / INDEX} names the shard {shard}, which is not there; fetch it again")
        for name, tensor in _open_file(folder / shard):
            if placed.get(name) != shard:
                raise CorruptFileError(
                    f"{shard} has {name}, which the index places in {placed.get(name)}; fetch the folder again"
                )
            tensors[name] = tensor
    lost = sorted(placed.keys() - tensors.keys())
    if lost:
        raise CorruptFileError(
            f"{folder / INDEX} places {few(lost)} in shards that do not have them; fetch the folder again"
        )
    return tensors


def _open_file(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one safetensors file: u64 header length, JSON header, then the bytes it points into."""
    size = path.stat().st_size
    if size < 8:
        raise TruncatedFileError(
            f"{path} has {size} bytes; a safetensors file starts with 8 bytes of header length; fetch it again"
        )
    raw = np.memmap(path, np.uint8, "r")
    check_no_pointer(path, raw[: len(LFS_POINTER)].tobytes())
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    if start - 8 > HEADER_BYTES:
        raise CorruptFileError(
            f"{path} declares a header of {start - 8} bytes; expected at most {HEADER_BYTES}: fetch it again"
        )
    if start > size:
        raise TruncatedFileError(f"{path} has {size} bytes and declares a header up to byte {start}; fetch it again")
    try:
        header = parsed(raw[8:start].tobytes(), path, unique=True)
        entries = [
            (name, DTYPES[entry["dtype"]], _whole(entry["shape"]), _whole(entry["data_offsets"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
        declared = start + max((stop for *_, (_, stop) in entries), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{path} has a header that is not safetensors ({error!r:.200}); fetch it again"
        ) from error
    if declared > size:
        raise TruncatedFileError(f"{path} has {size} bytes and declares {declared}; fetch it again")
    if declared < size:
        raise CorruptFileError(f"{path} has {size} bytes and declares only {declared}; fetch it again")
    data = raw[start:]
    ended = 0
    for name, _, _, (first, stop) in sorted(entries, key=lambda entry: entry[3]):
        if first != ended:
            raise CorruptFileError(
                f"{path} gives {name} bytes {first} to {stop}; expected them from {ended} on, where the tensor before "
                "ends: fetch it again"
            )
        ended = stop
    for name, dtype, shape, (first, stop) in entries:
        if stop - first != math.prod(shape) * dtype.itemsize:
            raise CorruptFileError(
                f"{path} gives {name} bytes {first} to {stop} for {dtype}{list(shape)}; fetch it again"
            )
        yield name, np.asarray(data[first:stop]).view(dtype).reshape(shape)


def release(tensor: np.ndarray) -> None:
    """Drop the pages of a mapped tensor from the process's memory; whoever reads it again reads the file again.

    Without it everything that was read of a file counts as memory until the system needs it.
    """
    mapped: Any = tensor
    while mapped is not None and not isinstance(mapped, mmap.mmap):
        mapped = getattr(mapped, "base", None)
    if mapped is None or not tensor.size or not hasattr(mapped, "madvise"):
        return
    first, stop = byte_bounds(tensor)
    origin, _ = byte_bounds(np.frombuffer(mapped, np.uint8))
    start = (first - origin) // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, min(stop - origin, len(mapped)) - start)


def _whole(values: Any) -> tuple[int, ...]:
    """A list of sizes or offsets.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(values, list) or len(values) > 16 or not all(type(each) is int and each >= 0 for each in values):
        raise ValueError(f"{str(values)[:100]} where whole numbers are expected")
    if any(each >= 2**62 for each in values):
        raise ValueError(f"{max(values)} is more than a file has")
    return tuple(values)


def write_tensors(
    folder: str | os.PathLike[str], kind: str, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[np.ndarray]
) -> None:
    """Write ``model.safetensors``, one tensor at a time. The file appears whole, or not at all.

    Args:
        folder: made if it is not there.
        kind: the format's name of the dtype, a key of `DTYPES`.
        shapes: name and shape of every tensor.
        tensors: their values, in the same order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without a format
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{SINGLE}.partial"
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / SINGLE)
    finally:
        partial.unlink(missing_ok=True)
