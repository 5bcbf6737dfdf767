"""Asking a window, held against one forward of the whole text."""

from copy import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.inference.generate import _settled
from kamera_jax.kv import Segment

QUESTION = "what colour is the cell ?"
FOLLOW_UP = "which page is it ?"
N = 5


def relative(given, expected):
    return np.linalg.norm(np.asarray(given, np.float64) - expected) / np.linalg.norm(expected)


def text(tokens):
    """Tokens as a segment of their own."""
    row = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(len(tokens), dtype=jnp.float32), (3, len(tokens)))
    return Segment({"tokens": row}, positions, jnp.int32(len(tokens)), float(len(tokens)))


@pytest.fixture(scope="module")
def before(random_vlm, chunks):
    return random_vlm.preamble, *(chunk.source for chunk in chunks)


@pytest.fixture(scope="module")
def greedy(random_vlm, patched):
    answer = kj.generate(random_vlm, patched, QUESTION, max_new_tokens=N)
    assert len(set(answer.tokens)) > 2  # an answer that repeats itself would test little
    return answer


def test_query_equals_one_forward(random_vlm, patched, before, whole):
    logits = kj.query(random_vlm, patched, QUESTION)
    assert logits.dtype == jnp.float32 and logits.ndim == 1
    _, wanted = whole(random_vlm, *before, random_vlm.tail(QUESTION))
    assert relative(logits, wanted) <= 1e-5
    _, wanted = whole(random_vlm, random_vlm.preamble, random_vlm.tail(QUESTION))
    assert relative(kj.query(random_vlm, kj.slide(patched, drop=3), QUESTION), wanted) <= 1e-5


def test_greedy_is_the_argmax_of_one_forward_after_another(random_vlm, greedy, before, whole):
    said = []
    for _ in range(N):
        answer = (text(said),) if said else ()
        _, logits = whole(random_vlm, *before, random_vlm.tail(QUESTION), *answer)
        said.append(int(logits.argmax()))
    assert greedy.tokens == tuple(said)
    assert greedy.text == random_vlm.decode(said) and greedy.ttft_s > 0


def test_fewer_tokens_are_a_beginning(random_vlm, patched, greedy):
    for n in (1, 3):
        assert kj.generate(random_vlm, patched, QUESTION, max_new_tokens=n).tokens == greedy.tokens[:n]


def test_the_turn_is_kept_as_a_chunk(random_vlm, patched, greedy, before, whole):
    *old, turn = greedy.window.entries
    tail = random_vlm.tail(QUESTION)
    assert tuple(old) == patched.entries and turn.patch is None
    assert (turn.slot, turn.base) == (patched.next_slot, patched.next_position)
    assert turn.chunk.antecedents == patched.keys
    said = [*greedy.tokens, *random_vlm.closing]
    assert turn.chunk.length == turn.chunk.advance == int(tail.length) + len(said) and turn.chunk.turn
    # A follow-up sees the whole conversation.
    _, wanted = whole(random_vlm, *before, tail, text(said), random_vlm.follow_up(FOLLOW_UP))
    assert relative(kj.query(random_vlm, greedy.window, FOLLOW_UP), wanted) <= 1e-5
    # Written again from the chunk, the window is the same to the bit.
    again = kj.append(patched, turn.chunk)
    assert (again.state.valid == greedy.window.state.valid).all()
    for name in ("rot", "free", "positions"):
        given, wanted = (getattr(window.state, name)[:, again.state.valid] for window in (again, greedy.window))
        assert (given == wanted).all()
    assert kj.generate(random_vlm, greedy.window, FOLLOW_UP, max_new_tokens=1).window.tokens > greedy.window.tokens


