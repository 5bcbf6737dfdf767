"""Windows that keep their chunks in place give the answers of materialised ones, and move no KV."""

from copy import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from kamera_jax.errors import ModelMismatchError, PatchMismatchError, WindowFullError
from kamera_jax.forward import run
from models import load
from tests.kamera_jax.test_compiles import compilations
from tests.models import tiny_ports

CAPACITY = 192
QUESTION = "what colour is the cell ?"
TEXTS = ("a red star. a blue moon.", "the page is red and the cell is blue", "the page " * 12 + "is blue")
"""The last is of another bucket."""


def relative(given, wanted):
    given = np.asarray(given, np.float64)
    wanted = np.asarray(wanted, np.float64)
    return np.linalg.norm(given - wanted) / np.linalg.norm(wanted)


def big(window):
    """Where the arrays of KV and patches lie in memory, by pool."""
    return [
        {name: array.unsafe_buffer_pointer() for name, array in (pool.layers | {"at": pool.positions}).items()}
        for pool in window.state.pools
    ]


@pytest.fixture(scope="module", params=BACKBONES)
def vlm(request, tmp_path_factory):
    return random_model(request.param, tmp_path_factory.mktemp("hub"))


def random_model(attention, folder):
    """A tiny model of an attention with random weights."""
    return load(tiny_ports.write(folder / attention, attention))


@pytest.fixture(scope="module")
def pairs(vlm):
    """Chunks of two buckets, blind and patched, one of them twice."""
    a, b, c = (kj.encode(vlm, text) for text in TEXTS)
    assert len({chunk.kv.rot.shape for chunk in (a, b, c)}) == 2
    after_a = filled(vlm, [(a, None)], "materialise")
    patches = [kj.form_patch(vlm, chunk, context=after_a, rank=rank) for chunk, rank in ((b, 6), (c, 20))]
    return (a, None), (b, patches[0]), (c, patches[1]), (b, None)


def filled(vlm, pairs, mode, capacity=CAPACITY):
    window = kj.Window.empty(vlm, capacity, mode=mode)
    for chunk, patch in pairs:
        window = kj.append(window, chunk, patch)
    return window


@pytest.fixture(scope="module")
def both(vlm, pairs):
    return filled(vlm, pairs, "materialise"), filled(vlm, pairs, "in_place")


