"""Bad input: named, and nothing half-written stays."""

from dataclasses import replace
from datetime import date

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import errors
from kamera_jax.errors import (
    MissingInputsError,
    ModelMismatchError,
    PatchMismatchError,
    PreambleMismatchError,
    WindowFullError,
)
from models import load

QUESTION = "what colour is the cell ?"
ERRORS = [each for each in vars(errors).values() if isinstance(each, type)]


@pytest.fixture
def window(build, chunks, patches):
    """Two chunks and a patch, checked to be as they were when the test is over."""
    window = build((chunks[0], None), (chunks[1], patches[1]))
    before = jax.tree.map(np.array, window.state)
    entries = window.entries
    yield window
    assert window.entries == entries
    assert jax.tree.all(jax.tree.map(lambda old, new: bool((old == np.asarray(new)).all()), before, window.state))


@pytest.fixture(scope="module")
def elsewhere(folder):
    """The same weights behind another system text."""
    return load(folder, system="you read a cell")


@pytest.fixture
def ways(window):
    """Every way of putting a chunk and a patch into a window."""
    return (
        lambda chunk, patch=None: kj.append(window, chunk, patch),
        lambda chunk, patch=None: kj.recall(window, chunk, patch),
        lambda chunk, patch=None: kj.recall(window, chunk, patch, at=0),
        lambda chunk, patch=None: kj.replace(window, 1, chunk, patch),
    )


def test_every_named_error_is_a_value_error():
    assert len(ERRORS) > 15 and all(issubclass(error, ValueError) for error in ERRORS)


def test_a_chunk_of_another_model(random_vlm, random_vlm_bf16, chunks, window, ways):
    foreign = kj.encode(random_vlm_bf16, "red and blue")
    assert foreign.model != random_vlm.fingerprint
    for put in ways:
        with pytest.raises(ModelMismatchError, match=f"{foreign.model[:12]}.*{random_vlm.fingerprint[:12]}"):
            put(foreign)
    with pytest.raises(ModelMismatchError, match=r"differ in dtype \(bfloat16, not float32\)"):
        kj.append(window, foreign)
    with pytest.raises(ModelMismatchError, match="encode it with this model"):
        kj.form_patch(random_vlm, foreign, antecedents=[])
    with pytest.raises(ModelMismatchError, match="encode it with this model"):
        kj.form_patch(random_vlm, chunks[0], antecedents=[foreign])
    with pytest.raises(ModelMismatchError, match="encode it with this model"):
        kj.prefill(random_vlm, [foreign])
    with pytest.raises(ModelMismatchError, match="the window belongs to model"):
        kj.form_patch(random_vlm_bf16, foreign, context=window)
    with pytest.raises(ModelMismatchError, match="the window belongs to model"):
        kj.query(random_vlm_bf16, window, QUESTION)


def test_a_patch_of_another_chunk(chunks, patches, ways):
    for put in ways:
        with pytest.raises(PatchMismatchError, match=f"{chunks[1].key[:12]}, not to {chunks[2].key[:12]}"):
            put(chunks[2], patches[1])


def test_a_patch_of_another_model(chunks, patches, ways):
    foreign = replace(patches[1], model="0" * 64)
    for put in ways:
        with pytest.raises(ModelMismatchError, match="the patch was formed by model 000000000000"):
            put(chunks[1], foreign)


def test_a_chunk_of_another_preamble(random_vlm, elsewhere, chunks, window, ways):
    foreign = kj.encode(elsewhere, "red and blue")
    assert foreign.model == random_vlm.fingerprint
    for put in ways:
        with pytest.raises(PreambleMismatchError, match="encode it with this window's preamble, or with preamble=None"):
            put(foreign)
    with pytest.raises(PreambleMismatchError):
        kj.form_patch(random_vlm, foreign, context=window)
    with pytest.raises(PreambleMismatchError):
        kj.form_patch(random_vlm, foreign, antecedents=chunks[:1])
    # Encoded after no preamble it goes anywhere.
    assert kj.append(window, kj.encode(elsewhere, "red and blue", preamble=None)).entries[2].chunk.preamble is None


def test_a_window_too_small_for_the_preamble(random_vlm):
    length = int(random_vlm.preamble.length)
    with pytest.raises(WindowFullError, match=f"{length - 1} slots cannot hold the preamble of {length} tokens"):
        kj.Window.empty(random_vlm, length - 1)
    assert kj.Window.empty(random_vlm, length).tokens == length


def test_a_window_too_small_for_the_chunk(random_vlm, chunks, items, build):
    a, b = chunks[:2]
    exact = build((a, None), (b, None), capacity=32 + b.length)
    assert int(exact.state.valid.sum()) == exact.tokens
    small = build((a, None), capacity=32 + a.length - 1)
    before = jax.tree.map(np.array, small.state)
    for put in (
        lambda: kj.append(small, b),
        lambda: kj.append(small, b, donate=True),
        lambda: kj.recall(small, b, None, at=0),
        lambda: kj.replace(small, 0, replace(b, length=24)),
    ):
        with pytest.raises(WindowFullError, match="do(es)? not fit|slide it"):
            put()
    assert jax.tree.all(jax.tree.map(lambda old, new: bool((old == np.asarray(new)).all()), before, small.state))
    with pytest.raises(WindowFullError, match="14 tokens do not fit"):
        kj.prefill(random_vlm, items[:2], capacity=32 + b.length - 1)


