"""Asking a window: next-token logits of a question, and generation."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.arguments import check_text
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.chunk import Chunk
from kamera_jax.compress.pooled import kept_in
from kamera_jax.contract import check_segment
from kamera_jax.errors import BackboneError
from kamera_jax.forward import run
from kamera_jax.identity import chunk_key, content_key, content_of
from kamera_jax.inference.decoding import Decoding
from kamera_jax.inference.turn import Turn
from kamera_jax.kv import KV, Segment, bucket, check_length
from kamera_jax.transfer import as_f32, to_device
from kamera_jax.types import Stream
from kamera_jax.window.changes import append
from kamera_jax.window.checks import check_model, check_room
from kamera_jax.window.window import Window


def query(vlm: Backbone, window: Window, text: str) -> Float[Array, " V"]:
    """Next-token logits f32[V] after the question, at the first answer token. The window is left as it is.

    Raises:
        ModelMismatchError: the window belongs to another model.
        ModelLengthError: the question would stand beyond the model's length.
        ValueError: the question is empty.
    """
    tail = question_tail(vlm, window, text)
    check_length(window.spec, window.next_position, tail.advance)
    base = as_f32(window.next_position)
    output = run(vlm.params, tail, window.state, base=base, forward=vlm.forward, last=True)
    assert output.logits is not None
    return output.logits[0]


_SHOWN = 80
"""Letters of an answer in its ``repr``."""


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: what was generated, without the end-of-turn token.
        tokens: its token ids.
        ttft_s: seconds to the first token (the first call of a shape compiles).
        window: the window with the turn, question and answer, kept as a chunk, closed for another to follow.
    """

    text: str
    tokens: tuple[int, ...]
    ttft_s: float
    window: Window

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}…"
        chunks = len(self.window.entries)
        return f"<Generation {text!r}: {len(self.tokens)} tokens, the first after {self.ttft_s:.3g} s, {chunks} chunks>"


def generate(
    vlm: Backbone,
    window: Window,
    text: str,
    *,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    stop: tuple[str, ...] = (),
    stream: Stream | None = None,
    keep: bool = True,
) -> Generation:
    """Answer a question.

    The device runs tokens in blocks and chooses by itself; the host looks at the text after each block, so that a few
    tokens may have been run in vain where a stop text ends the answer.

    Args:
        vlm: the model.
        window: the context; it is left as it is.
        text: the question.
        max_new_tokens: at most this many.
        temperature: 0 is greedy.
        top_k: draw from the k most likely tokens; None from all.
        top_p: draw from the most likely tokens whose probabilities add up to this; None from all.
        key: randomness; needed when the temperature is above 0.
        stop: texts that end the answer; they are cut off.
        stream: called with each new piece of text, after one token, two, four, and then every eight.
        keep: whether the turn, closed as the chat template closes it, becomes a chunk at the window's end; else
            ``.window`` is the window as it was.

    Raises:
        ValueError: a negative temperature, one without a key, top_k or top_p without a temperature or out of bounds, no
            tokens asked for, or an empty question.
        ModelMismatchError: the window belongs to another model.
        WindowFullError: question, answer and what closes the turn do not fit the window, or the model's length.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    decoding = Decoding(max_new_tokens, temperature, key, stop, stream, keep, top_k, top_p)
    answer, turn = generate_turn(vlm, window, text, decoding)
    return answer if turn is None else replace(answer, window=append(window, turn))


def generate_turn(vlm: Backbone, window: Window, text: str, decoding: Decoding) -> tuple[Generation, Chunk | None]:
    """`generate`, whose turn is still to be appended: the answer has the window as it was.

    Returns:
        The answer, and the turn's chunk as the window keeps chunks; None where it is not kept.
    """
    tail = question_tail(vlm, window, text)
    closing = _closing(vlm) if decoding.keep else ()
    question = int(tail.length)
    most = turn_slots(vlm, tail, decoding)
    check_room(window, most, tail.advance + most - question)
    started = time.perf_counter()
    room = bucket(len(_closing(vlm)) + 1)  # of one length, whether or not the turn is kept: fewer programs
    turn = Turn(vlm, window, most, room, sampling=decoding.sampling)
    answer = Answer(vlm, decoding)
    goes_on = answer.add([turn.ask(tail)])
    first = time.perf_counter() - started
    for block in decoding.blocks:
        if not goes_on:
            break
        goes_on = answer.add(turn.next_tokens(min(block, decoding.max_new_tokens - len(answer.tokens))))
    generation = Generation(answer.text, tuple(answer.tokens), first, window)
    if not decoding.keep:
        return generation, None
    kept = answer.kept_tokens
    ran = min(turn.answered, len(kept))
    if rest := [*kept[ran:], *closing]:
        turn.close(rest, ran)
    chunk = _turn(vlm, window, tail, turn.kv, [*kept, *closing])
    return generation, kept_in(chunk, window.storage)


class Answer:
    """An answer while it is generated: its tokens, their text, and what of it is settled, which is streamed once.

    Attributes:
        tokens: so far, without the one that ends the answer.
        text: of the tokens, cut off at the first stop text.
    """

    def __init__(self, vlm: Backbone, decoding: Decoding) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self._vlm = vlm
        self._stop = decoding.stop
        self._most = decoding.max_new_tokens
        self._stream = decoding.stream
        self._streamed = 0
        self._stopped = False

    def add(self, tokens: Iterable[int]) -> bool:
        """Take the next tokens, of which those behind the answer's end are left; whether another may follow."""
        return all(map(self._add, tokens))

    def _add(self, token: int) -> bool:
        ended = token in self._vlm.eos
        if not ended:
            self.tokens.append(token)
            self.text = _decoded(self._vlm, self.tokens)
            ends = [self.text.index(mark) for mark in self._stop if mark in self.text]
            self._stopped = bool(ends)
            self.text = self.text[: min(ends, default=len(self.text))]
        goes_on = not ended and not self._stopped and len(self.tokens) < self._most
        settled = _settled(self.text, self._stop) if goes_on else len(self.text)
        if self._stream is not None and settled > self._streamed:
            self._stream(self.text[self._streamed : settled])
        self._streamed = settled
        return goes_on

    @property
    def kept_tokens(self) -> list[int]:
        """What a kept turn is made of: of an answer that a stop text ended, the fewest tokens with the text before."""
        if not self._stopped:
            return self.tokens
        starts = (self.tokens[:n] for n in range(len(self.tokens) + 1))
        return next(tokens for tokens in starts if _decoded(self._vlm, tokens).startswith(self.text))


