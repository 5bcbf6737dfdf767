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
    # One transfer, and explicit: to convert each array by jnp.asarray compiles a program for its shape.
    tokens, positions = jax.device_put((tokens, positions))
    return Segment(
        inputs={"tokens": tokens, **_media(spans, size)},
        positions=positions,
        length=np.int32(len(ids)),  # known on the host, which asks for it
        advance=advance,
        content=content,
    )


def _media(spans: Sequence[Span], size: int) -> dict[str, jax.Array]:
    """Features in the rows of their tokens, zero elsewhere; ``deep`` only where a block has some."""
    is_media = np.zeros(size, bool)
    placed: dict[str, jax.Array] = {}
    first = 0
    for span in spans:
        count = len(span.ids)
        if isinstance(span.features, Features):
            is_media[first : first + count] = True
            for name, features in (("media", span.features.rows), ("deep", span.features.deep)):
                if features is None:
                    continue
                rows = placed.get(name)
                if rows is None:
                    rows = jax.device_put(np.zeros((size, *features.shape[1:]), features.dtype))
                placed[name] = _place(rows, features, *jax.device_put((np.int32(first), np.int32(count))))
        first += count
    return {**placed, "is_media": jax.device_put(is_media)} if placed else {}


@jax.jit
def _place(rows: jax.Array, features: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
    """``features[:count]`` in rows from ``first`` on: one compilation a pair of buckets, whatever the lengths."""
    index = jnp.arange(rows.shape[0], dtype=jnp.int32) - first
    taken = features[jnp.clip(index, 0, features.shape[0] - 1)]
    here = ((index >= 0) & (index < count)).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(here, taken, rows)
