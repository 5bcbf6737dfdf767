"""The header of a GGUF file: metadata, and where its tensors lie. Nothing that it says is trusted before it is checked.

The layout is that of llama.cpp's ``gguf.md``: magic, version, counts, key-value pairs, tensor infos, padding, data.
"""

import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.library.opening import QUIET
from models.hub.files import LFS_POINTER, check_no_pointer
from models.hub.gguf.errors import (
    CorruptGgufError,
    GgufByteOrderError,
    GgufPackageError,
    GgufTensorSizeError,
    GgufVersionError,
    NotGgufError,
    SplitGgufError,
    TruncatedGgufError,
    UnsupportedTensorTypeError,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
INSTALL = 'pip install "kamera-jax[gguf]"'
AGAIN = "fetch the file again"

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9
MOST_VALUES = 2**23
"""Values of all arrays of the metadata, at most: a vocabulary of 250,000 tokens has a million with its merges."""

MOST_TENSORS = 2**17
"""Tensors of a file at most."""

_DEEPEST = 4
_LONGEST = 2**20
_MOST_DIMENSIONS = 4
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, and how it is stored.

    Attributes:
        name: as llama.cpp calls it, such as ``blk.0.attn_q.weight``.
        shape: slowest axis first, as in numpy; the file lists them the other way round.
        kind: number of its type in ggml.
        start: its first byte in the file.
        row_bytes: bytes of one row of the last axis.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """A GGUF file's metadata and tensors, which are dequantised when they are asked for.

    Attributes:
        path: the file.
        metadata: its key-value pairs; arrays as lists.
        tensors: by name, in the file's order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the header and hold it against the file's size.

        Raises:
            GgufError: a subclass named for what is wrong with the file, or for the package ``gguf`` that is missing.
            FileNotFoundError: there is no such file.
        """
        self.path = Path(path)
        if (part := _PART.search(self.path.name)) and int(part[1]) > 1:
            raise SplitGgufError(_split_message(self.path))
        with _opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                start = file.read(4)
                kind = NotGgufError if start != MAGIC[: len(start)] or not start else TruncatedGgufError
                raise kind(
                    f"{self.path} has {size} bytes; a GGUF file begins with {MAGIC!r:.200} and 20 bytes more: {AGAIN}"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Header(self.path, data)
                counts = header.opening()
                self.metadata = dict(header.pairs(counts[1]))
                if self.metadata.get("split.count", 0) not in (0, 1):
                    raise SplitGgufError(_split_message(self.path))
                self.tensors = header.tensors(counts[0], self.metadata.get("general.alignment", 32))

    def rows(self, name: str) -> np.ndarray:
        """A tensor's bytes, u8[…, bytes of a row], as a view of the memory-mapped file."""
        info = self.tensors[name]
        raw = np.memmap(self.path, np.uint8, "r", offset=info.start, shape=(info.nbytes,))
        return np.asarray(raw).reshape(*info.shape[:-1], info.row_bytes)

    def dequantise(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Float32 values of rows of a tensor's bytes."""
        return dequantise(self.tensors[name].kind, rows)


def _opened(path: Path) -> Any:
    """The file, open for reading; nothing else than a file blocks or is read.

    Raises:
        NotGgufError: it is a folder, pipe or device.
        OSError: it is not there, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | QUIET)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotGgufError(f"{path} is a folder, pipe or device; expected a GGUF file")
    return os.fdopen(descriptor, "rb")


def dequantise(kind: int, rows: np.ndarray) -> np.ndarray:
    """Float32 values of rows of bytes of a ggml type.

    Raises:
        UnsupportedTensorTypeError: the package ``gguf`` does not dequantise it.
    """
    package = _package()
    try:
        named = package.GGMLQuantizationType(kind)
        return np.asarray(package.dequantize(rows, named), np.float32)
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedTensorTypeError(
            f"tensors of ggml type {kind} are not dequantised by the installed package gguf ({error}); upgrade it "
            "(pip install --upgrade gguf), or quantise the model in another way, such as Q8_0"
        ) from error


@cache
def _row(kind: int) -> tuple[str, int, int]:
    """Name of a ggml type, values of one of its blocks, and the block's bytes.

    Raises:
        UnsupportedTensorTypeError: the package ``gguf`` does not dequantise it.
    """
    package = _package()
    known = {each.value: each for each in package.GGML_QUANT_SIZES}
    if kind not in known:
        raise UnsupportedTensorTypeError(
            f"tensors of ggml type {kind} are not known to the installed package gguf; upgrade it (pip install "
            "--upgrade gguf), or quantise the model in another way, such as Q8_0"
        )
    block, size = package.GGML_QUANT_SIZES[known[kind]]
    if kind not in (0, 1):
        dequantise(kind, np.zeros((1, size), np.uint8))
    return known[kind].name, block, size


@cache
def _package() -> Any:
    try:
        import gguf

        if not (hasattr(gguf, "dequantize") and hasattr(gguf, "GGML_QUANT_SIZES")):
            raise ImportError("it is too old")
    except ImportError as error:
        raise GgufPackageError(f"reading GGUF files needs the package gguf ({error}): {INSTALL}") from error
    return gguf


def _split_message(path: Path) -> str:
    return (
        f"{path} is one part of a model that is split over several GGUF files; expected the whole in one: put the "
        "parts together with llama.cpp's llama-gguf-split --merge FIRST_PART WHOLE.gguf"
    )


class _Header:
    """A cursor in the header of a file, which never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self._values = 0

    def opening(self) -> tuple[int, int]:
        """Numbers of tensors and of key-value pairs."""
        if self.data[:4] != MAGIC:
            check_no_pointer(self.path, self.data[: len(LFS_POINTER)])
            raise NotGgufError(
                f"{self.path} begins with {self.data[:4]!r}; GGUF files begin with {MAGIC!r}: name a .gguf file, or a "
                "folder in hub format"
            )
        self.at = 4
        version = self._number("<I")
        if version & 0xFFFF == 0:
            raise GgufByteOrderError(
                f"{self.path} is big-endian (version {version:#010x}); only little-endian files are read: convert it "
                "with gguf-convert-endian FILE little, which the package gguf brings"
            )
        if version not in VERSIONS:
            raise GgufVersionError(
                f"{self.path} is GGUF of version {version}; expected {' or '.join(map(str, VERSIONS))}: convert the "
                "model anew with a current llama.cpp"
            )
        return self._number("<Q"), self._number("<Q")

    def pairs(self, count: int) -> Iterator[tuple[str, Any]]:
        """The key-value pairs."""
        seen = set()
        for _ in range(count):
            key = self._text()
            if key in seen:
                raise CorruptGgufError(f"{self.path} has the key {key!r:.200} twice; {AGAIN}")
            seen.add(key)
            yield key, self._value(key, self._number("<I"), 0)

    def tensors(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        """The tensors, each right behind the one before, but for padding."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise CorruptGgufError(
                f"{self.path}: general.alignment is {alignment!r:.200}; expected a power of 2; {AGAIN}"
            )
        if count > MOST_TENSORS:
            raise CorruptGgufError(f"{self.path} has {count} tensors; expected at most {MOST_TENSORS}: {AGAIN}")
        declared = [self._tensor() for _ in range(count)]
        base = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for name, shape, kind, offset in declared:
            if name in tensors:
                raise CorruptGgufError(f"{self.path} has the tensor {name!r:.200} twice; {AGAIN}")
            info = self._placed(name, shape, kind, base + offset)
            if offset != expected:
                raise GgufTensorSizeError(
                    f"{self.path}: {name} starts at byte {offset} of the data; expected {expected}, where what is "
                    f"before it ends: a size in the header disagrees with the data; {AGAIN}"
                )
            expected = -(-(offset + info.nbytes) // alignment) * alignment
            if info.start + info.nbytes > len(self.data):
                raise TruncatedGgufError(
                    f"{self.path} has {len(self.data)} bytes, and {name} ends at byte {info.start + info.nbytes}; "
                    f"{AGAIN}"
                )
            tensors[name] = info
        return tensors

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorInfo:
        try:
            named, block, size = _row(kind)
        except UnsupportedTensorTypeError as error:
            raise UnsupportedTensorTypeError(f"{self.path}: {name}: {error}") from error
        if shape[-1] % block:
            raise GgufTensorSizeError(
                f"{self.path}: {name} is {named}{list(shape)}, and {named} has blocks of {block} values; expected "
                f"rows of whole blocks: {AGAIN}"
            )
        return TensorInfo(name, shape, kind, start, shape[-1] // block * size)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise CorruptGgufError(
                f"{self.path}: {name!r:.200} has {dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}: {AGAIN}"
            )
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        if min(shape) < 1 or math.prod(shape) >= 2**60:
            raise CorruptGgufError(f"{self.path}: {name!r:.200} has the shape {list(shape)}; {AGAIN}")
        return name, shape, self._number("<I"), self._number("<Q")

    def _value(self, key: str, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY and depth < _DEEPEST:
            inner = self._number("<I")
            count = self._number("<Q")
            self._values += min(count, len(self.data))
            if self._values > MOST_VALUES:
                raise CorruptGgufError(
                    f"{self.path}: {key[:80]!r:.200} has {count} values; expected at most {MOST_VALUES} in all: {AGAIN}"
                )
            if inner not in _SCALARS:
                return [self._value(key, inner, depth + 1) for _ in range(count)]
            width = struct.calcsize(_SCALARS[inner])  # as many as the file has bytes for, before they are made
            self._reach(count * width)
            values = struct.unpack_from(f"<{count}{_SCALARS[inner][1]}", self.data, self.at)
            self.at += count * width
            return list(values)
        raise CorruptGgufError(
            f"{self.path}: {key!r:.200} has a value of type {kind}, which the format has not; {AGAIN}"
        )

    def _text(self) -> str:
        size = self._number("<Q")
        self._reach(size)
        if size > _LONGEST:
            raise CorruptGgufError(f"{self.path} has a text of {size} bytes; expected at most {_LONGEST}: {AGAIN}")
        raw = self.data[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise CorruptGgufError(f"{self.path}: text at byte {self.at - size} is not UTF-8; {AGAIN}") from error

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._reach(size)
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value

    def _reach(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise TruncatedGgufError(
                f"{self.path} has {len(self.data)} bytes, and its header goes on to byte {self.at + size} at least; "
                f"{AGAIN}"
            )
