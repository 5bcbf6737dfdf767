"""What a row may say of itself: checked before it is written, and when it is read, for anybody may have written it.

Plain fields are as JSON gives them back. Arrays are looked at by shape and dtype alone.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kamera_jax.compress.basis import arrays_of, by_digest
from kamera_jax.compress.codec import INT8, Shape
from kamera_jax.compress.compressed import packing
from kamera_jax.compress.stage import Basis
from kamera_jax.dtypes import FLOATS
from kamera_jax.errors import CodecError
from kamera_jax.identity import EXACT, shared_rows

KEY = re.compile(r"[0-9a-f]{64}")
"""Of chunks and patches."""

NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
"""Of arrays: part of a file's name."""

NAME_LENGTH = 150
AXES = 8
"""Of an array of a row, at most."""

FILE_LENGTH = 4096
"""Letters of the name of a file that a chunk came from, at most: those of a path."""

NOTE_LENGTH = 128
"""Letters of what an origin notes, at most."""

UNPACKED = 256
"""A patch takes at most so many times the bytes that are stored of it, or `UNPACKED_BYTES`."""

UNPACKED_BYTES = 2**28

Arrays = Mapping[str, Any]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and KEY.fullmatch(value) is not None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_size, value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


Rules = Mapping[str, tuple[Callable[[Any], bool], str]]

_TEXT = (_is_text, "a text")
_FLAG = (_is_flag, "True or False")
_SIZE = (_is_size, "a whole number from 0 to 2^31")
_NUMBER = (_is_number, "a finite number")
_KEY_RULE = (_is_key, "64 hexadecimal digits in lower case")
_TEXTS = (_is_texts, "texts")
_SIZES = (_is_sizes, "whole numbers from 0 to 2^31")
_NUMBERS = (_is_numbers, "finite numbers")


_ENCODED = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)


def _is_encoded(value: Any) -> bool:
    return isinstance(value, str) and _ENCODED.fullmatch(value) is not None


