"""Asking a window: next-token logits of a question, and generation."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.backbone import Backbone, Output, call, with_defaults
from kamera_jax.chunk import Chunk
from kamera_jax.contract import check_segment
from kamera_jax.errors import BackboneError
from kamera_jax.forward import run
from kamera_jax.identity import chunk_key, content_key, content_of
from kamera_jax.kv import KV, ChunkPool, Segment, WindowState, bucket, check_length
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params, Stream
from kamera_jax.window.changes import append, turn_state
from kamera_jax.window.checks import check_model, check_room
from kamera_jax.window.reuse import write
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
    output = run(vlm.params, tail, window.state, tail.length[None] - 1, forward=vlm.forward)
    assert output.logits is not None
    return output.logits[0]


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


def generate(
    vlm: Backbone,
    window: Window,
    text: str,
    *,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    stop: tuple[str, ...] = (),
    stream: Stream | None = None,
    keep: bool = True,
) -> Generation:
    """Answer a question.

    Args:
        vlm: the model.
        window: the context; it is left as it is.
        text: the question.
        max_new_tokens: at most this many.
        temperature: 0 is greedy.
        key: randomness; needed when the temperature is above 0.
        stop: texts that end the answer; they are cut off.
        stream: called with each new piece of text.
        keep: whether the turn, closed as the chat template closes it, becomes a chunk at the window's end; else
            ``.window`` is the window as it was.

    Raises:
        ValueError: a negative temperature, one without a key, no tokens asked for, or an empty question.
        ModelMismatchError: the window belongs to another model.
        WindowFullError: question, answer and what closes the turn do not fit the window, or the model's length.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(f"temperature must be ≥ 0 and max_new_tokens ≥ 1; got {temperature} and {max_new_tokens}")
    if temperature > 0 and key is None:
        raise ValueError(
            "sampling needs randomness: pass key=jax.random.key(seed), or temperature=0 for the greedy answer"
        )
    tail = question_tail(vlm, window, text)
    closing = _closing(vlm) if keep else ()
    question = int(tail.length)
    most = turn_slots(vlm, tail, max_new_tokens, keep)
    check_room(window, most, tail.advance + most - question)
    started = time.perf_counter()
    first = 0.0
    state, start = turn_state(window, most)  # the loop donates it; the caller's window stays
    last_piece = bucket(len(closing) + 1)  # of one length, whether or not the answer's last token is to be run with it
    room = vlm.spec.empty_state(bucket(most) + last_piece)
    last = np.asarray(tail.positions)[:, question - 1 : question]
    step = partial(
        _step,
        vlm.params,
        pools=window.state.pools,
        start=start,
        temperature=jnp.float32(temperature),
        key=jax.random.key(0) if key is None else key,
        forward=vlm.forward,
        rope=vlm.spec.rope,
    )
    segment = tail
    turn = KV(room.rot, room.free)
    done = 0
    answer = _Answer(vlm, stop, max_new_tokens, stream)
    goes_on = True
    while goes_on:
        token, state, turn = step(segment, state, turn, done)
        done += int(segment.length)
        goes_on = answer.add(int(token))
        first = first or time.perf_counter() - started
        segment = _piece([int(token)], last + np.float32(len(answer.tokens)), 1)
    if not keep:
        return Generation(answer.text, tuple(answer.tokens), first, window)
    kept = answer.kept_tokens
    ran = min(done - question, len(kept))
    rest = [*kept[ran:], *closing]
    if rest:
        positions = last + np.arange(ran + 1, ran + 1 + last_piece, dtype=np.float32)
        _, state, turn = step(_piece(rest, positions, last_piece), state, turn, question + ran)
    del state  # the turn is written as any chunk is, so that a window is what its entries say, to the bit
    chunk = _turn(vlm, window, tail, turn, [*kept, *closing])
    return Generation(answer.text, tuple(answer.tokens), first, append(window, chunk))


class _Answer:
    """An answer while it is generated: its tokens, their text, and what of it is settled, which is streamed once.

    Attributes:
        tokens: so far, without the one that ends the answer.
        text: of the tokens, cut off at the first stop text.
    """

    def __init__(self, vlm: Backbone, stop: tuple[str, ...], most: int, stream: Stream | None) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self._vlm = vlm
        self._stop = stop
        self._most = most
        self._stream = stream
        self._streamed = 0
        self._stopped = False

    def add(self, token: int) -> bool:
        """Take the next token; whether another may follow."""
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


def _piece(tokens: Sequence[int], positions: np.ndarray, padded: int) -> Segment:
    """Tokens that follow others, at absolute positions f32[A, padded]."""
    ids = np.zeros(padded, np.int32)
    ids[: len(tokens)] = tokens
    return Segment({"tokens": jnp.asarray(ids)}, jnp.asarray(positions), jnp.int32(len(tokens)), float(len(tokens)))


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """How much of an unfinished answer later tokens cannot take back.

    They may complete a character of several tokens (U+FFFD until then) or a stop text.
    """
    whole = len(text.rstrip("\ufffd"))
    begun = [n for mark in stop for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])]
    return min(whole, len(text) - max(begun, default=0))


