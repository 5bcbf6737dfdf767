"""Asking filled windows: next-token logits of all of them together, and generated answers window by window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import kamera_jax as kj
from eval.methods import Batch
from eval.methods.questions import AskedWindows, ask
from eval.tasks import Context, Question
from eval.tasks.tokens import Tokens, segment_of, spelling
from kamera_jax.backbone import Backbone
from kamera_jax.batch.windows import BatchRunner, Windows
from kamera_jax.chunk import Entry
from kamera_jax.errors import ModelLengthError
from kamera_jax.kv import Segment, WindowState, bucket
from kamera_jax.window.window import aligned


def stacked_tails(vlm: Backbone, contexts: Sequence[Context]) -> Segment:
    """The questions of every context [E, Q, ·], all padded to the longest one's bucket."""
    rows = [[vlm.tail(question.text) for question in context.questions] for context in contexts]
    longest = max(tail.positions.shape[-1] for row in rows for tail in row)
    return _stack([_stack([_padded(tail, longest) for tail in row]) for row in rows])


@dataclass(frozen=True)
class Asked:
    """All that is run behind the windows of a group, and where the answer to each question is read off.

    Attributes:
        tails: [E, R, ·], the different tails of every context.
        at: the tokens of each tail whose next-token logits are read, i32[E, R, n]; None where it is the last alone, and
            every question has a tail of its own.
        places: of every question, its tail and which of that tail's tokens, i32[E, Q, 2]; None as ``at``.
    """

    tails: Segment
    at: np.ndarray | None = None
    places: np.ndarray | None = None

    def logits(self, runner: BatchRunner, windows: Windows) -> Float[Array, "E Q V"]:
        """Next-token logits of every question."""
        if self.at is None or self.places is None:
            return ask(runner, windows, self.tails)
        read = ask(runner, windows, self.tails, self.at)
        contexts = np.arange(len(self.places))[:, None]
        return read[contexts, self.places[..., 0], self.places[..., 1]]

    @property
    def first(self) -> "Asked":
        """One question of every context: what is asked when asking is timed."""
        tails = jax.tree.map(lambda leaf: leaf[:, :1], self.tails)
        if self.at is None:
            return Asked(tails)
        return Asked(tails, self.at[:, :1, -1:], np.zeros((len(self.at), 1, 2), int))


def asked_of(vlm: Backbone, contexts: Sequence[Context]) -> Asked:
    """The questions of every context; those that have the same known tail share one."""
    if not any(question.tail for context in contexts for question in context.questions):
        return Asked(stacked_tails(vlm, contexts))
    rows = [_tails(vlm, context) for context in contexts]
    count = max(len(own) for own in rows)
    own_tails = [[tail for tail, _ in own] + [own[0][0]] * (count - len(own)) for own in rows]
    most = max(len(read) for own in rows for _, read in own)
    at = np.zeros((len(contexts), count, most), np.int32)
    places = np.zeros((len(contexts), len(contexts[0].questions), 2), np.int32)
    for e, own in enumerate(rows):
        for row, (_, read) in enumerate(own):
            for column, (question, token) in enumerate(read.items()):
                at[e, row, column] = token
                places[e, question] = row, column
    longest = max(tail.positions.shape[-1] for own in own_tails for tail in own)
    return Asked(_stack([_stack([_padded(tail, longest) for tail in own]) for own in own_tails]), at, places)


def _tails(vlm: Backbone, context: Context) -> list[tuple[Segment, dict[int, int]]]:
    """The different tails of a context, each with the questions read from it and the tokens they follow."""
    known: dict[tuple[int, ...] | str, tuple[Segment, dict[int, int]]] = {}
    for number, question in enumerate(context.questions):
        key = tuple(question.tail) or question.text
        if key not in known:
            tail = segment_of(vlm, Tokens(tuple(question.tail))) if question.tail else vlm.tail(question.text)
            known[key] = (tail, {})
        tail, read = known[key]
        at = question.at if question.tail else -1
        read[number] = at % int(tail.length)
    return list(known.values())


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

    def text(question: Question, token: int) -> str:
        return vlm.decode([token]) if question.next_token is None else spelling(vlm, token)

    return [
        [text(question, int(tokens[e, q])) for q, question in enumerate(context.questions)]
        for e, context in enumerate(contexts)
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
    if isinstance(windows, AskedWindows):
        raise ValueError(
            "a method that waits for the question is asked for next tokens; answers of several are not run"
        )
    vlm = batch.runner.vlm
    tails = [int(vlm.tail(question.text).length) for context in contexts for question in context.questions]
    limit = vlm.spec.max_positions
    if limit is not None and max_new_tokens > limit:  # before room is made for them
        raise ModelLengthError(
            f"max_new_tokens is {max_new_tokens}, and the model is for {limit} positions; expected fewer"
        )
    room = bucket(max(tails) + max_new_tokens)
    answers = []
    for each, context in enumerate(contexts):
        window = window_of(vlm, batch, chunks[each], jax.tree.map(lambda leaf, e=each: leaf[e], windows.state), room)
        texts = [question.text for question in context.questions]
        together = kj.generate_many(vlm, [window] * len(texts), texts, max_new_tokens=max_new_tokens)
        answers.append([answer.text for answer in together])
    return answers


def window_of(vlm: Backbone, batch: Batch, chunks: Sequence[kj.Chunk], state: WindowState, room: int) -> kj.Window:
    """One filled window as `kamera_jax.generate` takes it, with free slots behind it.

    Its chunks are those that were encoded alone, which say where it ends; the KV that is read is the state's.

    Args:
        vlm: the model.
        batch: the context is one of.
        chunks: of the context, as encoded alone.
        state: of its window, filled.
        room: how many slots are to be free.
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
        bias=None if state.bias is None else jnp.pad(state.bias, (0, room)),
    )
    capacity = state.valid.shape[0]
    return kj.Window(state, tuple(entries), vlm.spec, capacity, empty.preamble, placement=empty.placement)
