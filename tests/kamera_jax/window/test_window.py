"""Windows: what every operation gives equals a window built afresh, and none touches the window it came from."""

import jax
import numpy as np
import pytest

import kamera_jax as kj

QUESTION = "what colour is the cell ?"


def pairs(chunks, patches):
    return list(zip(chunks, patches, strict=True))


def snapshot(window):
    return jax.tree.map(np.array, window.state), window.entries, window.keys


def unchanged(window, before):
    state, entries, keys = before
    assert window.entries == entries and window.keys == keys
    assert jax.tree.all(jax.tree.map(lambda old, new: bool((old == np.asarray(new)).all()), state, window.state))


def assert_same(given, wanted):
    """Equal to the bit where there are tokens; what lies in empty slots is nobody's."""
    places = [[(e.chunk.key, e.patch, e.base, e.slot) for e in window.entries] for window in (given, wanted)]
    assert places[0] == places[1]
    assert (given.capacity, given.spec) == (wanted.capacity, wanted.spec)
    assert (given.preamble.identity, given.preamble.slot) == (wanted.preamble.identity, wanted.preamble.slot)
    jax.tree.map(np.testing.assert_array_equal, given.preamble, wanted.preamble)
    valid = np.asarray(wanted.state.valid)
    assert (np.asarray(given.state.valid) == valid).all()
    for name in ("rot", "free", "positions"):
        new, old = (np.asarray(getattr(window.state, name))[:, valid] for window in (given, wanted))
        assert (new == old).all(), name


def test_empty_holds_the_preamble_alone(random_vlm, build, whole):
    window = build()
    length = int(random_vlm.preamble.length)
    assert (window.entries, window.keys, window.tokens) == ((), (), length)
    assert np.asarray(window.state.valid).tolist() == [i < length for i in range(128)]
    kv, _ = whole(random_vlm, random_vlm.preamble)
    np.testing.assert_allclose(np.asarray(window.state.free)[:, :length], kv.free, rtol=0, atol=1e-5)
    assert (np.asarray(window.state.positions)[:, :length] == np.arange(length)).all()
    assert window.next_slot == 16 and window.next_position == length


def test_append_places_chunks_one_after_another(random_vlm, chunks, patched):
    base = float(random_vlm.preamble.advance)
    tokens = int(random_vlm.preamble.length)
    valid = np.asarray(patched.state.valid)
    for i, (entry, chunk) in enumerate(zip(patched.entries, chunks, strict=True)):
        assert (entry.slot, entry.base) == (16 * (i + 1), base)
        there = slice(entry.slot, entry.slot + chunk.length)
        assert (
            np.asarray(patched.state.positions)[:, there] == np.asarray(chunk.positions)[:, : chunk.length] + base
        ).all()
        base = base + chunk.advance
        tokens = tokens + chunk.length
    assert patched.next_position == base and patched.tokens == valid.sum() == tokens
    assert patched.keys == tuple(chunk.key for chunk in chunks)


OPERATIONS = {
    "append": lambda w, a, p: kj.append(w, a, p),
    "reorder": lambda w, a, p: kj.reorder(w, [2, 0, 1]),
    "reorder-identity": lambda w, a, p: kj.reorder(w, [0, 1, 2]),
    "slide": lambda w, a, p: kj.slide(w),
    "slide-all": lambda w, a, p: kj.slide(w, drop=3),
    "recall": lambda w, a, p: kj.recall(w, a, p, at=1),
    "replace": lambda w, a, p: kj.replace(w, 1, a, p),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_their_window_as_it_is(patched, chunks, name):
    before = snapshot(patched)
    changed = OPERATIONS[name](patched, chunks[0], None)
    unchanged(patched, before)
    # What came out shares nothing that it could take with it.
    kj.append(changed, chunks[0], donate=True)
    assert changed.state.rot.is_deleted()
    unchanged(patched, before)


def test_query_and_generate_leave_their_window_as_it_is(random_vlm, patched):
    before = snapshot(patched)
    kj.query(random_vlm, patched, QUESTION)
    kj.generate(random_vlm, patched, QUESTION, max_new_tokens=2)
    unchanged(patched, before)


def test_donating_append_gives_the_same_window(build, chunks, patches):
    old = build((chunks[0], None))
    given = kj.append(old, chunks[1], patches[1], donate=True)
    assert_same(given, build((chunks[0], None), (chunks[1], patches[1])))
    assert old.state.rot.is_deleted()


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]])
def test_reorder_equals_a_window_built_in_that_order(patched, chunks, patches, build, order):
    assert_same(kj.reorder(patched, order), build(*(pairs(chunks, patches)[i] for i in order)))


