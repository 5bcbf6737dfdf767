"""Few programs, whatever the sizes, and no transfer that nobody asked for."""

import gc

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import WindowFullError
from kamera_jax.session.warm import warm
from tests.kamera_jax.conftest import CELL
from tests.kamera_jax.programs import WORDS, compilations, transfers, turn
from tests.kamera_jax.toy import Toy

MODES = ("materialise", "in_place")
QUESTION = "which page is blue ?"


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_transferred_but_what_is_put_there(random_vlm, chunks, mode):
    a, b, c = chunks
    empty = kj.Window.empty(random_vlm, 200, mode=mode)
    window = kj.append(kj.append(empty, a), c)

    def steady():
        patch = kj.form_patch(random_vlm, b, context=window, rank=8)
        longer = kj.append(window, b, patch)
        other = kj.slide(kj.reorder(longer, [2, 0, 1]))
        kj.query(random_vlm, other, QUESTION)
        kj.encode(random_vlm, "the page is red")
        for keep in (True, False):
            kj.generate(random_vlm, other, QUESTION, max_new_tokens=3, keep=keep)

    steady()
    with jax.transfer_guard("disallow"):
        steady()


def test_ranks_share_a_program(random_vlm, chunks):
    a, b, _ = chunks
    window = kj.append(kj.Window.empty(random_vlm, 128), a)

    def patched(rank):
        patch = kj.form_patch(random_vlm, b, context=window, rank=rank)
        kj.append(window, b, patch)
        return patch

    patched(8)
    with compilations() as seen:
        patches = [patched(rank) for rank in (5, 6, 7)]
    assert not seen
    for rank, patch in zip((5, 6, 7), patches, strict=True):
        ranks = np.asarray(patch.factors.ranks)
        assert ranks.max() == rank and patch.factors.u.shape[1] == 8
        assert not np.asarray(patch.factors.u)[:, rank:].any() and not np.asarray(patch.factors.v)[:, rank:].any()


def test_counts_of_chunks_share_a_program(random_vlm, texts):
    """The attention shares of a patch, one for each owner, are summed by one program for many counts of owners."""
    window = kj.Window.empty(random_vlm, 256)
    patches = []
    for count, chunk in enumerate(texts[:3]):
        with compilations() as seen:
            patch = kj.form_patch(random_vlm, texts[-1], context=window, rank=4)
        patches.append(patch)
        assert patch.mass.shape == (random_vlm.spec.layers, count + 2)
        assert np.allclose(np.asarray(patch.mass).sum(-1), 1, atol=1e-5)
        window = kj.append(window, chunk)
    assert not seen


def test_capacities_share_programs_and_stay_the_limit(random_vlm, chunks):
    windows = []
    for capacity in (200, 256):
        with compilations() as seen:
            window = kj.append(kj.Window.empty(random_vlm, capacity), chunks[0])
            windows.append(window)
            kj.query(random_vlm, window, QUESTION)
    assert not seen and [window.capacity for window in windows] == [200, 256]
    room = kj.Window.empty(random_vlm, 128).next_slot + chunks[0].length
    full = kj.Window.empty(random_vlm, room - 1)
    with pytest.raises(WindowFullError, match="slots free"):
        kj.append(full, chunks[0])


@pytest.mark.parametrize("mode", MODES)
def test_a_session_of_items_of_mixed_sizes_is_few_programs(random_vlm, mode):
    """Sixty turns of texts and images of one to a hundred tokens, in a window that is full after a few."""
    jax.clear_caches()
    session = kj.Session(random_vlm, 1024, mode=mode)
    random = np.random.default_rng(0)
    early = 0
    with compilations() as seen:
        for number in range(60):
            if number == 20:
                early = len(seen)
            turn(session, random, CELL, most=110, side=10)
    assert session.stats.evicted > 60 and session.stats.recalls > 5
    assert len(seen) <= 60, seen
    assert not seen[early:]


@pytest.mark.parametrize("mode", MODES)
def test_what_was_warmed_up_compiles_nothing(mode):
    toy = Toy(seed=12)
    steps = []
    texts = ["a page", "a page " * 4]
    options = {"items": texts, "questions": ["what is it ?"], "max_new_tokens": 4}
    warm(toy, 400, mode=mode, rank=8, progress=lambda *step: steps.append(step), **options)
    assert [step[:2] for step in steps] == [(i, len(steps)) for i in range(len(steps))]
    assert steps[0][2] == "item 1 of 2" and steps[-1][2] == "question 1 of 1"
    with compilations() as seen:
        session = kj.Session(toy, 400, mode=mode, rank=8)
        for number in range(12):
            session.add("b star " * 4 if number % 3 else "other" + str(number))
            kept = session.window
            session.add("cell" + str(number), patch=bool(number % 2))
            for tokens in range(1, 5):
                answer = session.ask("what was it?", max_new_tokens=tokens, keep=bool(number % 2))
            assert kept and answer.tokens
        session.recall(session.evicted[0])
    assert not seen