OPERATIONS = {
    "append": lambda w, pairs: kj.append(w, *pairs[0]),
    "reorder": lambda w, pairs: kj.reorder(w, [2, 0, 3, 1]),
    "slide": lambda w, pairs: kj.slide(w, 2),
    "slide-all": lambda w, pairs: kj.slide(w, 4),
    "recall": lambda w, pairs: kj.recall(kj.slide(w), *pairs[0], at=1),
    "replace": lambda w, pairs: kj.replace(w, 1, *pairs[0]),
    "unpatched": lambda w, pairs: kj.replace(w, 2, pairs[2][0]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_answers_as_a_materialised_window(vlm, pairs, both, name):
    written, lying = (OPERATIONS[name](window, pairs) for window in both)
    assert lying.entries == written.entries and lying.mode == "in_place"
    assert (lying.next_slot, lying.next_position, lying.tokens) == (
        written.next_slot,
        written.next_position,
        written.tokens,
    )
    wanted = kj.query(vlm, written, QUESTION)
    assert relative(kj.query(vlm, lying, QUESTION), wanted) <= 2e-5
    # Nor did it touch the windows it came from.
    before, after = (kj.query(vlm, window, QUESTION) for window in both)
    assert relative(after, before) <= 2e-5
    if name != "slide-all":
        assert relative(before, wanted) > 1e-3


def test_generate_gives_the_same_turn(vlm, both):
    written, lying = (kj.generate(vlm, window, QUESTION, max_new_tokens=5) for window in both)
    assert (lying.tokens, lying.text) == (written.tokens, written.text)
    turns = [answer.window.entries[-1] for answer in (written, lying)]
    assert [(turn.base, turn.slot, turn.chunk.key) for turn in turns[:1]] == [
        (turn.base, turn.slot, turn.chunk.key) for turn in turns[1:]
    ]
    for name in ("rot", "free"):
        assert relative(getattr(turns[1].chunk.kv, name), getattr(turns[0].chunk.kv, name)) <= 2e-5
    # The turn is a chunk like any other.
    for change in (lambda w: w, lambda w: kj.reorder(w, [4, 0, 1, 2, 3]), lambda w: kj.slide(w, 3)):
        logits = [kj.query(vlm, change(answer.window), "which page is it ?") for answer in (written, lying)]
        assert relative(logits[1], logits[0]) <= 2e-5


def test_moving_chunks_moves_no_kv(vlm, pairs, both):
    window = both[1]
    (_, b, c, _) = pairs
    slid = kj.slide(window, 2)
    others = (
        kj.reorder(window, [3, 2, 1, 0]),
        slid,
        kj.recall(slid, *b),
        kj.recall(slid, *b, at=1),
        kj.recall(slid, *pairs[0], at=0),
        kj.replace(slid, 1, *b),
        kj.replace(slid, 0, *pairs[0]),
        kj.append(kj.append(kj.slide(window, 4), b[0]), *c),
        kj.append(kj.slide(window), *pairs[0], donate=True),
    )
    for other in others:
        assert big(other) == big(window)
    for pool, shared in zip(window.state.pools, others[0].state.pools, strict=True):
        assert all(shared.layers[name] is array for name, array in pool.layers.items())


def test_a_chunk_that_stands_twice_lies_twice(vlm, pairs):
    a = pairs[0]
    window = filled(vlm, [a, a], "in_place")
    assert np.asarray(window.state.pools[0].lengths).tolist() == [a[0].length, a[0].length, 0, 0]
    once = kj.slide(window)
    assert np.asarray(once.state.pools[0].lengths).tolist() == [0, a[0].length, 0, 0]
    assert big(once) == big(window)


@pytest.fixture(scope="module")
def stock(random_vlm):
    """Many chunks of one bucket."""
    return [kj.encode(random_vlm, text) for text in ("red", "blue page", "the cell is red", "page", "cell", "the page")]


def held(window):
    return sum(len(index.places) for index in window.indices)


def test_a_pool_doubles_when_the_window_needs_it(random_vlm, stock):
    pairs = [(chunk, None) for chunk in stock]
    # One token is a bucket of its own.
    pairs = [pair for pair in pairs if pair[0].kv.rot.shape[1] == 16] + [(stock[1], None), (stock[2], None)]
    places = []
    window = kj.Window.empty(random_vlm, CAPACITY, mode="in_place")
    for pair in pairs:
        window = kj.append(window, *pair, donate=True)
        places.append(window.state.pools[0].lengths.shape[0])
    assert places == [4, 4, 4, 4, 8] and window.state.pools[0].u is None
    wanted = kj.query(random_vlm, filled(random_vlm, pairs, "materialise"), QUESTION)
    assert relative(kj.query(random_vlm, window, QUESTION), wanted) <= 2e-5


def test_a_stream_of_chunks_stays_in_a_pool_of_its_size(random_vlm):
    """What was written longest ago makes room, and is written again when it comes back."""
    texts = [f"{first} {second} page" for first in ("red", "blue", "the") for second in ("cell", "star", "moon")]
    first, *chunks = (kj.encode(random_vlm, text) for text in texts)
    window = kj.append(kj.Window.empty(random_vlm, CAPACITY, mode="in_place"), first)
    for chunk in chunks:
        window = kj.append(window, chunk) if len(window.entries) < 3 else kj.append(kj.slide(window), chunk)
    assert [pool.lengths.shape[0] for pool in window.state.pools] == [4] and held(window) == 4
    again = kj.recall(window, chunks[-4], None, at=0)
    pointers = big(window)
    assert big(again) == pointers
    lost = kj.recall(window, first, None, at=1)
    assert big(lost) != pointers and big(window) == pointers
    for given in (again, lost, window):
        wanted = filled(random_vlm, [(entry.chunk, None) for entry in given.entries], "materialise")
        assert relative(kj.query(random_vlm, given, QUESTION), kj.query(random_vlm, wanted, QUESTION)) <= 2e-5


def test_a_changed_chunk_has_no_key_and_is_another_chunk(random_vlm, stock):
    chunk = stock[2]
    louder = replace(chunk, kv=jax.tree.map(lambda leaf: 2 * leaf, chunk.kv))
    window = filled(random_vlm, [(chunk, None)], "in_place")
    given = kj.query(random_vlm, kj.replace(window, 0, louder), QUESTION)
    wanted = kj.query(random_vlm, filled(random_vlm, [(louder, None)], "materialise"), QUESTION)
    assert relative(given, wanted) <= 2e-5
    assert big(kj.replace(window, 0, chunk.without_source())) == big(window)


def test_what_was_computed_twice_lies_once(random_vlm, stock):
    """Places are known by keys: a chunk that comes from elsewhere, of the same key, is not written again."""
    window = kj.slide(filled(random_vlm, [(stock[1], None), (stock[2], None)], "in_place"))
    again = kj.encode(random_vlm, "blue page")
    assert again.kv is not stock[1].kv and big(kj.append(window, again)) == big(window)
    assert big(kj.append(window, stock[3])) != big(window)


def test_donating_takes_the_pool(random_vlm, stock):
    old = filled(random_vlm, [(stock[1], None)], "in_place")
    given = kj.append(old, stock[2], donate=True)
    assert old.state.pools[0].rot.is_deleted() and not old.state.rot.is_deleted()
    wanted = filled(random_vlm, [(stock[1], None), (stock[2], None)], "materialise")
    assert relative(kj.query(random_vlm, given, QUESTION), kj.query(random_vlm, wanted, QUESTION)) <= 2e-5


def test_a_patch_is_formed_on_an_in_place_window(vlm, pairs, both):
    chunk = kj.encode(vlm, "which star is it")
    written, lying = (kj.form_patch(vlm, chunk, context=window, rank=4) for window in both)
    assert lying.antecedents == written.antecedents
    np.testing.assert_array_equal(lying.mass, written.mass)
    np.testing.assert_array_equal(lying.factors.v, written.factors.v)


def test_bf16_answers_to_its_rounding(random_vlm, random_vlm_bf16):
    wide = filled(random_vlm, [(kj.encode(random_vlm, text), None) for text in TEXTS[:2]], "materialise")
    pairs = [(kj.encode(random_vlm_bf16, text), None) for text in TEXTS[:2]]
    exact = kj.query(random_vlm, wide, QUESTION)
    errors = [
        relative(kj.query(random_vlm_bf16, filled(random_vlm_bf16, pairs, mode), QUESTION), exact)
        for mode in ("materialise", "in_place")
    ]
    assert errors[1] <= 1.5 * errors[0]


def test_nothing_recompiles_after_warm_up(random_vlm):
    def story(items, question):
        a, b, c = (kj.encode(random_vlm, item) for item in items)
        window = kj.append(kj.append(kj.Window.empty(random_vlm, 128, mode="in_place"), c), a)
        window = kj.append(window, b, kj.form_patch(random_vlm, b, context=window, rank=4))
        kj.query(random_vlm, window, question)
        window = kj.recall(kj.reorder(kj.slide(window), [1, 0]), c, None, at=1)
        window = kj.append(kj.replace(window, 0, a), b, donate=True)
        answer = kj.generate(random_vlm, kj.slide(window, 2), question, max_new_tokens=len(question) % 3 + 2)
        kj.query(random_vlm, kj.slide(answer.window), question)

    story([TEXTS[0], "red and blue", TEXTS[2]], "what colour is it ?")
    with compilations() as seen:  # other texts of the same buckets
        story(["a red moon", "the page on the left is blue", "red star " * 11], "which page is blue or red ?")
    assert not seen


def test_the_same_things_do_not_fit(random_vlm, chunks, patches):
    a, b = chunks[:2]
    window = filled(random_vlm, [(a, None)], "in_place", capacity=32 + a.length - 1)
    for put in (
        lambda: kj.append(window, b),
        lambda: kj.append(window, b, donate=True),
        lambda: kj.recall(window, b, None, at=0),
        lambda: kj.replace(window, 0, replace(b, length=24)),
        lambda: kj.generate(random_vlm, window, QUESTION, max_new_tokens=CAPACITY),
    ):
        with pytest.raises(WindowFullError, match="do not fit"):
            put()
    with pytest.raises(WindowFullError, match="cannot hold the preamble"):
        kj.Window.empty(random_vlm, 1, mode="in_place")
    with pytest.raises(ModelMismatchError, match="encode it with this window's model"):
        kj.append(window, replace(a, model="0" * 64))
    with pytest.raises(PatchMismatchError, match="belongs to chunk"):
        kj.replace(window, 0, a, patches[1])
    assert window.keys == (a.key,)
    kj.query(random_vlm, window, QUESTION)


def test_what_cannot_be_is_refused(random_vlm, chunks, monkeypatch):
    # As in production, where no annotation is checked.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="mode must be one of .*; got 'inplace'"):
        kj.Window.empty(random_vlm, CAPACITY, mode="inplace")
    plain = copy(random_vlm)
    plain.attends_in_place = False
    with pytest.raises(ValueError, match='does not say attends_in_place = True.*use mode="materialise"'):
        kj.Window.empty(plain, CAPACITY, mode="in_place")
    window = filled(random_vlm, [(chunks[0], None)], "in_place")
    tail = random_vlm.tail(QUESTION)
    with pytest.raises(ValueError, match='attention_mass is not collected .* mode="materialise"'):
        run(
            random_vlm.params,
            tail,
            window.state,
            jnp.arange(1),
            forward=random_vlm.forward,
            collect=("attention_mass",),
        )