def _or_none(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or None"


_OF_BOTH: Rules = {
    "key": _KEY_RULE,
    "model": _TEXT,
    "antecedents": _TEXTS,
    "length": _SIZE,
    "codec": _TEXT,
    "lineage": _TEXT,
}
_CHUNK: Rules = {
    **_OF_BOTH,
    "advance": _NUMBER,
    "preamble": _or_none(_TEXT),
    "turn": _FLAG,
    "conditioned": _FLAG,
    "content": _TEXT,
    "inputs": _FLAG,
}
_PATCH: Rules = {**_OF_BOTH, "chunk": _KEY_RULE, "ranks": _SIZES, "components": _SIZE, "rows": _SIZE}
_PACKED: Rules = dict.fromkeys(("rot", "free", "heads"), _SIZE)
_GROUPED: Rules = {"layers": (lambda value: _is_size(value) and value > 0, "a whole number from 1 to 2^31")}
_SKETCH: Rules = {"layers": _SIZES, "weights": _NUMBERS, "tokens": _SIZE}
_ORIGIN: Rules = {
    "file": (
        lambda value: isinstance(value, str) and 0 < len(value) <= FILE_LENGTH,
        f"a text of 1 to {FILE_LENGTH} letters",
    )
}
_ORIGIN_IF_KNOWN: Rules = {
    "page": (lambda value: _is_size(value) and value > 0, "a whole number from 1 to 2^31"),
    "time": (lambda value: _is_number(value) and value >= 0, "a finite number of at least 0"),
    "encoded": (_is_encoded, "a time in UTC, such as 2026-11-30T09:15:00Z"),
    "note": (
        lambda value: isinstance(value, str) and 0 < len(value) <= NOTE_LENGTH,
        f"a text of 1 to {NOTE_LENGTH} letters",
    ),
}
_SPEC: Rules = {
    **dict.fromkeys(("layers", "rot_dim", "free_dim", "heads"), _SIZE),
    "dtype": (lambda value: value in FLOATS, f"one of {', '.join(FLOATS)}"),
    "fingerprint": _TEXT,
    "identity": (
        lambda value: isinstance(value, list | tuple) and all(_is_texts(pair) and len(pair) == 2 for pair in value),
        "pairs of texts",
    ),
    "max_positions": _or_none(_SIZE),
}
_ROPE: Rules = {
    "inv_freq": _NUMBERS,
    "head_dim": _SIZE,
    "layout": (lambda value: value in ("half", "interleaved"), "half or interleaved"),
    "sections": _or_none(_SIZES),
    "section_layout": (lambda value: value in ("contiguous", "interleaved"), "contiguous or interleaved"),
    "scale": _NUMBER,
}


def _check_fields(fields: Any, rules: Rules, what: str) -> None:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{what} is {_short(fields)}; expected fields by name")
    for name, (is_right, expected) in rules.items():
        if name not in fields:
            raise ValueError(f"{what} has no {name}; expected {expected}")
        if not is_right(fields[name]):
            raise ValueError(f"{what}'s {name} is {_short(fields[name])}; expected {expected}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"


def check_about(about: Any, of_patch: bool) -> None:
    """Raise ValueError unless plain fields are those of a chunk or of a patch, as far as they show it by themselves."""
    _check_fields(about, _PATCH if of_patch else _CHUNK, "the patch" if of_patch else "the chunk")
    if not of_patch and about.get("origin") is not None:
        check_origin(about["origin"])


def check_origin(origin: Any) -> None:
    """Raise ValueError unless plain fields say where a chunk came from; see `kamera_jax.library.origin.Origin`."""
    _check_fields(origin, _ORIGIN, "the chunk's origin")
    known = {name: rule for name, rule in _ORIGIN_IF_KNOWN.items() if origin.get(name) is not None}
    _check_fields(origin, known, "the chunk's origin")


def check_chunk(about: Any, spec: Any, leaves: Arrays) -> None:
    """Raise ValueError unless plain fields, a model's spec (or None) and arrays make a chunk."""
    check_about(about, of_patch=False)
    if spec is not None:
        check_spec(spec)
    check_kv(about, leaves)
    rows = leaves["kv.rot"].shape[1]
    _check_rows(about["length"], leaves, "positions", rows, "the chunk")
    counts = leaves.get("counts")
    if counts is None and shared_rows(about["codec"]):
        raise ValueError(f"the chunk's codec is {_short(about['codec'])}, and counts are missing; expected f32[{rows}]")
    if counts is not None and (tuple(counts.shape) != (rows,) or np.dtype(counts.dtype) != np.float32):
        raise ValueError(f"counts is {_array(counts)}; expected float32[{rows}]: how many tokens each row stands for")
    source = about.get("source")
    if source is not None:
        _check_fields(source, {"length": _SIZE}, "the chunk's source")
        _check_rows(source["length"], leaves, "source.positions", None, "the chunk's source")


def check_kv(about: Mapping[str, Any], leaves: Arrays) -> None:
    """Raise ValueError unless arrays are KV as a storage has it, of any layers."""
    rot = leaves["kv.rot"]
    free = leaves["kv.free"]
    for name, leaf in (("kv.rot", rot), ("kv.free", free)):
        if len(leaf.shape) != 3:
            raise ValueError(f"{name} is {_array(leaf)}; expected 3 axes, [L, T, F]")
    if rot.shape[:2] != free.shape[:2]:
        raise ValueError(f"kv.rot is {_array(rot)} and kv.free {_array(free)}; expected one L and one T")
    storage = about.get("storage", EXACT)
    if storage == EXACT:
        return
    if not _is_text(storage):
        raise ValueError(f"the chunk is stored as {_short(storage)}; expected exact, or the name of a codec")
    try:
        packed = packing(storage)
    except CodecError as error:
        raise ValueError(f"the chunk is stored as {_short(storage)}: {error}") from None
    if about.get("dtype") not in FLOATS:
        raise ValueError(f"KV of {_short(about.get('dtype'))} is not stored as {storage}; of {', '.join(FLOATS)} it is")
    shape = packed_shape(about, leaves)
    for name, width in packed.widths(rot.shape[1], shape).items():
        part = leaves[f"kv.{name}"]
        if part.shape[2] != width:
            raise ValueError(f"kv.{name} is {_array(part)}; expected {width} on the last axis, as {storage} packs it")
    for name, wanted in packed.arrays(rot.shape[0], rot.shape[1], shape, about["dtype"]).items():
        leaf = leaves.get(name)
        if leaf is None or np.dtype(leaf.dtype) != wanted.dtype or tuple(leaf.shape) != wanted.shape:
            raise ValueError(f"{name} is {_array(leaf)}; expected {_array(wanted)} of {storage}")


def packed_shape(about: Mapping[str, Any], leaves: Arrays) -> Shape:
    """How wide the KV of a chunk in few bits is. Eight bits show it themselves, and their heads do not matter."""
    if about["storage"] == INT8:
        return Shape(leaves["kv.rot"].shape[2], leaves["kv.free"].shape[2], 1)
    _check_fields(about.get("packed"), _PACKED, "the chunk's packed KV")
    layers = 0
    if not packing(about["storage"]).by_layer:
        _check_fields(about["packed"], _GROUPED, "the chunk's packed KV")
        layers = about["packed"]["layers"]
    return Shape(**{name: about["packed"][name] for name in _PACKED}, layers=layers)


def packed_basis(about: Mapping[str, Any], shape: Shape) -> Basis:
    """What of the model a chunk in few bits was packed with; empty for codecs that take nothing.

    Raises:
        BasisError: it is not known here.
    """
    if not packing(about["storage"]).needs:
        return arrays_of(None, {})
    _check_fields(about["packed"], {"basis": _KEY_RULE}, "the chunk's packed KV")
    return arrays_of(by_digest(about["packed"]["basis"]), shape.layouts(1, shape.layers))


def grouped(about: Mapping[str, Any]) -> bool:
    """Whether a chunk is stored so that a layer's KV takes more than that layer's arrays to restore."""
    packed = about.get("packed")
    return isinstance(packed, Mapping) and "layers" in packed


def check_patch(about: Any, leaves: Arrays) -> None:
    """Raise ValueError unless plain fields and packed arrays make a patch, of no more bytes than `UNPACKED` allows."""
    check_about(about, of_patch=True)
    if about.get("sketch") is not None:
        _check_fields(about["sketch"], _SKETCH, "the patch's sketch")
    ranks = about["ranks"]
    components = about["components"]
    used = sum(ranks)
    if not ranks or max(ranks) > components:
        raise ValueError(f"the patch has ranks {_short(ranks)} of {components} components; expected one a layer")
    if about["length"] > about["rows"]:
        raise ValueError(f"the patch has {about['length']} tokens in {about['rows']} rows; expected at most its rows")
    u, v, scale = (leaves.get(f"patch.{name}") for name in ("u", "v", "scale"))
    if u is None or tuple(u.shape) != (used, about["length"]):
        raise ValueError(f"patch.u is {_array(u)}; expected {used} components of {about['length']} tokens")
    if v is None or len(v.shape) != 2 or v.shape[0] != used or (scale is not None and tuple(scale.shape) != (used,)):
        raise ValueError(f"patch.v is {_array(v)}, with scales {_array(scale)}; expected {used} components")
    for name, axes in (("patch.mass", 2), ("patch.residual", 1)):
        leaf = leaves.get(name)
        if leaf is None or len(leaf.shape) != axes or leaf.shape[0] != len(ranks):
            raise ValueError(f"{name} is {_array(leaf)}; expected {axes} axes, the first of {len(ranks)} layers")
    stored = sum(_nbytes(leaf.shape, leaf.dtype) for leaf in leaves.values())
    whole = (len(ranks), components)
    unpacked = _nbytes((*whole, about["rows"]), u.dtype) + _nbytes((*whole, v.shape[1]), v.dtype) + math.prod(whole)
    if unpacked > max(UNPACKED * stored, UNPACKED_BYTES):
        raise ValueError(
            f"the patch has {stored} bytes in use and takes {unpacked}; expected at most {UNPACKED} times as many, or "
            f"{UNPACKED_BYTES}: leave out components and rows that are not in use"
        )


def check_spec(spec: Any) -> None:
    """Raise ValueError unless plain fields make a model's spec."""
    _check_fields(spec, _SPEC, "the model's spec")
    _check_fields(spec.get("rope"), _ROPE, "the model's RoPE")
    if not _is_sizes(spec["rope"].get("unrotated", ())):
        raise ValueError(f"the model's RoPE has unrotated layers {_short(spec['rope']['unrotated'])}; expected numbers")


def _check_rows(length: int, leaves: Arrays, name: str, rows: int | None, what: str) -> None:
    positions = leaves.get(name)
    if positions is None or len(positions.shape) != 2 or (rows is not None and positions.shape[1] != rows):
        raise ValueError(f"{name} is {_array(positions)}; expected [A, {'T' if rows is None else rows}]")
    if length > positions.shape[1]:
        raise ValueError(f"{what}'s length is {length}; expected at most its {positions.shape[1]} rows")


def _nbytes(shape: Iterable[int], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _array(leaf: Any) -> str:
    return "missing" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
