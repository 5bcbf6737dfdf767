"""What is placed first stands without a patch that was formed behind others; what came to be first keeps it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import PatchMismatchError
from kamera_jax.guard.planning import Append, Evict, Recall, Reorder, Replace, execute, plan
from kamera_jax.window.changes import changed
from tests.kamera_jax.window.test_window import assert_same

QUESTION = "which cell is red ?"
MODES = ("materialise", "in_place")


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def patch(random_vlm, texts):
    """Of the second text, behind the first."""
    return kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], rank=1000)


@pytest.fixture
def window(build, texts, patch, mode):
    """Two texts, the second with its patch."""
    return build((texts[0], None), (texts[1], patch), mode=mode)


def alike(vlm, given, wanted):
    """Windows of the same entries that answer alike: to the bit; in place, where sums have another order, nearly."""
    assert given.lineage == wanted.lineage != ""
    assert [(e.identity, e.base, e.slot) for e in given.entries] == [
        (e.identity, e.base, e.slot) for e in wanted.entries
    ]
    if given.mode == "materialise":
        assert_same(given, wanted)
    logits, expected = (np.asarray(kj.query(vlm, each, QUESTION)) for each in (given, wanted))
    assert np.linalg.norm(logits - expected) <= (0 if given.mode == "materialise" else 2e-5) * np.linalg.norm(expected)


def test_appended_to_an_empty_window(random_vlm, build, texts, patch, mode):
    given = build((texts[1], patch), (texts[0], None), mode=mode)
    assert given.entries[0].patch is None
    alike(random_vlm, given, build((texts[1], None), (texts[0], None), mode=mode))


def test_brought_to_the_front_by_another_order(random_vlm, build, texts, window, mode):
    given = kj.reorder(window, [1, 0])
    alike(random_vlm, given, build((texts[1], None), (texts[0], None), mode=mode))
    assert [entry.patch for entry in kj.reorder(given, [1, 0]).entries] == [None, None]


def test_recalled_to_the_front(random_vlm, build, texts, patch, mode):
    window = build((texts[0], None), (texts[2], None), mode=mode)
    given = kj.recall(window, texts[1], patch, at=0)
    alike(random_vlm, given, build((texts[1], None), (texts[0], None), (texts[2], None), mode=mode))
    empty = build(mode=mode)
    alike(random_vlm, kj.recall(empty, texts[1], patch), build((texts[1], None), mode=mode))
    behind = kj.recall(window, texts[1], patch, at=1)
    assert behind.entries[1].patch is patch


def test_put_in_place_of_the_first(random_vlm, build, texts, patch, mode):
    window = build((texts[0], None), (texts[2], None), mode=mode)
    given = kj.replace(window, 0, texts[1], patch)
    alike(random_vlm, given, build((texts[1], None), (texts[2], None), mode=mode))
    assert kj.replace(window, 1, texts[1], patch).entries[1].patch is patch


def test_it_then_answers_as_full_prefill(random_vlm, window, texts, patch):
    """The patch, formed elsewhere, would make it worse than none."""

    def kl(given):
        full = kj.query(random_vlm, kj.prefill(random_vlm, [texts[1]], capacity=128), QUESTION)
        p, q = (np.float64(each) for each in (full, kj.query(random_vlm, given, QUESTION)))
        p, q = (each - np.log(np.exp(each).sum()) for each in (p, q))
        return float((np.exp(p) * (p - q)).sum())

    assert kl(changed(kj.reorder(window, [1, 0]), Evict((1,)))) <= 1e-9
    assert kl(kj.append(kj.slide(window, drop=2), texts[1], patch)) <= 1e-9
    assert kl(kj.slide(window)) > 1e-6  # what stays is another thing: it has read what left


def test_what_comes_to_be_first_keeps_its_patch(random_vlm, build, texts, window, patch, mode):
    """It stands as in the history reference, whatever comes behind it, until it is placed anew."""
    stood = build((texts[1], patch), mode=mode, as_it_stood=True)
    assert stood.entries[0].patch is patch
    for slid in (kj.slide(window), changed(window, Evict((0,)))):
        alike(random_vlm, slid, stood)
    longer = kj.append(stood, texts[2])
    for same in (
        kj.reorder(longer, [0, 1]),
        kj.reorder(kj.append(longer, texts[3]), [0, 2, 1]),
        kj.replace(longer, 1, texts[3]),
    ):
        assert same.entries[0].patch is patch
    pushed = kj.recall(longer, texts[0], None, at=0)
    assert [entry.patch for entry in pushed.entries] == [None, patch, None]
    assert kj.reorder(pushed, [1, 0, 2]).entries[0].patch is None
    # In one edit of several as in one after another.
    alike(
        random_vlm,
        changed(window, [Evict((0,)), Recall(texts[0], None, 0)]),
        kj.recall(kj.slide(window), texts[0], None, at=0),
    )
    back = changed(window, [Reorder((1, 0)), Reorder((1, 0))])
    alike(random_vlm, back, kj.reorder(kj.reorder(window, [1, 0]), [1, 0]))


@pytest.mark.parametrize("keyless", [False, True])
def test_a_patch_of_which_nothing_is_known_is_left(random_vlm, build, texts, patch, mode, keyless):
    """As one that was formed behind no chunk: it has read nothing elsewhere."""
    empty = build(mode=mode)
    if keyless:  # its names do not survive a transformation
        given = jax.jit(lambda window, chunk, patch: kj.append(window, chunk, patch))(empty, texts[1], patch)
        bare = jax.tree.map(lambda leaf: leaf, patch)
        assert bare.antecedents == () and kj.append(empty, texts[1], bare).entries[0].patch is bare
        assert given.entries[0].patch is not None
        wanted = kj.query(random_vlm, build((texts[1], patch), mode=mode, as_it_stood=True), QUESTION)
        np.testing.assert_allclose(kj.query(random_vlm, given, QUESTION), wanted, rtol=0, atol=2e-5)
        return
    alone = kj.form_patch(random_vlm, texts[1], antecedents=[], rank=1000)
    assert kj.append(empty, texts[1], alone).entries[0].patch is alone
    # Antecedents without keys are antecedents.
    unnamed = kj.append(empty, replace(texts[0], length=texts[0].length))
    behind = kj.form_patch(random_vlm, texts[1], context=unnamed, rank=4)
    assert behind.antecedents == ("",) and kj.append(empty, texts[1], behind).entries[0].patch is None


def test_a_patch_of_another_chunk_is_still_refused(build, texts, patch, mode):
    empty = build(mode=mode)
    window = build((texts[0], None), mode=mode)
    for put in (
        lambda: kj.append(empty, texts[2], patch),
        lambda: kj.recall(window, texts[2], patch, at=0),
        lambda: kj.replace(window, 0, texts[2], patch),
    ):
        with pytest.raises(PatchMismatchError, match="belongs to chunk"):
            put()


def test_a_plan_places_it_as_the_operations_do(random_vlm, build, texts, window, patch, mode):
    policy = kj.ReusePolicy()
    empty = build(mode=mode)
    alone = build((texts[0], None), mode=mode)
    cases = (
        (empty, Append(texts[1], patch), kj.append(empty, texts[1], patch)),
        (empty, Recall(texts[1], patch), kj.recall(empty, texts[1], patch)),
        (alone, Replace(0, texts[1], patch), kj.replace(alone, 0, texts[1], patch)),
    )
    for before, change, wanted in cases:
        planned = plan(random_vlm, before, change, policy=policy)
        done = execute(random_vlm, planned)
        assert planned.flops == done.flops == 0 and planned.steps[0].patch is done.steps[0].patch is None
        alike(random_vlm, done.window, wanted)
    # What stands behind it is then formed anew.
    for before, change in ((window, Reorder((1, 0))), (alone, Recall(texts[1], patch, at=0))):
        done = execute(random_vlm, plan(random_vlm, before, change, policy=policy))
        assert done.window.keys == (texts[1].key, texts[0].key) and done.window.entries[0].patch is None
        assert done.window.entries[1].patch.antecedents == (texts[1].key,)
        alike(random_vlm, changed(done.window, Evict((1,))), build((texts[1], None), mode=mode))


def test_a_restored_session_stands_as_it_stood(random_vlm, texts, mode, tmp_path):
    session = kj.Session(random_vlm, 48, mode=mode, rank=4)
    for text in texts[:3]:
        session.add(text)
    first = session.window.entries[0]
    assert len(session.keys) == 2 and first.patch is not None
    session.save(tmp_path / "s")
    again = kj.Session.restore(random_vlm, tmp_path / "s").window
    assert again.entries[0].patch.key == first.patch.key
    alike(random_vlm, again, session.window)