def test_a_model_warms_its_own_sessions(random_vlm, make_image):
    random_vlm.warm(300, items=["red and blue", make_image(2, 3)], questions=[QUESTION], max_new_tokens=2)
    with compilations() as seen:
        session = kj.Session(random_vlm, 300)
        for item in (make_image(3, 2, seed=5), "the page on the left", make_image(1, 5, seed=6)):
            session.add(item)
            session.ask("which cell is red ?", max_new_tokens=2)
    assert not seen


def test_texts_of_its_own_are_run_without_items():
    steps = []
    warm(Toy(seed=13), 200, rank=4, max_new_tokens=4, progress=lambda *step: steps.append(step[2]))
    assert steps[0] == "item 1 of 3" and steps[-1] == "question 1 of 1"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"items": "a text"}, "items must be a list"),
        ({"questions": "what ?"}, "questions must be a list"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"rank": 0}, "rank is 0; expected at least 1"),
        ({"items": ["a page " * 60]}, "do not fit"),
        ({"questions": ["what " * 60]}, "do not fit"),
    ],
)
def test_what_cannot_be_warmed_up_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        warm(Toy(seed=13), 200, **wrong)


LIMITS = {"encode": 2, "form_patch": 2, "append": 2, "reorder": 2, "slide": 2, "query": 2}


@pytest.mark.parametrize("mode", MODES)
def test_operations_make_few_transfers(random_vlm, make_image, mode):
    """What an operation sends goes together: the item and the numbers that say where it comes to."""
    window = kj.Window.empty(random_vlm, 300, mode=mode)
    words = iter("red blue star page cell left right green".split())
    for _ in range(3):
        window = kj.append(window, kj.encode(random_vlm, f"the {next(words)} page is {next(words)}"))
    made = {}

    def counted(name, operation):
        with transfers() as sent, jax.transfer_guard("disallow"):
            result = operation()
        made[name] = max(made.get(name, 0), len(sent))
        return result

    for seed in (1, 2):
        chunk = counted("encode", lambda seed=seed: kj.encode(random_vlm, make_image(2, 3, seed=seed)))
        patch = counted("form_patch", lambda chunk=chunk: kj.form_patch(random_vlm, chunk, context=window, rank=8))
        longer = counted("append", lambda chunk=chunk, patch=patch: kj.append(window, chunk, patch))
        other = counted("reorder", lambda longer=longer: kj.reorder(longer, [2, 3, 0, 1]))
        other = counted("slide", lambda other=other: kj.slide(other))
        counted("query", lambda other=other: kj.query(random_vlm, other, f"is the {next(words)} page left ?"))
    assert all(made[name] <= limit for name, limit in LIMITS.items()), made


@pytest.mark.parametrize("mode", MODES)
def test_a_session_transfers_nothing_that_it_does_not_put_there(random_vlm, make_image, mode):
    session = kj.Session(random_vlm, 200, mode=mode)

    def steps(seed):
        session.add(f"the {WORDS[seed % len(WORDS)]} page is {WORDS[seed // 2 % len(WORDS)]} and {seed}")
        session.add(make_image(2, 3, seed=seed))
        session.ask(QUESTION, max_new_tokens=2)

    for seed in range(6):
        steps(seed)
    assert session.stats.evicted
    with jax.transfer_guard("disallow"):
        steps(6)
        steps(7)


@pytest.mark.parametrize("mode", MODES)
def test_a_session_makes_few_transfers(random_vlm, mode):
    """One for each part: to add is to prepare, evict, form a patch and append; to ask is to evict, run and keep."""
    session = kj.Session(random_vlm, 200, mode=mode)
    made = {"add": 0, "ask": 0}
    for number in range(12):
        steps = {
            "add": lambda number=number: session.add(f"the {WORDS[number]} page is {WORDS[number + 1]} and {number}"),
            "ask": lambda number=number: session.ask(f"is page {number} blue ?", max_new_tokens=3),
        }
        for name, step in steps.items():
            with transfers() as sent:
                step()
            made[name] = max(made[name], len(sent)) if number > 5 else 0
    assert session.stats.evicted > 6
    assert made["add"] <= 4 and made["ask"] <= 3, made


def test_a_window_that_nobody_has_is_taken_again(random_vlm, texts):
    """A session hands its buffers on after a question too, and never those that a caller has."""
    session = kj.Session(random_vlm, 512)
    session.add(texts[0])
    session.ask(QUESTION, max_new_tokens=1)  # the answer, which has the window, is dropped
    gc.collect()  # what checks types in tests holds frames in circles, and these the answer
    state = session._kept.window.state
    session.add(texts[1])
    assert state.rot.is_deleted()
    takes = (lambda answer: answer, lambda answer: answer.window, lambda answer: answer.window.state.rot)
    for take, text in zip(takes, texts[2:], strict=False):
        taken = take(session.ask(QUESTION, max_new_tokens=1))
        array = getattr(getattr(taken, "window", taken), "state", None)
        array = taken if array is None else array.rot
        before = np.array(array)
        session.add(text)
        assert not array.is_deleted() and (np.asarray(array) == before).all()
    state = session._kept.window.state
    array = None
    del taken
    session.add("another page")
    assert state.rot.is_deleted()
