"""A chunk in spans: runs of text and media blocks, one after another, composed into what a forward reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from kamera_jax.kv import Segment, bucket
from kamera_jax.transfer import to_device


@flax.struct.dataclass
class Features:
    """What a tower makes of one media block; rows past the block's tokens are zero.

    Attributes:
        rows: the embeddings of its tokens [M, E].
        deep: what is added to the residual stream after each of the first d layers (DeepStack) [M, d, E]; None for
            towers that have no such outputs.
    """

    rows: Float[Array | np.ndarray, "M E"]
    deep: Float[Array | np.ndarray, "M d E"] | None = None


@dataclass(frozen=True, eq=False)
class Pending:
    """A media block before its tower has run, on the host alone.

    Attributes:
        kind: of the medium.
        inputs: what the tower reads.
        plan: the layout of it.
    """

    kind: str
    inputs: Any
    plan: Any


@dataclass(frozen=True, eq=False)
class Span:
    """A run of text, or one media block.

    Attributes:
        ids: its token ids; of a block, its placeholder as many times as it has tokens.
        features: what stands in the tokens' rows in place of embeddings, or what that will be made of; None for text.
        positions: of its tokens on each axis, counted from the position where it begins, f32[A, n]; None where they
            count on by one a token, on every axis.
        advance: how far behind its beginning the next span begins; None for the number of its tokens.
    """

    ids: Sequence[int]
    features: Features | Pending | None = None
    positions: Float32[np.ndarray, "A n"] | None = None
    advance: float | None = None


def local_positions(spans: Sequence[Span], axes: int) -> tuple[Float32[np.ndarray, "A T"], float]:
    """Positions of the spans' tokens, counted on from 0, and where the next chunk begins."""
    parts = []
    base = 0.0
    for span in spans:
        counting = np.broadcast_to(np.arange(len(span.ids), dtype=np.float32), (axes, len(span.ids)))
        parts.append(np.float32(base) + (counting if span.positions is None else span.positions))
        base += len(span.ids) if span.advance is None else span.advance
    return np.concatenate(parts, axis=1, dtype=np.float32), float(base)


def advance_of(spans: Sequence[Span]) -> float:
    """How far behind the beginning of these spans the next one begins."""
    return float(sum(len(span.ids) if span.advance is None else span.advance for span in spans))


def compose(spans: Sequence[Span], axes: int, content: str) -> Segment:
    """The segment of a chunk, padded to its bucket; media inputs are there only where a span has features.

    Args:
        spans: one at least, in the order of their tokens.
        axes: position axes of the model.
        content: digest of what the spans were made from.
    """
    ids = [number for span in spans for number in span.ids]
    size = bucket(len(ids))
    tokens = np.zeros(size, np.int32)
    tokens[: len(ids)] = ids
    advance = local_positions(spans, axes)[1]
    positions, _ = local_positions([*spans, Span([0] * (size - len(ids)))], axes)  # padding counts on, as text does
    is_media, blocks = _blocks(spans, size)
    host: dict[str, Any] = {"tokens": tokens}
    if blocks:
        host["is_media"] = is_media
    for _, name, features in blocks:  # what the towers made is written to rows of zeros
        host.setdefault(name, np.zeros((size, *features.shape[1:]), features.dtype))
    # One transfer, and explicit: to convert each array by jnp.asarray compiles a program for its shape.
    numbers = [tuple(map(np.int32, where)) for where, _, _ in blocks]
    inputs, positions, numbers = to_device((host, positions, numbers))
    for (_, name, features), where in zip(blocks, numbers, strict=True):
        inputs[name] = _place(inputs[name], features, *where)
    length = np.int32(len(ids))  # known on the host, which asks for it
    return Segment(inputs=inputs, positions=positions, length=length, advance=advance, content=content)


def _blocks(spans: Sequence[Span], size: int) -> tuple[np.ndarray, list[tuple[tuple[int, int], str, Any]]]:
    """Which rows are media; and of each block of features its first row and count, its name, and the features."""
    is_media = np.zeros(size, bool)
    blocks = []
    first = 0
    for span in spans:
        count = len(span.ids)
        if isinstance(span.features, Features):
            is_media[first : first + count] = True
            named = {"media": span.features.rows, "deep": span.features.deep}
            blocks += [((first, count), name, features) for name, features in named.items() if features is not None]
        first += count
    return is_media, blocks


@jax.jit
def _place(rows: jax.Array, features: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
    """``features[:count]`` in rows from ``first`` on: one compilation a pair of buckets, whatever the lengths."""
    index = jnp.arange(rows.shape[0], dtype=jnp.int32) - first
    taken = features[jnp.clip(index, 0, features.shape[0] - 1)]
    here = ((index >= 0) & (index < count)).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(here, taken, rows)
