"""Chunks of a batch that keep a share of their rows: each context's own choice, as `kamera_jax.compress` makes it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.chunk import Chunk
from kamera_jax.compress.stage import RowStage
from kamera_jax.forward import preamble_chunk
from kamera_jax.inference.selection import select_rows
from kamera_jax.kv import KV, Segment
from kamera_jax.source import kept_rows


def chunk_of(runner: BatchRunner, stack: Stack, each: int) -> Chunk:
    """One context's chunk at a place, canonical, without a key."""
    kv, positions, inputs = jax.tree.map(
        lambda leaf: leaf[each], (stack.kv, stack.segment.positions, stack.segment.inputs)
    )
    source = Segment(inputs, positions, np.int32(stack.length), stack.advance)
    spec = runner.vlm.spec
    preamble = preamble_chunk(runner.vlm).key
    return Chunk(kv, positions, stack.length, stack.advance, spec.fingerprint, preamble, source=source, spec=spec)


def selected(runner: BatchRunner, stack: Stack, rows: Sequence[RowStage]) -> tuple[Chunk, ...]:
    """The chunks of a place with the rows that a codec's first stages keep.

    Raises:
        ValueError: the chunks keep no row for every token already.
    """
    if stack.tokens is not None:
        raise ValueError("rows are chosen of chunks that have a row for every token; these keep some already")
    count = stack.kv.rot.shape[0]
    return tuple(select_rows(runner.vlm, chunk_of(runner, stack, each), rows) for each in range(count))


def rows_of(chunks: Sequence[Chunk]) -> np.ndarray:
    """Which token each kept row is of, by context i32[E, T']."""
    rows = []
    for chunk in chunks:
        source = chunk.source
        assert source is not None
        given = (chunk.positions, chunk.length, source.positions, source.length, "a chunk")
        rows.append(np.asarray(kept_rows(*given))[: chunk.length])
    return np.stack(rows)


def taken(chunks: Sequence[Chunk], kv: KV) -> KV:
    """Of KV of all tokens [E, L, T, ·] what the kept rows are: each context's chunk's own."""
    own = [chunk.taken(jax.tree.map(lambda leaf, each=each: leaf[each], kv)) for each, chunk in enumerate(chunks)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
