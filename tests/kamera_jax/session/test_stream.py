"""Long runs: no drift over slides, no memory over a stream, no compilation after warm-up."""

import gc
import resource

import jax
import numpy as np
import pytest

import kamera_jax as kj
from tests.kamera_jax.test_compiles import compilations
from tests.kamera_jax.toy import Toy
from tests.kamera_jax.window.test_window_machine import assert_state, random_stock

CELL = 28
QUESTIONS = ("what colour is it ?", "which page is blue ?")


def frame(number, rows=2, columns=2):
    """Another picture for every number."""
    return np.random.default_rng(number).integers(0, 256, (rows * CELL, columns * CELL, 3), np.uint8)


def slid(mode, slides):
    """A window slid so often, what came back at its end, and what it must be."""
    toy = Toy(seed=7)
    stock = [(chunk, patches[i % 3]) for i, (chunk, patches) in enumerate(random_stock(toy, seed=8))]
    window = kj.Window.empty(toy, 128, mode=mode)
    for pair in stock[:4]:
        window = kj.append(window, *pair)
    for i in range(slides):
        window = kj.append(kj.slide(window), *stock[(i + 4) % 6])
    return window, [stock[(slides + i) % 6] for i in range(4)]


def assert_no_drift(slides):
    for mode in ("materialise", "in_place"):
        once, pairs = slid(mode, 1)
        assert_state(once, pairs)
        often, again = slid(mode, slides)
        assert_state(often, again)
        assert often.keys == once.keys  # six chunks take turns
        valid = np.asarray(once.state.valid)
        for name in ("rot", "free", "positions"):
            new, old = (np.asarray(getattr(window.state, name))[:, valid] for window in (often, once))
            assert (new == old).all()  # no error that the first slide had not


def test_slides_do_not_drift():
    assert_no_drift(301)


@pytest.mark.soak
def test_ten_thousand_slides_do_not_drift():
    assert_no_drift(10_003)


def live():
    """Arrays and bytes on the device."""
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


def streamed(vlm, frames, every, **options):
    """A stream with a question and a recall now and then; what was live every so often, and the session."""
    session = kj.Session(vlm, 128, memory_bytes=400_000, rank=4, **options)
    seen = []
    for number in range(frames):
        session.add(frame(number))
        if number % 10 == 9:
            session.ask(QUESTIONS[number // 10 % 2], max_new_tokens=2, keep=number % 20 == 9)
            session.recall(session.evicted[0])
        if number % every == every - 1:
            seen.append(
                (*live(), session.stats.evicted_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            )
    assert session.stats.seen == session.stats.encoded == frames
    assert session.stats.evicted_bytes <= 400_000 and session.stats.forgotten > 0
    return seen


def assert_level(seen, growth):
    arrays, nbytes, _, resident = zip(*seen, strict=True)
    assert max(arrays) - min(arrays) <= 40  # patched or not, a turn among them or not
    assert max(nbytes) <= 1.2 * min(nbytes)
    assert resident[-1] - resident[0] <= growth


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_stream_runs_at_fixed_memory(mode):
    class Seeing(Toy):
        def prepare(self, item):
            return super().prepare("".join(chr(int(pixel)) for pixel in item[0, ::6, 0]))

    assert_level(streamed(Seeing(), 200, 40, mode=mode)[1:], 32 * 2**20)


@pytest.mark.soak
def test_a_stream_of_two_thousand_frames_runs_at_fixed_memory(random_vlm):
    assert_level(streamed(random_vlm, 2_000, 250)[1:], 32 * 2**20)


def story(vlm, sizes, start):
    session = kj.Session(vlm, 128, rank=4, memory_bytes=10**7)
    keys = [session.add(frame(start + i, *size)) for i, size in enumerate(sizes)]
    answer = session.ask(QUESTIONS[start % 2], max_new_tokens=3)
    session.recall(keys[0])
    session.recall(session.evicted[-1], at=0)
    session.replace(session.keys[1], frame(start + 50, *sizes[0]))
    session.add(frame(start, *sizes[0]))
    kj.query(vlm, session.window, QUESTIONS[start % 2])
    return session, answer


def test_nothing_recompiles_over_a_session_of_mixed_sizes(random_vlm):
    story(random_vlm, [(2, 3), (4, 5), (3, 3), (4, 6), (2, 2), (1, 9)], 0)
    with compilations() as seen:  # other sizes of the same buckets, in another order of lengths
        story(random_vlm, [(1, 8), (3, 8), (2, 5), (5, 5), (1, 7), (3, 4)], 1)
    assert not seen


def test_a_restored_session_answers_identically(random_vlm, tmp_path):
    session, _ = story(random_vlm, [(2, 3), (4, 5), (3, 3), (4, 6), (2, 2), (1, 9)], 2)
    session.save(tmp_path / "s")
    again = kj.Session.restore(random_vlm, tmp_path / "s")
    logits = [kj.query(random_vlm, each.window, QUESTIONS[0]) for each in (session, again)]
    assert (logits[0] == logits[1]).all()
    answers = [each.ask(QUESTIONS[1], max_new_tokens=3) for each in (session, again)]
    assert answers[0].tokens == answers[1].tokens and answers[0].text == answers[1].text
    assert again.keys == session.keys and again.stats == session.stats