def test_an_answer_that_ends_itself_is_kept_whole(random_vlm, patched, greedy, before, whole):
    ending = copy(random_vlm)
    n = next(i for i in range(1, N) if greedy.tokens[i] not in greedy.tokens[:i])
    ending.eos = (greedy.tokens[n],)
    answer = kj.generate(ending, patched, QUESTION, max_new_tokens=N)
    assert answer.tokens == greedy.tokens[:n] and answer.text == random_vlm.decode(answer.tokens)
    tail = random_vlm.tail(QUESTION)
    closing = random_vlm.closing
    assert answer.window.entries[-1].chunk.length == int(tail.length) + n + len(closing)
    said = [*answer.tokens, *closing]
    _, wanted = whole(random_vlm, *before, tail, text(said), random_vlm.follow_up(FOLLOW_UP))
    assert relative(kj.query(ending, answer.window, FOLLOW_UP), wanted) <= 1e-5
    ending.eos = greedy.tokens[:1]
    silent = kj.generate(ending, patched, QUESTION, max_new_tokens=N)
    length = silent.window.entries[-1].chunk.length
    assert (silent.text, silent.tokens, length) == ("", (), int(tail.length) + len(closing))


def streamed(vlm, window, **options):
    pieces = []
    answer = kj.generate(vlm, window, QUESTION, max_new_tokens=N, stream=pieces.append, **options)
    assert "".join(pieces) == answer.text and "" not in pieces
    return answer, pieces


def test_stream_pieces_join_to_the_text(random_vlm, patched, greedy):
    answer, pieces = streamed(random_vlm, patched)
    assert answer.text == greedy.text and len(pieces) == N


@pytest.mark.parametrize("across", [False, True], ids=["within a token", "across tokens"])
def test_stop_texts_are_cut_off_and_never_streamed(random_vlm, patched, greedy, across):
    words = [random_vlm.decode(greedy.tokens[: i + 1]) for i in range(N)]
    # Without a first occurrence before it, so that it is the one that stops.
    mark = greedy.text[len(words[1]) - 1 : len(words[1]) + 2] if across else greedy.text[len(words[1]) :][:3]
    answer, _ = streamed(random_vlm, patched, stop=("never said", mark))
    assert answer.text == greedy.text[: greedy.text.index(mark)]
    assert len(answer.tokens) < N and answer.tokens == greedy.tokens[: len(answer.tokens)]


def test_a_stop_text_that_does_not_come_is_not_held_back_for_ever(random_vlm, patched, greedy):
    answer, _ = streamed(random_vlm, patched, stop=(greedy.text[-2:] + "!",))
    assert answer.text == greedy.text


def test_half_a_character_is_not_streamed(random_vlm, patched):
    # A byte-level tokenizer: two tokens a character, U+FFFD until both are there.
    halves = copy(random_vlm)
    halves.decode = lambda tokens: "é" * (len(tokens) // 2) + "\ufffd" * (len(tokens) % 2)
    _, pieces = streamed(halves, patched)
    assert pieces == ["é", "é", "\ufffd"]


@pytest.mark.parametrize(
    "said, stop, settled",
    [("abc", (), 3), ("abc", ("cd",), 2), ("abcc", ("cce",), 2), ("abc", ("abcd", "x"), 0), ("a\ufffd", ("b",), 1)],
)
def test_settled(said, stop, settled):
    assert _settled(said, stop) == settled


def test_sampling_is_the_keys(random_vlm, patched, greedy):
    def sample(seed, temperature=5.0):
        return kj.generate(
            random_vlm, patched, QUESTION, max_new_tokens=N, temperature=temperature, key=jax.random.key(seed)
        ).tokens

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(4)}) > 1
    assert sample(0, temperature=1e-6) == greedy.tokens
    assert sample(0, temperature=0.0) == greedy.tokens


def test_a_window_of_another_backbone_is_refused(random_vlm, patched):
    other = copy(random_vlm)
    other.fingerprint = "0" * 64
    other.spec = replace(random_vlm.spec, fingerprint="0" * 64)
    for ask in (kj.query, kj.generate):
        with pytest.raises(kj.errors.ModelMismatchError, match="belongs to model"):
            ask(other, patched, QUESTION)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, "temperature is -1; expected a finite number of at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"temperature": 0.5}, "pass key="),
    ],
)
def test_bad_options_are_refused(random_vlm, patched, options, message):
    with pytest.raises(ValueError, match=message):
        kj.generate(random_vlm, patched, QUESTION, **options)