def test_a_window_too_small_for_question_and_answer(random_vlm, chunks, build):
    question = int(random_vlm.tail(QUESTION).length)
    closed = question + len(random_vlm.closing)
    window = build((chunks[0], None), capacity=32 + closed + 2)
    before = jax.tree.map(np.array, window.state)
    with pytest.raises(WindowFullError, match=f"{closed + 3} tokens do not fit"):
        kj.generate(random_vlm, window, QUESTION, max_new_tokens=3)
    assert jax.tree.all(jax.tree.map(lambda old, new: bool((old == np.asarray(new)).all()), before, window.state))
    assert kj.generate(random_vlm, window, QUESTION, max_new_tokens=2).window.entries[-1].slot == 32
    # One that is not kept need not be closed.
    with pytest.raises(WindowFullError, match=f"{question + 9} tokens do not fit"):
        kj.generate(random_vlm, window, QUESTION, max_new_tokens=9, keep=False)
    assert kj.generate(random_vlm, window, QUESTION, max_new_tokens=3, keep=False).window is window


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(random_vlm, window, question):
    for ask in (kj.query, kj.generate):
        with pytest.raises(ValueError, match="the question is empty"):
            ask(random_vlm, window, question)


@pytest.mark.parametrize(
    "item, message",
    [
        ("", "the text is empty"),
        (np.zeros((0, 28, 3), np.uint8), "uint8.0, 28, 3.; expected at least one pixel"),
        (np.zeros((28, 28, 3), np.float32), "float32.28, 28, 3.; expected uint8"),
        (np.zeros((28, 28), np.uint8), "expected uint8.H, W, 3."),
        (date(2020, 1, 1), "the item is of type date; this model reads text .str"),
        (None, "the item is of type NoneType; this model reads text"),
    ],
)
def test_items_that_are_no_chunk(random_vlm, item, message):
    for read in (kj.encode, lambda vlm, item: kj.prefill(vlm, [item])):
        with pytest.raises(ValueError, match=message):
            read(random_vlm, item)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give either antecedents="),
        ({"antecedents": [], "context": True}, "give either antecedents="),
        ({"antecedents": [], "rank": 4, "energy": 0.5}, "one of rank, energy and max_bytes; got rank=4, energy=0.5"),
        ({"antecedents": [], "energy": 0.5, "max_bytes": 9}, "one of rank, energy and max_bytes"),
        ({"antecedents": [], "rank": 0}, "rank of at least 1; got 0"),
        ({"antecedents": [], "energy": 1.5}, "got 1.5"),
        ({"antecedents": [], "max_bytes": 9}, "max_bytes=9 is below one component"),
    ],
)
def test_form_patch_arguments(random_vlm, chunks, window, options, message):
    if "context" in options:
        options = {**options, "context": window}
    with pytest.raises(ValueError, match=message):
        kj.form_patch(random_vlm, chunks[2], **options)


def test_dropped_inputs(random_vlm, chunks, patches, window):
    bare = chunks[2].without_source()
    assert bare.source is None and bare.key == chunks[2].key
    for run in (
        lambda: kj.form_patch(random_vlm, bare, context=window),
        lambda: kj.form_patch(random_vlm, chunks[1], antecedents=[bare]),
        lambda: kj.prefill(random_vlm, [chunks[0], bare]),
    ):
        with pytest.raises(MissingInputsError, match=f"{bare.key[:12]}.*encode it anew"):
            run()
    # To be reused it needs none.
    assert kj.append(window, bare, patches[2]).keys[2] == bare.key


@pytest.mark.parametrize("order", [[0], [0, 0], [0, 1, 2], [1, 2], [-1, 0], []])
def test_orders_that_are_no_permutation(window, order):
    with pytest.raises(ValueError, match="permutation of 0..1; got"):
        kj.reorder(window, order)


@pytest.mark.parametrize("drop", [-1, 3])
def test_too_many_to_drop(window, drop):
    with pytest.raises(ValueError, match=f"cannot drop {drop} of 2 chunks"):
        kj.slide(window, drop)


@pytest.mark.parametrize("at", [-1, 3])
def test_no_such_place(window, chunks, at):
    with pytest.raises(ValueError, match=f"at must be in 0..2, an entry to stand before or the end; got {at}"):
        kj.recall(window, chunks[2], None, at=at)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_such_entry(window, chunks, index):
    with pytest.raises(ValueError, match=f"entries 0..1; got {index}"):
        kj.replace(window, index, chunks[2])
