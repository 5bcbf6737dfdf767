"""A model's length: nothing is made to stand, or attend, beyond it."""

from dataclasses import asdict, replace

import pytest

import kamera_jax as kj
from kamera_jax.errors import ModelLengthError, WindowFullError
from kamera_jax.identity import chunk_key, lineage
from kamera_jax.kv import check_length
from kamera_jax.record import join_chunk, spec_of, split_chunk
from models import load
from tests.kamera_jax.toy import Toy

LENGTH = 40
PREAMBLE = len("you toy")
ROOM = LENGTH - PREAMBLE


def toy(length=LENGTH):
    vlm = Toy()
    vlm.spec = replace(vlm.spec, max_positions=length)
    return vlm


@pytest.fixture(params=["materialise", "in_place"])
def window(request):
    return kj.Window.empty(toy(), 512, mode=request.param)


def chunk(window, letters):
    return kj.encode(Toy(), "a" * letters) if window is None else kj.encode(toy(), "a" * letters)


def test_a_chunk_may_reach_the_last_position_and_no_further(window):
    full = kj.append(window, chunk(window, ROOM))
    assert full.next_position == LENGTH
    for letters in (ROOM + 1, 300):
        with pytest.raises(ModelLengthError, match="model's length of 40 positions"):
            kj.append(window, chunk(None, letters))
    with pytest.raises(ModelLengthError, match="1 positions from 40 on"):
        kj.append(full, chunk(window, 1))
    assert issubclass(ModelLengthError, WindowFullError) and issubclass(ModelLengthError, ValueError)


def test_every_way_into_a_window_is_held_to_it(window):
    first, second, long = (chunk(window, letters) for letters in (10, 12, 20))
    two = kj.append(kj.append(window, first), second)
    for way in (
        lambda: kj.append(two, long),
        lambda: kj.recall(two, long, None),
        lambda: kj.recall(two, long, None, at=0),
        lambda: kj.replace(two, 0, chunk(window, 22)),
        lambda: kj.prefill(toy(), [first, second, long]),
        lambda: kj.form_patch(toy(), long, antecedents=[first, second], rank=2),
        lambda: kj.form_patches(toy(), [first, second, long]),
    ):
        with pytest.raises(ModelLengthError):
            way()
    assert two.keys == (first.key, second.key)
    assert kj.slide(two).next_position == PREAMBLE + 12
    assert kj.append(kj.slide(two), long).next_position == PREAMBLE + 32
    assert kj.reorder(two, [1, 0]).keys == (second.key, first.key)


def test_a_question_and_its_answer_are_held_to_it(window):
    vlm = toy()
    held = kj.append(window, chunk(window, 20))  # leaves 13 positions
    kj.query(vlm, held, "a" * 12)  # and an exclamation mark
    with pytest.raises(ModelLengthError, match="14 positions from 27 on"):
        kj.query(vlm, held, "a" * 13)
    assert len(kj.generate(vlm, held, "aaaa", max_new_tokens=8, keep=False).tokens) == 8
    with pytest.raises(ModelLengthError):
        kj.generate(vlm, held, "aaaa", max_new_tokens=9, keep=False)
    kept = kj.generate(vlm, held, "aaaa", max_new_tokens=6).window  # two tokens close the turn
    assert kept.next_position == LENGTH
    with pytest.raises(ModelLengthError):
        kj.generate(vlm, held, "aaaa", max_new_tokens=7)


def test_positions_count_and_not_tokens(window):
    """Under M-RoPE an image takes fewer positions than tokens."""
    image = replace(chunk(window, ROOM), advance=5.0)
    two = kj.append(kj.append(window, image), image)
    assert two.next_position == PREAMBLE + 10
    with pytest.raises(ModelLengthError):
        kj.append(two, replace(chunk(window, 3), advance=ROOM - 9.0))


def test_what_is_encoded_is_held_to_it():
    assert kj.encode(toy(), "a" * ROOM).length == ROOM
    assert kj.encode(toy(), "a" * LENGTH, preamble=None).length == LENGTH
    with pytest.raises(ModelLengthError):
        kj.encode(toy(), "a" * (ROOM + 1))
    with pytest.raises(ModelLengthError):
        kj.encode(toy(), "a" * (LENGTH + 1), preamble=None)
    with pytest.raises(ModelLengthError):
        kj.Window.empty(toy(PREAMBLE - 1), 512)


def test_a_model_that_says_none_is_not_limited():
    vlm = Toy()
    assert vlm.spec.max_positions is None
    assert kj.append(kj.Window.empty(vlm, 4096), kj.encode(vlm, "a" * 3000)).next_position == PREAMBLE + 3000
    check_length(vlm.spec, 1e9, 1e9)


def test_it_is_no_part_of_a_key():
    assert chunk_key("x", Toy().spec, lineage(None)) == chunk_key("x", toy().spec, lineage(None))
    assert kj.encode(Toy(), "abc").key == kj.encode(toy(), "abc").key


def test_it_is_recorded_and_rows_of_before_read():
    made = kj.encode(toy(), "abc")
    about, arrays = split_chunk(made)
    assert join_chunk(about, arrays).spec == made.spec and made.spec.max_positions == LENGTH
    old = {name: value for name, value in asdict(made.spec).items() if name != "max_positions"}
    assert spec_of(old) == replace(made.spec, max_positions=None)
    window = kj.Window.empty(toy(), 64)
    kept = kj.append(window, join_chunk({**about, "spec": old}, arrays))
    assert kept.spec.max_positions == LENGTH


def test_a_session_makes_room_for_positions():
    session = kj.Session(toy(), 512)
    first = session.add("a" * 15)
    second = session.add("b" * 15)
    third = session.add("c" * 10)
    assert session.window.keys == (second, third)
    session.ask("d" * 6, max_new_tokens=4)
    assert first not in session.window.keys and session.window.next_position <= LENGTH
    session.recall(first)
    assert session.window.keys[-1] == first and session.window.next_position <= LENGTH
    with pytest.raises(WindowFullError):
        session.add("e" * (ROOM + 1))


@pytest.mark.parametrize("kind", ["gqa", "mla", "mha"])
def test_the_embedded_models_say_theirs(kind):
    assert load(f"kamera-tiny-{kind}").spec.max_positions == 8192
