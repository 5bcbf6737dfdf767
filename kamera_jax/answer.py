"""Asking a window: next-token logits of a question, and generation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.backbone import Backbone, Output
from kamera_jax.chunk import Chunk, Entry, chunk_key
from kamera_jax.forward import run
from kamera_jax.kv import KV, ChunkPool, Segment, WindowState, bucket
from kamera_jax.reuse import write
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params, Stream
from kamera_jax.window import Window, append, check_model, check_room, turn_state


def query(vlm: Backbone, window: Window, text: str) -> Float[Array, " V"]:
    """Next-token logits f32[V] after the question, at the first answer token. The window is left as it is.

    Raises:
        ModelMismatchError: the window belongs to another model.
        ValueError: the question is empty.
    """
    tail = _tail(vlm, window, text)
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
        window: the window with the turn, question and answer, kept as a chunk.
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

    Raises:
        ValueError: a negative temperature, one without a key, no tokens asked for, or an empty question.
        ModelMismatchError: the window belongs to another model.
        WindowFullError: question and answer do not fit the window.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(f"temperature must be ≥ 0 and max_new_tokens ≥ 1; got {temperature} and {max_new_tokens}")
    if temperature > 0 and key is None:
        raise ValueError(
            "sampling needs randomness: pass key=jax.random.key(seed), or temperature=0 for the greedy answer"
        )
    tail = _tail(vlm, window, text)
    question = int(tail.length)
    check_room(window, question + max_new_tokens)
    started, first = time.perf_counter(), 0.0
    state, start = turn_state(window, question + max_new_tokens)  # the loop donates it; the caller's window stays
    room = vlm.spec.empty_state(bucket(question + max_new_tokens))
    last = np.asarray(tail.positions)[:, question - 1 : question]
    key = jax.random.key(0) if key is None else key
    segment, turn, done, tokens, whole, said = tail, KV(room.rot, room.free), 0, [], "", ""
    while True:
        token, state, turn = _step(
            vlm.params,
            segment,
            state,
            turn,
            window.state.pools,
            start,
            done,
            jnp.float32(temperature),
            key,
            forward=vlm.forward,
            rope=vlm.spec.rope,
        )
        done += int(segment.length)
        token = int(token)
        first = first or time.perf_counter() - started
        finished = token in vlm.eos
        if not finished:
            tokens.append(token)
            whole = vlm.decode(tokens)
            ends = [whole.index(mark) for mark in stop if mark in whole]
            finished, whole = bool(ends), whole[: min(ends, default=len(whole))]
        finished = finished or len(tokens) == max_new_tokens
        settled = whole if finished else whole[: _settled(whole, stop)]
        if stream is not None and len(settled) > len(said):
            stream(settled[len(said) :])
        said = settled
        if finished:
            break
        position = jnp.asarray(last + np.float32(len(tokens)))
        segment = Segment({"tokens": jnp.array([token], jnp.int32)}, position, jnp.int32(1), 1.0)
    kept = _turn(vlm, window, tail, turn, tokens, done)
    if window.mode == "in_place":
        after = append(window, kept)
    else:  # the loop has written it
        entry = Entry(kept, None, window.next_position, window.next_slot)
        after = replace(window, state=state, entries=(*window.entries, entry))
    return Generation(whole, tuple(tokens), first, after)


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """How much of an unfinished answer later tokens cannot take back.

    They may complete a character of several tokens (U+FFFD until then) or a stop text.
    """
    whole = len(text.rstrip("\ufffd"))
    begun = [n for mark in stop for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])]
    return min(whole, len(text) - max(begun, default=0))


def _tail(vlm: Backbone, window: Window, text: str) -> Segment:
    check_model(vlm, window)
    return vlm.tail(text).at(window.next_position)


@partial(jax.jit, static_argnames=("forward", "rope"), donate_argnames=("state", "turn"))
def _step(
    params: Params,
    segment: Segment,
    state: WindowState,
    turn: KV,
    pools: tuple[ChunkPool, ...],
    start: jax.Array | int,
    done: jax.Array | int,
    temperature: jax.Array,
    key: jax.Array,
    *,
    forward: Callable[..., Output],
    rope: RopeSpec,
) -> tuple[jax.Array, WindowState, KV]:
    """Run a segment, choose the token after it, and keep the segment's KV: in the state, and un-rotated in the turn.

    ``done`` tokens of the turn, which has its place at slot ``start``, went before.
    """
    output = forward(params, segment, replace(state, pools=pools), logits_at=segment.length[None] - 1)
    assert output.logits is not None
    logits = output.logits[0]
    cooled = logits / jnp.where(temperature > 0, temperature, 1.0)
    sampled = jax.random.categorical(jax.random.fold_in(key, done), cooled)
    token = jnp.where(temperature > 0, sampled, jnp.argmax(logits))
    # A token's slot is no multiple of 16, which the kernels write from.
    state = write(state, start + done, output.kv, None, segment.positions, segment.length, rope, implementation="xla")
    turn = jax.tree.map(lambda whole, rows: jax.lax.dynamic_update_slice_in_dim(whole, rows, done, 1), turn, output.kv)
    return token, state, turn


def _turn(vlm: Backbone, window: Window, tail: Segment, kv: KV, tokens: list[int], length: int) -> Chunk:
    """Question and answer as a chunk conditioned on the window.

    The last token was chosen but never run, so it is not in it.
    """
    question, padded = int(tail.length), bucket(length)
    answer = np.arange(1, padded - question + 1, dtype=np.float32)
    positions, ids = np.asarray(tail.positions), np.zeros(padded, np.int32)
    positions = np.concatenate([positions[:, :question], positions[:, question - 1 : question] + answer], axis=1)
    ids[:length] = [*np.asarray(tail.inputs["tokens"])[:question], *tokens[: length - question]]
    content = chunk_key(str(ids[:length].tolist()), vlm.spec, None)
    preamble = window.preamble.chunk.key
    return Chunk(
        kv=jax.tree.map(lambda rows: rows[:, :padded], kv),
        positions=jnp.asarray(positions - positions[:, :1]),
        length=length,
        advance=float(tail.advance + length - question),
        key=chunk_key(content, vlm.spec, preamble, window.keys),
        model=vlm.spec.fingerprint,
        preamble=preamble,
        antecedents=window.keys,
        inputs={"tokens": jnp.asarray(ids)},
    )
