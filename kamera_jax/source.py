"""What a chunk was made from, and which rows of its KV are kept of it."""

from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kamera_jax.handle import Field, traced
from kamera_jax.kv import Segment


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@flax.struct.dataclass(eq=False)
class Source:
    """A segment less what the chunk that is made of it has itself.

    Attributes:
        inputs: what the model reads.
        positions: f32[A, T]; None where they are the chunk's.
        length: valid tokens; None where all of them are the chunk's rows.
    """

    inputs: dict[str, Any]
    positions: Float[Array, "A T"] | None
    length: Int[Array, ""] | np.integer | None


class SourceField(Field):
    """The segment of a chunk: its positions are the chunk's own, once, as long as the chunk keeps every row."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        source = instance.__dict__[self._name]
        if not isinstance(source, Source):
            return source
        positions = instance.positions if source.positions is None else source.positions
        length = instance.length if source.length is None else source.length
        length = length if traced(length) else np.int32(length)  # on the host, where it is known
        return Segment(source.inputs, positions, length, instance.advance, instance.content)

    def __set__(self, instance: Any, value: Any) -> None:
        if isinstance(value, Segment):
            if _same_rows(value, instance):
                value = Source(value.inputs, None, None)
            else:
                length = value.length if traced(value.length) else np.int32(value.length)
                value = Source(value.inputs, value.positions, length)
        instance.__dict__[self._name] = value

    def is_shared(self, instance: Any) -> bool:
        """Whether the chunk keeps every row of its source, or has none."""
        source = instance.__dict__[self._name]
        return not isinstance(source, Source) or source.positions is None


def _same_rows(segment: Segment, chunk: Any) -> bool:
    """Whether a chunk has a row for every token of a segment; not where that is not known yet."""
    if segment.length is not chunk.length:
        if traced(segment.length, chunk.length) or int(segment.length) != int(chunk.length):
            return False
    mine = segment.positions
    own = chunk.positions
    if mine is own:
        return True
    return not traced(mine, own) and np.shape(mine) == np.shape(own) and bool((np.asarray(mine) == own).all())


def kept_rows(
    positions: jax.Array | np.ndarray,
    length: jax.Array | np.integer | int,
    tokens: jax.Array | np.ndarray,
    count: jax.Array | np.integer | int,
    chunk: str,
) -> jax.Array | np.ndarray:
    """Which of the tokens each kept row is of, i32[K], by their positions; -1 for padding.

    Args:
        positions: of the rows, f32[A, K].
        length: valid rows.
        tokens: positions of the tokens, f32[A, T].
        count: valid tokens.
        chunk: what an error calls the chunk.

    Raises:
        ValueError: a row stands at no token's position, or out of their order, or at one that several have. Inside a
            JAX transformation such rows are -1 instead, and of several tokens the first is taken.
    """
    if traced(positions, length, tokens, count):
        valid = (jnp.arange(positions.shape[1], dtype=jnp.int32) < length)[:, None] & (
            jnp.arange(tokens.shape[1], dtype=jnp.int32) < count
        )[None, :]
        same = (positions[:, :, None] == tokens[:, None, :]).all(0) & valid
        return jnp.where(same.any(1), same.argmax(1), -1).astype(jnp.int32)
    rows = list(map(tuple, np.asarray(positions)[:, : int(length)].T.tolist()))
    places = list(map(tuple, np.asarray(tokens)[:, : int(count)].T.tolist()))
    first = _in_order(rows, places)
    last = [len(places) - 1 - place for place in _in_order(rows[::-1], places[::-1])][::-1]
    if len(first) < len(rows) or first != last:
        why = (
            "several tokens have the position of one" if len(first) == len(rows) else "not all stand at their positions"
        )
        raise ValueError(
            f"{chunk} keeps {len(rows)} rows of a source of {len(places)} tokens, and it is not known which: {why}, in "
            "their order; keep each row with its token's position, in the order of the tokens"
        )
    return np.asarray([*first, *[-1] * (np.shape(positions)[1] - len(first))], np.int32)


def _in_order(rows: Sequence[Any], places: Sequence[Any]) -> list[int]:
    """For each row the first place that is equal, behind that of the row before it; less where there is none."""
    matches = []
    following = iter(enumerate(places))
    for row in rows:
        match = next((place for place, value in following if value == row), None)
        if match is None:
            break
        matches.append(match)
    return matches


def taken_rows(kv: Any, rows: jax.Array | np.ndarray, length: jax.Array | int) -> Any:
    """Rows of arrays [L, T, …]: zero past ``length``, NaN where a row before it is of no token."""

    def take(leaf: jax.Array) -> jax.Array:
        shape = (1, -1, *[1] * (leaf.ndim - 2))
        taken = jnp.take(leaf, jnp.maximum(rows, 0), axis=1)
        taken = jnp.where((rows >= 0).reshape(shape), taken, jnp.asarray(jnp.nan, leaf.dtype))
        return jnp.where(
            (jnp.arange(rows.shape[0], dtype=jnp.int32) < length).reshape(shape), taken, jnp.zeros((), leaf.dtype)
        )

    return jax.tree.map(take, kv)


def token_places(inputs: Mapping[str, Any], positions: Any, count: Any) -> jax.Array | np.ndarray:
    """The place of each media token within its temporal patch, i32[T]; of every other token a number of its own.

    A temporal patch is a run of media tokens; with position axes of its own for height and width, one begins wherever
    a run comes back to the height and width that it began at. Numbers from T on are no places.

    Args:
        inputs: of a source, with ``is_media``.
        positions: of its tokens, f32[A, T].
        count: valid tokens.
    """
    xp, highest = (jnp, jax.lax.cummax) if traced(positions, count, *inputs.values()) else (np, np.maximum.accumulate)
    positions = xp.asarray(positions)
    index = xp.arange(positions.shape[1], dtype=np.int32)
    media = xp.asarray(inputs["is_media"]) & (index < count)
    begins = media & ~xp.concatenate([xp.zeros(1, bool), media[:-1]])
    across = positions[1:]
    if across.shape[0]:
        begins = media & (across == across[:, highest(xp.where(begins, index, 0))]).all(0)
    return xp.where(media, index - highest(xp.where(begins, index, 0)), len(index) + index)


def token_rows(source: Segment, rows: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The kept row that each token of a source shares: its own, or the latest before it at its place, i32[T].

    Args:
        source: all tokens, with ``is_media`` among its inputs.
        rows: which token each kept row is of; see `kept_rows`.
    """
    places = token_places(source.inputs, source.positions, source.length)
    if known := not traced(rows, places):
        rows = np.asarray(rows)
        places = np.asarray(places)
    xp, highest = (np, np.maximum.accumulate) if known else (jnp, jax.lax.cummax)
    index = xp.arange(len(places), dtype=np.int32)
    own = (index[:, None] == rows[None, :]).any(1) if not known else np.isin(index, rows)
    # In the order of places, the first of each is kept: what comes before it is never the latest.
    order = xp.argsort(places, stable=True) if not known else np.argsort(places, kind="stable")
    latest = order[xp.maximum(highest(xp.where(own[order], index, -1)), 0)]
    owner = latest[xp.argsort(order)]
    return xp.searchsorted(xp.where(rows >= 0, rows, len(places)), owner).astype(np.int32)


@jax.jit
def mean_rows(kv: Any, rows: jax.Array | np.ndarray, shared: jax.Array | np.ndarray, count: jax.Array | int) -> Any:
    """Arrays [L, T, …] of tokens to those of rows [L, K, …], each the mean of the tokens that share it, f32 in between.

    Args:
        kv: of all tokens.
        rows: which token each row is of, i32[K].
        shared: which row each token shares, i32[T].
        count: valid tokens.
    """
    size = rows.shape[0]
    into = jnp.where(jnp.arange(shared.shape[0], dtype=jnp.int32) < count, shared, size)
    number = jnp.maximum(jax.ops.segment_sum(jnp.ones(into.shape, jnp.float32), into, size + 1)[:size], 1.0)

    def mean(leaf: jax.Array) -> jax.Array:
        tokens = jnp.swapaxes(leaf, 0, 1).astype(jnp.float32)
        summed = jax.ops.segment_sum(tokens, into, size + 1)[:size]
        means = summed / number.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.swapaxes(means, 0, 1).astype(leaf.dtype)

    return jax.tree.map(mean, kv)