def turn_slots(vlm: Backbone, tail: Segment, max_new_tokens: int, keep: bool) -> int:
    """Slots that `generate` needs free."""
    return int(tail.length) + max_new_tokens + (len(_closing(vlm)) if keep else 0)


def question_tail(vlm: Backbone, window: Window, text: str) -> Segment:
    """The question as it is asked of a window, at its absolute positions.

    Raises:
        ModelMismatchError: the window belongs to another model.
        ValueError: the question is empty.
    """
    check_model(vlm, window)
    follows = bool(window.entries) and window.entries[-1].chunk.turn
    ask = "follow_up" if follows else "tail"
    backbone = with_defaults(vlm)
    tail = backbone.follow_up(text) if follows else backbone.tail(text)
    return check_segment(vlm, tail, ask).at(window.next_position)


@partial(jax.jit, static_argnames=("forward", "rope"), donate_argnames=("state", "turn"))
def _step(
    params: Params,
    segment: Segment,
    state: WindowState,
    turn: KV,
    done: jax.Array | int,
    *,
    pools: tuple[ChunkPool, ...],
    start: jax.Array | int,
    temperature: jax.Array,
    key: jax.Array,
    forward: Callable[..., Output],
    rope: RopeSpec,
) -> tuple[jax.Array, WindowState, KV]:
    """Run a segment, choose the token after it, and keep the segment's KV: in the state, and un-rotated in the turn.

    ``done`` tokens of the turn, which has its place at slot ``start``, went before; what a stop text took back of those
    that were run after them is forgotten.
    """
    state = replace(state, valid=state.valid & (jnp.arange(state.valid.shape[0], dtype=jnp.int32) < start + done))
    output = call(forward, params, segment, replace(state, pools=pools), logits_at=segment.length[None] - 1)
    assert output.logits is not None
    logits = output.logits[0]
    cooled = logits / jnp.where(temperature > 0, temperature, 1.0)
    sampled = jax.random.categorical(jax.random.fold_in(key, done), cooled)
    token = jnp.where(temperature > 0, sampled, jnp.argmax(logits)).astype(jnp.int32)
    # A token's slot is no multiple of 16, which the kernels write from.
    state = write(state, start + done, output.kv, None, segment.positions, segment.length, rope, implementation="xla")
    turn = jax.tree.map(lambda whole, rows: jax.lax.dynamic_update_slice_in_dim(whole, rows, done, 1), turn, output.kv)
    return token, state, turn


def _turn(vlm: Backbone, window: Window, tail: Segment, kv: KV, answer: Sequence[int]) -> Chunk:
    """The question and the tokens after it as a chunk conditioned on the window."""
    question = int(tail.length)
    length = question + len(answer)
    padded = bucket(length)
    after = np.arange(1, padded - question + 1, dtype=np.float32)
    positions = np.asarray(tail.positions)
    ids = np.zeros(padded, np.int32)
    positions = np.concatenate([positions[:, :question], positions[:, question - 1 : question] + after], axis=1)
    ids[:length] = [*np.asarray(tail.inputs["tokens"])[:question], *answer]
    content = content_key({"turn": ids[:length].tolist(), "question": content_of(tail)})
    context = window.lineage
    asked = {name: _widened(rows, question, padded) for name, rows in tail.inputs.items()}
    key = chunk_key(content, vlm.spec, context)
    positions = jnp.asarray(positions - positions[:, :1])
    advance = float(tail.advance + len(answer))
    return Chunk(
        kv=_cut(kv, length, padded=padded),
        positions=positions,
        length=length,
        advance=advance,
        model=vlm.spec.fingerprint,
        preamble=window.preamble.chunk.key or None,
        antecedents=window.keys,
        source=Segment(asked | {"tokens": jnp.asarray(ids)}, positions, jnp.int32(length), advance),
        turn=True,
        spec=vlm.spec,
        key=key,
        content=content if key else "",
        lineage=context if key else "",
    )


def _widened(rows: jax.Array, question: int, padded: int) -> jax.Array:
    """What the backbone reads beside the tokens, for the question alone."""
    out = np.zeros((padded, *rows.shape[1:]), rows.dtype)
    out[:question] = np.asarray(rows)[:question]
    return jnp.asarray(out)


@partial(jax.jit, static_argnames="padded")
def _cut(kv: KV, length: jax.Array | int, *, padded: int) -> KV:
    """The first rows, zero past ``length``."""
    valid = (jnp.arange(padded, dtype=jnp.int32) < length)[None, :, None]
    return jax.tree.map(lambda rows: jnp.where(valid, rows[:, :padded], jnp.zeros((), rows.dtype)), kv)
