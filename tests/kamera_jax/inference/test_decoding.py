"""Tokens that the device runs in blocks: the same as one by one, few waits, nothing copied, drawn as asked."""

from copy import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import NonFiniteError
from kamera_jax.inference import many, turn
from kamera_jax.inference.decoding import BLOCK, SOONER, Decoding, Sampling, filtered

QUESTION = "what colour is the cell ?"
OTHERS = ("which page is it ?", "is there a cell which is red on the page or is it blue ?", "what is it ?")
LONG = 40


def one_by_one(vlm, window, text, most):
    """Tokens, each asked for alone."""
    tail = vlm.tail(text)
    own = turn.Turn(vlm, window, int(tail.length) + most, 16)
    tokens = [own.ask(tail)]
    while len(tokens) < most and tokens[-1] not in vlm.eos:
        tokens += own.next_tokens(1)
    return tuple(token for token in tokens if token not in vlm.eos)


@pytest.fixture(scope="module")
def window(random_vlm, chunks):
    empty = kj.Window.empty(random_vlm, 256)
    return kj.append(kj.append(empty, chunks[0]), chunks[2])


@pytest.fixture(scope="module")
def wanted(random_vlm, window):
    return one_by_one(random_vlm, window, QUESTION, LONG)


def test_blocks_are_tokens_one_by_one(random_vlm, window, wanted):
    assert len(wanted) == LONG and len(set(wanted)) > 4
    pieces = []
    for options in ({}, {"stream": pieces.append}, {"stop": ("nothing says this",)}, {"keep": False}):
        answer = kj.generate(random_vlm, window, QUESTION, max_new_tokens=LONG, **options)
        assert answer.tokens == wanted and answer.text == random_vlm.decode(wanted)
    assert "".join(pieces) == answer.text


def test_the_host_waits_once_for_a_block(random_vlm, window, monkeypatch):
    counts = []
    run = turn._run

    def counted(*args, **kwargs):
        written, chosen = run(*args, **kwargs)
        counts.append(int(chosen[0]))
        return written, chosen

    monkeypatch.setattr(turn, "_run", counted)
    kj.generate(random_vlm, window, QUESTION, max_new_tokens=LONG)
    assert counts == [BLOCK, LONG - 1 - BLOCK]
    counts.clear()
    kj.generate(random_vlm, window, QUESTION, max_new_tokens=LONG, stream=lambda piece: None)
    assert counts == [1, 2, 4, *[SOONER] * 4]
    counts.clear()
    kj.generate(random_vlm, window, QUESTION, max_new_tokens=1)
    assert counts == []


def test_nothing_is_run_behind_the_token_that_ends_an_answer(random_vlm, window, wanted):
    first = next(n for n in range(3, LONG) if wanted[n] not in wanted[:n])
    for eos in ((wanted[first],), (1_000_000, 7_000_000, wanted[first], 8_000_000, 9_000_000)):
        ending = copy(random_vlm)
        ending.eos = eos
        own = turn.Turn(ending, window, 128, 16)
        tokens = [own.ask(ending.tail(QUESTION)), *own.next_tokens(BLOCK)]
        assert tuple(tokens) == wanted[: first + 1] and own.answered == first
        assert kj.generate(ending, window, QUESTION, max_new_tokens=LONG).tokens == wanted[:first]
    endless = copy(random_vlm)
    endless.eos = ()
    assert kj.generate(endless, window, QUESTION, max_new_tokens=LONG).tokens == wanted


def test_what_was_run_behind_a_stop_text_is_forgotten(random_vlm, window, wanted):
    """The kept turn is that of the answer, and what is asked next reads nothing else."""
    numbered = copy(random_vlm)
    numbered.decode = lambda tokens: "".join(f"<{place}>" for place in range(len(tokens)))
    stopped = kj.generate(numbered, window, QUESTION, max_new_tokens=LONG, stop=("<9>",))
    said = stopped.window.entries[-1].chunk
    assert stopped.text == numbered.decode(range(9)) and stopped.tokens[:9] == wanted[:9]
    short = kj.generate(random_vlm, window, QUESTION, max_new_tokens=9)
    assert short.tokens == wanted[:9] and short.window.entries[-1].chunk.key == said.key
    np.testing.assert_allclose(said.kv.rot, short.window.entries[-1].chunk.kv.rot, atol=1e-5)
    logits = [kj.query(random_vlm, each.window, OTHERS[0]) for each in (stopped, short)]
    np.testing.assert_allclose(*logits, atol=1e-4)


def broken_after(vlm, tokens):
    """The model, whose logits are no numbers behind so many tokens of a turn."""
    undefined = copy(vlm)
    forward = vlm.forward

    def broken(params, segment, state, **options):
        output = forward(params, segment, state, **options)
        position = segment.positions[0, 0]
        count = undefined.count
        logits = output.logits
        if logits is not None:
            logits = jnp.where((segment.positions.shape[-1] == 1) & (position >= count), jnp.nan, logits)
        return (
            replace(output, logits=logits)
            if hasattr(output, "__dataclass_fields__")
            else output._replace(logits=logits)
        )

    undefined.forward = broken
    return undefined


