"""A long item in parts, each of which is a chunk of its own."""

from collections.abc import Iterator
from typing import Any

from kamera_jax.arguments import real_number, whole_number
from kamera_jax.backbone import Backbone, with_defaults

PART_TOKENS = 1024
"""Tokens of a chunk at most, by default, where a long item is cut and its segments are not asked for."""


def parts(vlm: Backbone, item: Any, tokens: int | None, segment: float | int | None) -> Iterator[Any]:
    """The parts of a long item that `encode` takes, each made when it is asked for.

    Args:
        vlm: the model.
        item: see `kamera_jax.encode_all`.
        tokens: at most so many tokens in a part; by default `PART_TOKENS`, and any number in a segment.
        segment: seconds of a part of a video; None for a cut by tokens alone.

    Raises:
        ValueError: an argument is none that can be, at once; the item cannot be read, where it is.
    """
    if tokens is not None or segment is None:
        tokens = whole_number(PART_TOKENS if tokens is None else tokens, "tokens", 1)
    if segment is not None and not real_number(segment, "segment") > 0:
        raise ValueError(f"segment is {segment} seconds; expected a number above 0")
    return _parts(with_defaults(vlm), item, tokens, segment)


def _parts(model: Any, item: Any, tokens: int | None, segment: float | int | None) -> Iterator[Any]:
    for each in (item,) if segment is None else model.segments(item, seconds=float(segment)):
        yield from (each,) if tokens is None else model.cut(each, tokens=tokens)
