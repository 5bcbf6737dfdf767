"""NumPy's files of Python objects (``.npy``), which are pickles: read as data alone, so that nothing in one is run.

What pickles name by module and name is taken for data here: arrays of objects become lists, scalars numbers, and other
arrays `Unread`. None of it is NumPy's own, and every other name is refused.
"""

import ast
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from models.media.files import opened

MAX_NPY_BYTES = 2**32
"""A file of more bytes than this is not read."""

_SCALARS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_SCALARS |= {"f4": "f", "f8": "d", "b1": "?"}
_BROKEN = (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError)
_BROKEN += (RecursionError, MemoryError, ImportError, struct.error)


class NpyError(ValueError):
    """A file that is no array of Python objects, is damaged, or names something that is no data."""


class Unread:
    """An array of numbers, whose content was left."""


def objects(path: Path) -> list[Any]:
    """The objects of a file that ``numpy.save`` wrote of an array of one axis.

    Raises:
        NpyError: it is no such file, or names something that is no data.
    """
    with opened(path) as file:
        if path.stat().st_size > MAX_NPY_BYTES:
            raise NpyError(f"{path} has more than {MAX_NPY_BYTES} bytes; expected the benchmark's file")
        _check_header(file, path)
        try:
            found = _Data(file).load()
        except NpyError as error:
            raise NpyError(f"{path} {error}") from error
        except _BROKEN as error:
            raise NpyError(f"{path} is damaged ({type(error).__name__}: {error}); fetch it again") from error
    if not isinstance(found, list):
        raise NpyError(f"{path} holds no array of objects; expected a list of records")
    return found


def _check_header(file: BinaryIO, path: Path) -> None:
    """Read up to the objects; raise NpyError where these are none."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise NpyError(f"{path} is no .npy file: it begins with {start[:6]!r}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    try:
        header = ast.literal_eval(file.read(min(length, 2**16)).decode("latin1").strip())
        kind = header["descr"]
        shape = header["shape"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, LookupError, TypeError) as error:
        raise NpyError(f"{path} has a header that cannot be read ({error})") from error
    if kind != "|O" or not isinstance(shape, tuple) or len(shape) != 1:
        raise NpyError(f"{path} is an array of {kind!r}, {shape!r}; expected objects ('|O') along one axis")


class _Data(pickle.Unpickler):
    """Reads pickled data; what they name is one of a few stand-ins, made anew for each file."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in.

        Raises:
            NpyError: there is none.
        """
        known = self._known.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise NpyError(f"names {module}.{name}, which is no data; nothing of it was run: take another copy")
        return known

    def load(self) -> Any:
        """The object, with lists for arrays of objects."""
        return _plain(super().load())


class _DType:
    """Of what kind an array's items are; its order of bytes comes with the state."""

    def __init__(self, kind: str, *_: Any) -> None:
        self.kind = kind
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """An array, of which the items are kept where they are objects."""

    items: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, dtype, _, items = state
        self.items = items if dtype.kind.startswith("O") and isinstance(items, list) else None


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    """What a pickled array of objects names, as data; those of Python 2 name how bytes are written."""

    class Array(_Array):
        pass

    class DType(_DType):
        pass

    def reconstructed(*_: Any) -> _Array:
        return Array()

    def scalar(dtype: _DType, content: Any) -> Any:
        if dtype.kind not in _SCALARS:
            raise NpyError(f"has a scalar of the kind {dtype.kind!r}; expected a number")
        content = content.encode("latin1") if isinstance(content, str) else content
        return struct.unpack(dtype.order + _SCALARS[dtype.kind], content)[0]

    def encoded(text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise NpyError(f"writes bytes as {encoding!r}; expected latin1")
        return text.encode("latin1")

    core = "numpy.core.multiarray"
    return {
        (core, "_reconstruct"): reconstructed,
        (core, "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): reconstructed,  # of numbers, which are left
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("_codecs", "encode"): encoded,
    }


def _plain(value: Any, depth: int = 0) -> Any:
    """The same with lists in place of arrays, as deep as records go; what is deeper is left."""
    if isinstance(value, _Array):
        return Unread() if value.items is None else _plain(value.items, depth)
    if depth < 3 and isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if depth < 3 and isinstance(value, dict):
        return {name: _plain(each, depth + 1) for name, each in value.items()}
    return value
