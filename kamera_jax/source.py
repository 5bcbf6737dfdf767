"""What a chunk was made from, and which rows of its KV are kept of it."""

from collections.abc import Sequence
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kamera_jax.handle import Field, traced
from kamera_jax.kv import Segment
from kamera_jax.transfer import to_device


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@flax.struct.dataclass(eq=False)
class _Source:
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
        if not isinstance(source, _Source):
            return source
        positions = instance.positions if source.positions is None else source.positions
        length = instance.length if source.length is None else source.length
        return Segment(source.inputs, positions, _i32(length), instance.advance, instance.content)

    def __set__(self, instance: Any, value: Any) -> None:
        if isinstance(value, Segment):
            if _same_rows(value, instance):
                value = _Source(value.inputs, None, None)
            else:
                length = value.length if traced(value.length) else np.int32(value.length)
                value = _Source(value.inputs, value.positions, length)
        instance.__dict__[self._name] = value

    def is_shared(self, instance: Any) -> bool:
        """Whether the chunk keeps every row of its source, or has none."""
        source = instance.__dict__[self._name]
        return not isinstance(source, _Source) or source.positions is None


def _i32(length: Any) -> jax.Array:
    """A length on the device."""
    return jnp.asarray(length, jnp.int32) if isinstance(length, jax.Array) else to_device(np.int32(length))


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
    length: jax.Array | int,
    tokens: jax.Array | np.ndarray,
    count: jax.Array | int,
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