def _decoded(vlm: Backbone, tokens: list[int]) -> str:
    """The text of tokens.

    Raises:
        BackboneError: the model's `decode` gives something else.
    """
    text = vlm.decode(tokens)
    if not isinstance(text, str):
        raise BackboneError(f"{type(vlm).__name__}.decode gives {text!r}; expected a str, the text of token ids")
    return text


def _closing(vlm: Backbone) -> tuple[int, ...]:
    return tuple(with_defaults(vlm).closing)


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """How much of an unfinished answer later tokens cannot take back.

    They may complete a character of several tokens (U+FFFD until then) or a stop text.
    """
    whole = len(text.rstrip("\ufffd"))
    begun = [n for mark in stop for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])]
    return min(whole, len(text) - max(begun, default=0))


def turn_slots(vlm: Backbone, tail: Segment, decoding: Decoding) -> int:
    """Slots that `generate` needs free."""
    return int(tail.length) + decoding.max_new_tokens + (len(_closing(vlm)) if decoding.keep else 0)


def compile_turns(vlm: Backbone, window: Window, text: str, *, max_new_tokens: int) -> None:
    """Compile what `generate` runs for this question, whatever the answer and its length.

    Raises:
        WindowFullError, ValueError: see `generate`.
    """
    tail = question_tail(vlm, window, text)
    most = turn_slots(vlm, tail, Decoding(max_new_tokens, keep=True))
    check_room(window, most, tail.advance + most - int(tail.length))
    closing = _closing(vlm)
    turn = Turn(vlm, window, most, bucket(len(closing) + 1))
    token = turn.ask(tail)
    if max_new_tokens > 1:
        token = turn.next_tokens(1)[-1]
    turn.close([token, *closing], 0)
    for padded in {bucket(length) for length in range(most - max_new_tokens, most + 1)}:
        _cut(turn.kv, to_device(np.int32(1)), padded=padded)


def question_tail(vlm: Backbone, window: Window, text: str) -> Segment:
    """The question as it is asked of a window, at positions from 0.

    Raises:
        ModelMismatchError: the window belongs to another model.
        ValueError: the question is empty.
    """
    check_model(vlm, window)
    check_text(text, "the question")
    follows = bool(window.entries) and window.entries[-1].chunk.turn
    ask = "follow_up" if follows else "tail"
    backbone = with_defaults(vlm)
    tail = backbone.follow_up(text) if follows else backbone.tail(text)
    return check_segment(vlm, tail, ask)


def _turn(vlm: Backbone, window: Window, tail: Segment, kv: KV, answer: Sequence[int]) -> Chunk:
    """The question and the tokens after it as a chunk conditioned on the window."""
    question = int(tail.length)
    length = question + len(answer)
    padded = bucket(length)
    after = np.arange(1, padded - question + 1, dtype=np.float32)
    asked = jax.device_get(tail.inputs)
    positions = jax.device_get(tail.positions)[:, :question]
    positions = np.concatenate([positions, positions[:, -1:] + after], axis=1)
    ids = np.zeros(padded, np.int32)
    ids[:length] = [*asked["tokens"][:question], *answer]
    content = content_key({"turn": ids[:length].tolist(), "question": content_of(tail)})
    context = window.lineage
    widened = {name: _widened(rows, question, padded) for name, rows in asked.items()} | {"tokens": ids}
    key = chunk_key(content, vlm.spec, context)
    inputs, positions, count = to_device((widened, positions - positions[:, :1], np.int32(length)))
    advance = float(tail.advance + len(answer))
    return Chunk(
        kv=_cut(kv, count, padded=padded),
        positions=positions,
        length=length,
        advance=advance,
        model=vlm.spec.fingerprint,
        preamble=window.preamble.chunk.key or None,
        antecedents=window.keys,
        source=Segment(inputs, positions, np.int32(length), advance),
        turn=True,
        spec=vlm.spec,
        key=key,
        content=content if key else "",
        lineage=context if key else "",
    )


def _widened(rows: np.ndarray, question: int, padded: int) -> np.ndarray:
    """What the backbone reads beside the tokens, for the question alone."""
    out = np.zeros((padded, *rows.shape[1:]), rows.dtype)
    out[:question] = rows[:question]
    return out


@partial(jax.jit, static_argnames="padded")
def _cut(kv: KV, length: jax.Array | int, *, padded: int) -> KV:
    """The first rows, zero past ``length``."""
    valid = (jnp.arange(padded, dtype=jnp.int32) < length)[None, :, None]
    return jax.tree.map(lambda rows: jnp.where(valid, rows[:, :padded], jnp.zeros((), rows.dtype)), kv)
