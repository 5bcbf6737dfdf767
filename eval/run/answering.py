"""Asking filled windows: next-token logits of all of them together, and generated answers window by window."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import kamera_jax as kj
from eval.methods import Batch
from eval.tasks import Context
from kamera_jax.backbone import Backbone
from kamera_jax.batch.windows import Windows
from kamera_jax.chunk import Entry
from kamera_jax.kv import Segment, WindowState, bucket
from kamera_jax.window.window import aligned


def stacked_tails(vlm: Backbone, contexts: Sequence[Context]) -> Segment:
    """The questions of every context [E, Q, ·], all padded to the longest one's bucket."""
    rows = [[vlm.tail(question.text) for question in context.questions] for context in contexts]
    longest = max(tail.positions.shape[-1] for row in rows for tail in row)
    return _stack([_stack([_padded(tail, longest) for tail in row]) for row in rows])


def _stack(segments: Sequence[Segment]) -> Segment:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *segments)


def _padded(segment: Segment, tokens: int) -> Segment:
    """The same segment with rows of padding behind it."""
    more = tokens - segment.positions.shape[-1]
    if not more:
        return segment
    inputs = {name: jnp.pad(rows, ((0, more), *((0, 0),) * (rows.ndim - 1))) for name, rows in segment.inputs.items()}
    return Segment(inputs, jnp.pad(segment.positions, ((0, 0), (0, more))), segment.length, segment.advance)


def first_tokens(logits: Float[Array, "E Q V"], contexts: Sequence[Context], vlm: Backbone) -> list[list[str]]:
    """The most likely next token of every question, as text, by context."""
    tokens = jax.device_get(logits.argmax(-1))
    return [
        [vlm.decode([int(tokens[e, q])]) for q in range(len(context.questions))] for e, context in enumerate(contexts)
    ]


def generated(
    batch: Batch,
    chunks: Sequence[Sequence[kj.Chunk]],
    windows: Windows,
    contexts: Sequence[Context],
    max_new_tokens: int,
) -> list[list[str]]:
    """The greedy answer to every question, by context: each question is asked of the window as it was filled.

    Args:
        batch: the contexts.
        chunks: of each context, as encoded alone.
        windows: filled by a method.
        contexts: whose questions are asked; padding behind them is not.
        max_new_tokens: the longest answer.

    Raises:
        WindowFullError: question and answer stand beyond the model's length.
    """
    vlm = batch.runner.vlm
    tails = [int(vlm.tail(question.text).length) for context in contexts for question in context.questions]
    room = bucket(max(tails) + max_new_tokens)
    answers = []
    for each, context in enumerate(contexts):
        window = _window(vlm, batch, chunks[each], jax.tree.map(lambda leaf, e=each: leaf[e], windows.state), room)
        answers.append(
            [
                kj.generate(vlm, window, question.text, max_new_tokens=max_new_tokens, keep=False).text
                for question in context.questions
            ]
        )
    return answers


def _window(vlm: Backbone, batch: Batch, chunks: Sequence[kj.Chunk], state: WindowState, room: int) -> kj.Window:
    """One filled window as `kamera_jax.generate` takes it, with free slots behind it.

    Its chunks are those that were encoded alone, which say where it ends; the KV that is read is the state's.
    """
    empty = kj.Window.empty(vlm, aligned(batch.runner.preamble_length))
    base = empty.next_position
    entries = []
    for chunk, slot in zip(chunks, batch.full.slots, strict=True):
        entries.append(Entry(chunk, None, base=base, slot=slot))
        base += chunk.advance
    if vlm.params is not batch.runner.params:  # spread over a mesh: one window needs one device
        state = jax.tree.map(jnp.asarray, jax.device_get(state))
    state = replace(
        state,
        rot=jnp.pad(state.rot, ((0, 0), (0, room), (0, 0))),
        free=jnp.pad(state.free, ((0, 0), (0, room), (0, 0))),
        positions=jnp.pad(state.positions, ((0, 0), (0, room))),
        valid=jnp.pad(state.valid, (0, room)),
    )
    return kj.Window(state, tuple(entries), vlm.spec, state.valid.shape[0], empty.preamble)