def test_tokens_before_logits_that_are_no_numbers_are_handed_on(random_vlm, window, wanted):
    broken = broken_after(random_vlm, 5)
    tail = random_vlm.tail(QUESTION)
    last = float(window.next_position) + float(tail.positions[0, int(tail.length) - 1])
    broken.count = last + 5.5  # the fifth token of the answer is the last that is chosen by numbers
    pieces = []
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        kj.generate(broken, window, QUESTION, max_new_tokens=LONG, stream=pieces.append)
    assert random_vlm.decode(wanted[:6]).startswith("".join(pieces)) and pieces
    assert kj.generate(broken, window, QUESTION, max_new_tokens=6).tokens == wanted[:6]
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        kj.generate_many(broken, [window] * 2, [QUESTION] * 2, max_new_tokens=7)
    assert kj.generate_many(broken, [window], [QUESTION], max_new_tokens=6)[0].tokens == wanted[:6]


def test_a_block_writes_where_the_turn_lies(random_vlm, window):
    """No copy of what is written: all of it is handed from block to block."""
    own = turn.Turn(random_vlm, window, 128, 16)
    own.ask(random_vlm.tail(QUESTION))
    before = own._written
    places = [leaf.unsafe_buffer_pointer() for leaf in (before.state.rot, before.state.free, before.kv.rot)]
    own.next_tokens(3)
    after = own._written
    assert before.state.rot.is_deleted() and not window.state.rot.is_deleted()
    assert [leaf.unsafe_buffer_pointer() for leaf in (after.state.rot, after.state.free, after.kv.rot)] == places


def by_hand(logits, temperature, top_k, top_p):
    """The tokens that are drawn from, in float64, a token at a time."""
    scores = np.float64(logits) / temperature
    kept = np.ones(len(scores), bool)
    if top_k is not None:
        kept = scores >= np.sort(scores)[::-1][min(top_k, len(scores)) - 1]
    if top_p is not None:
        chances = np.where(kept, np.exp(scores - scores.max()), 0)
        chances /= chances.sum()
        order = np.argsort(np.where(kept, scores, -np.inf), kind="stable")
        below = 0.0
        for token in order[:-1]:
            below += chances[token]
            kept[token] &= below > 1 - top_p
    return kept


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (3, None), (None, 0.7), (20, 0.9), (1, 0.5), (10**9, 1.0), (None, 1e-6)]
)
def test_tokens_are_drawn_from_those_that_are_asked_for(temperature, top_k, top_p):
    rng = np.random.default_rng(0)
    for _ in range(5):
        logits = rng.normal(size=97).astype(np.float32) * 2
        sampling = Decoding(1, temperature, jax.random.key(0), top_k=top_k, top_p=top_p).sampling
        given = np.asarray(filtered(jnp.asarray(logits), sampling))
        kept = by_hand(logits, temperature, top_k, top_p)
        np.testing.assert_array_equal(np.isfinite(given), kept)
        np.testing.assert_allclose(given[kept], logits[kept] / np.float32(temperature), rtol=1e-6)


def test_equally_likely_tokens_stay_together():
    sampling = Sampling(jax.random.key(0), np.float32(1), np.int32(2))
    given = filtered(jnp.asarray([1.0, 3.0, 2.0, 2.0, 0.0]), sampling)
    assert np.isfinite(given).tolist() == [False, True, True, True, False]


def test_an_answer_drawn_from_one_token_is_greedy(random_vlm, window, wanted):
    options = {"max_new_tokens": LONG, "temperature": 3.0, "key": jax.random.key(1)}
    for only in ({"top_k": 1}, {"top_p": 1e-6}):
        assert kj.generate(random_vlm, window, QUESTION, **options, **only).tokens == wanted
    free = kj.generate(random_vlm, window, QUESTION, **options)
    assert free.tokens != wanted
    assert kj.generate(random_vlm, window, QUESTION, **options, stream=lambda piece: None).tokens == free.tokens
    few = kj.generate(random_vlm, window, QUESTION, **options, top_k=2)
    assert few.tokens != free.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "top_k is 4, and the answer is greedy"),
        ({"top_p": 0.5}, "top_p is 0.5, and the answer is greedy"),
        ({"top_k": 0, "temperature": 1.0}, "top_k is 0; expected at least 1"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0; expected a probability above 0"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p is 1.5; expected a probability"),
        ({"top_p": -1.0, "temperature": 1.0}, "top_p is -1"),
    ],
)
def test_bad_options_are_refused(random_vlm, window, options, message):
    for ask in (
        lambda **given: kj.generate(random_vlm, window, QUESTION, **given),
        lambda **given: kj.generate_many(random_vlm, [window], [QUESTION], **given),
    ):
        with pytest.raises(ValueError, match=message):
            ask(key=jax.random.key(0), **options)


