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
from kamera_jax.chunk import Chunk, chunk_key
from kamera_jax.encode import run
from kamera_jax.kv import KV, Segment, WindowState, bucket
from kamera_jax.reuse import write
from kamera_jax.rope import RopeSpec
from kamera_jax.types import Params, Stream
from kamera_jax.window import Entry, Window, check_room


def query(vlm: Backbone, window: Window, text: str) -> Float[Array, " V"]:
    """Next-token logits f32[V] after the question, at the first answer token. The window is left as it is.

    Raises:
        ValueError: the model is not the window's, or the question is empty.
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
        ValueError: a negative temperature, one without a key, or no tokens asked for.
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
    state = jax.tree.map(jnp.copy, window.state)  # the loop donates its state; the caller's window stays
    segment, slot, kvs, tokens, said = tail, window.next_slot, [], [], ""
    keys = jax.random.split(jax.random.key(0) if key is None else key, max_new_tokens)
    finished = False
    while True:
        token, state, kv = _step(
            vlm.params,
            segment,
            state,
            slot,
            jnp.float32(temperature),
            keys[len(tokens)],
            forward=vlm.forward,
            rope=vlm.spec.rope,
        )
        kvs.append(kv)
        slot += int(segment.length)
        token = int(token)
        first = first or time.perf_counter() - started
        finished = token in vlm.eos
        if not finished:
            tokens.append(token)
            whole = vlm.decode(tokens)
            ends = [whole.index(mark) for mark in stop if mark in whole]
            finished, whole = bool(ends), whole[: min(ends, default=len(whole))]
            if stream is not None and len(whole) > len(said):
                stream(whole[len(said) :])
            said = whole
        if finished or len(tokens) == max_new_tokens:
            break
        segment = _next(token, tail, question, len(tokens) - 1)
    turn = _turn(vlm, window, tail, kvs, tokens)
    entry = Entry(turn, None, window.next_position, window.next_slot)
    return Generation(said, tuple(tokens), first, replace(window, state=state, entries=(*window.entries, entry)))


def _tail(vlm: Backbone, window: Window, text: str) -> Segment:
    if vlm.spec.fingerprint != window.spec.fingerprint:
        raise ValueError(
            f"the window belongs to model {window.spec.fingerprint[:12]}, not to {vlm.spec.fingerprint[:12]}"
        )
    return vlm.tail(text).at(window.next_position)


def _next(token: int, tail: Segment, question: int, index: int) -> Segment:
    position = tail.positions[:, question - 1 : question] + 1.0 + index
    return Segment({"tokens": jnp.array([token], jnp.int32)}, position, jnp.int32(1), 1.0)


@partial(jax.jit, static_argnames=("forward", "rope"), donate_argnames="state")
def _step(
    params: Params,
    segment: Segment,
    state: WindowState,
    slot: jax.Array | int,
    temperature: jax.Array,
    key: jax.Array,
    *,
    forward: Callable[..., Output],
    rope: RopeSpec,
) -> tuple[jax.Array, WindowState, KV]:
    """Run a segment, choose the token after it, and keep the segment's KV in the state."""
    output = forward(params, segment, state, logits_at=segment.length[None] - 1)
    assert output.logits is not None
    logits = output.logits[0]
    sampled = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1.0))
    token = jnp.where(temperature > 0, sampled, jnp.argmax(logits))
    state = write(state, slot, output.kv, None, segment.positions, segment.length, rope)
    return token, state, output.kv


def _turn(vlm: Backbone, window: Window, tail: Segment, kvs: list[KV], tokens: list[int]) -> Chunk:
    """Question and answer as a chunk conditioned on the window.

    The last token was chosen but never run, so it is not in it.
    """
    question = int(tail.length)
    length = question + len(kvs) - 1
    padding = bucket(length) - length

    def joined(rows: list[jax.Array], axis: int) -> jax.Array:
        whole = jnp.concatenate(rows, axis=axis)
        return jnp.pad(whole, [(0, padding) if i == axis else (0, 0) for i in range(whole.ndim)])

    kv = jax.tree.map(lambda first, *rest: joined([first[:, :question], *rest], 1), kvs[0], *kvs[1:])
    start = tail.positions[:, :1]
    generated = (
        tail.positions[:, question - 1 : question] + 1.0 + jnp.arange(length - question, dtype=jnp.float32)[None, :]
    )
    positions = joined([tail.positions[:, :question] - start, generated - start], 1)
    ids = joined([tail.inputs["tokens"][:question], jnp.array(tokens[: length - question], jnp.int32)], 0)
    content = chunk_key(str(np.asarray(ids[:length]).tolist()), vlm.spec, None)
    preamble = window.preamble.chunk.key
    return Chunk(
        kv=kv,
        positions=positions,
        length=length,
        advance=float(tail.advance + length - question),
        key=chunk_key(content, vlm.spec, preamble, window.keys),
        model=vlm.spec.fingerprint,
        preamble=preamble,
        antecedents=window.keys,
        inputs={"tokens": ids},
    )