def test_reordering_back_is_as_if_nothing_happened(patched, chunks, patches):
    assert_same(kj.reorder(kj.reorder(patched, [0, 2, 1]), [0, 2, 1]), patched)
    # But for the patch of what stood first meanwhile, until it is given again.
    back = kj.reorder(kj.reorder(patched, [2, 0, 1]), [1, 2, 0])
    assert [entry.patch for entry in back.entries] == [None, patches[1], None]
    assert_same(kj.replace(back, 2, chunks[2], patches[2]), patched)


@pytest.mark.parametrize("drop", [0, 1, 2, 3])
def test_slide_equals_a_window_of_the_survivors(random_vlm, patched, chunks, patches, build, drop):
    slid = kj.slide(patched, drop=drop)
    fresh = build(*pairs(chunks, patches)[drop:], as_it_stood=True)
    assert_same(slid, fresh)
    assert (kj.query(random_vlm, slid, QUESTION) == kj.query(random_vlm, fresh, QUESTION)).all()


@pytest.mark.parametrize("at", [None, 0, 1, 2])
def test_recall_puts_the_chunk_back(patched, chunks, patches, build, at):
    slid = kj.slide(patched)
    wanted = pairs(chunks, patches)[1:]
    wanted.insert(2 if at is None else at, (chunks[0], patches[0]))
    assert_same(kj.recall(slid, chunks[0], patches[0], at=at), build(*wanted, as_it_stood=True))


def test_evicted_and_recalled_at_its_place_nothing_has_changed(patched, chunks, patches):
    assert_same(kj.recall(kj.slide(patched), chunks[0], patches[0], at=0), patched)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_replace_puts_another_chunk_in_place(patched, chunks, patches, build, index):
    wanted = pairs(chunks, patches)
    wanted[index] = (chunks[1], None)
    assert_same(kj.replace(patched, index, chunks[1]), build(*wanted))


def test_two_hundred_slides_drift_no_more_than_one(patched, chunks, patches, build):
    window = patched
    stock = pairs(chunks, patches)
    for i in range(200):
        window = kj.recall(kj.slide(window), *stock[i % 3])
    assert_same(window, build(*(stock[i] for i in (2, 0, 1)), as_it_stood=True))


def test_a_chunk_may_stand_twice(random_vlm, chunks, build, whole):
    a, b = chunks[:2]
    window = build((a, None), (b, None), (a, None))
    assert window.keys == (a.key, b.key, a.key)
    first, _, second = window.entries
    rows = [slice(entry.slot, entry.slot + a.length) for entry in (first, second)]
    free = np.asarray(window.state.free)
    rot = np.asarray(window.state.rot)
    assert (free[:, rows[0]] == free[:, rows[1]]).all() and (rot[:, rows[0]] != rot[:, rows[1]]).any()
    patch = kj.form_patch(random_vlm, a, antecedents=[a, b], rank=1000)
    window = build((a, None), (b, kj.form_patch(random_vlm, b, antecedents=[a], rank=1000)), (a, patch))
    tail = random_vlm.tail(QUESTION)
    _, logits = whole(random_vlm, random_vlm.preamble, a.source, b.source, a.source, tail)
    given = np.asarray(kj.query(random_vlm, window, QUESTION))
    assert np.linalg.norm(given - logits) <= 1e-5 * np.linalg.norm(logits)
    assert_same(kj.slide(kj.reorder(window, [0, 2, 1]), drop=2), build((b, window.entries[1].patch), as_it_stood=True))


def test_capacity_does_not_change_the_answer(random_vlm, patched, chunks, patches, build):
    small = build(*pairs(chunks, patches), capacity=96)
    given, wanted = (np.asarray(kj.query(random_vlm, window, QUESTION)) for window in (small, patched))
    assert np.linalg.norm(given - wanted) <= 1e-5 * np.linalg.norm(wanted)