class TestMany:
    """Answers that are generated together are those of one window after another."""

    def test_of_one_window(self, random_vlm, window, wanted):
        texts = [QUESTION, *OTHERS]
        together = kj.generate_many(random_vlm, [window] * len(texts), texts, max_new_tokens=LONG)
        assert together[0].tokens == wanted
        for answer, text in zip(together, texts, strict=True):
            alone = kj.generate(random_vlm, window, text, max_new_tokens=LONG, keep=False)
            assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
            assert answer.window is window and answer.ttft_s > 0

    def test_in_blocks_until_the_last_has_ended(self, random_vlm, window, wanted, monkeypatch):
        counts = []
        run = many._run_many

        def counted(*args, **kwargs):
            written, chosen = run(*args, **kwargs)
            counts.append(int(chosen[0, 0]))
            return written, chosen

        monkeypatch.setattr(many, "_run_many", counted)
        ending = copy(random_vlm)
        first = next(n for n in range(3, LONG) if wanted[n] not in wanted[:n])
        ending.eos = (wanted[first],)
        texts = [QUESTION, *OTHERS, "is it red ?"]  # as many as no other test asks: compiled here
        together = kj.generate_many(ending, [window] * len(texts), texts, max_new_tokens=LONG)
        assert counts == [BLOCK, LONG - 1 - BLOCK]
        for answer, text in zip(together, texts, strict=True):
            assert answer.tokens == kj.generate(ending, window, text, max_new_tokens=LONG, keep=False).tokens
        assert together[0].tokens == wanted[:first]

    def test_of_several_windows(self, random_vlm, chunks):
        windows = [kj.append(kj.Window.empty(random_vlm, 128), chunk) for chunk in chunks]
        for mode in ("materialise", "in_place"):
            if mode == "in_place":
                windows = [kj.append(kj.Window.empty(random_vlm, 128, mode=mode), chunk) for chunk in chunks[:2]]
            texts = [QUESTION, *OTHERS][: len(windows)]
            together = kj.generate_many(random_vlm, windows, texts, max_new_tokens=9)
            for answer, window, text in zip(together, windows, texts, strict=True):
                assert answer.tokens == kj.generate(random_vlm, window, text, max_new_tokens=9, keep=False).tokens

    def test_that_end_at_different_tokens(self, random_vlm, window, wanted):
        ending = copy(random_vlm)
        others = [one_by_one(random_vlm, window, text, LONG) for text in OTHERS]
        ending.eos = (wanted[5], others[0][2], others[1][20])
        texts = [QUESTION, *OTHERS]
        together = kj.generate_many(ending, [window] * 4, texts, max_new_tokens=LONG)
        alone = [kj.generate(ending, window, text, max_new_tokens=LONG, keep=False).tokens for text in texts]
        assert [answer.tokens for answer in together] == alone and len({len(tokens) for tokens in alone}) > 2
        mark = random_vlm.decode(wanted[:2])[-3:]
        together = kj.generate_many(random_vlm, [window] * 4, texts, max_new_tokens=12, stop=(mark,))
        for answer, text in zip(together, texts, strict=True):
            assert answer.text == kj.generate(random_vlm, window, text, max_new_tokens=12, stop=(mark,)).text

    def test_that_are_drawn(self, random_vlm, window):
        key = jax.random.key(3)
        options = {"max_new_tokens": 12, "temperature": 2.0, "top_k": 50}
        together = kj.generate_many(random_vlm, [window] * 3, [QUESTION] * 3, key=key, **options)
        for place, answer in enumerate(together):
            own = jax.random.fold_in(key, place)
            assert answer.tokens == kj.generate(random_vlm, window, QUESTION, key=own, **options).tokens
        assert len({answer.tokens for answer in together}) == 3

    def test_of_a_backbone_that_does_not_read_a_windows_slots_apart(self, random_vlm, window, wanted):
        plain = copy(random_vlm)
        plain.reads_context = False
        (answer,) = kj.generate_many(plain, [window], [QUESTION], max_new_tokens=5)
        assert answer.tokens == wanted[:5] and answer.window is window

    def test_what_does_not_go_together_is_named(self, random_vlm, window, chunks):
        with pytest.raises(ValueError, match="2 questions of 1 windows"):
            kj.generate_many(random_vlm, [window], [QUESTION] * 2)
        wider = kj.append(kj.Window.empty(random_vlm, 512), chunks[0])
        with pytest.raises(ValueError, match="windows of one shape"):
            kj.generate_many(random_vlm, [window, wider], [QUESTION] * 2)
        with pytest.raises(kj.errors.WindowFullError):
            kj.generate_many(random_vlm, [window], [QUESTION], max_new_tokens=4096)
        assert kj.generate_many(random_vlm, [], []) == ()

    def test_the_windows_of_one_object_are_not_copied(self, random_vlm, window):
        given = many._Turns(random_vlm, [window] * 3, [random_vlm.tail(QUESTION)] * 3, Decoding(4))
        assert given._seen[0].rot is window.state.rot
