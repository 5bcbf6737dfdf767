"""Sessions that are given screenshots which differ a little: what is run, what stands there, and what is said of it."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ChunkNotHeldError, RenewalError

CAPACITY = 128


def changed(image, row=0, columns=2):
    """The image with other cells in a row."""
    other = image.copy()
    other[28 * row : 28 * row + 28, : 28 * columns] = 255 - other[28 * row : 28 * row + 28, : 28 * columns]
    return other


def test_what_changed_is_run_and_the_rest_kept(random_vlm, make_image):
    first = make_image(4, 5)
    session = kj.Session(random_vlm, CAPACITY)
    old = session.add(first)
    new = session.add_similar(changed(first), to=old)
    wanted = kj.renew(random_vlm, kj.encode(random_vlm, first), changed(first))
    assert session.keys == (old, new) and new == wanted.chunk.key
    assert session.window.entries[1].chunk == wanted.chunk
    record = session.log[-1]
    assert record.key == new and record.encoded and "approximate, renewed:" in record.reason
    alone = session.log[0]
    assert not alone.reason.startswith("its KV is approximate")
    assert 0 < record.flops and session.stats.encoded == 2 and session.stats.seen == 2


def test_it_takes_the_flops_of_what_is_run(random_vlm, make_image):
    first = make_image(4, 5)
    session = kj.Session(random_vlm, CAPACITY)
    old = session.add(first, patch=False)
    session.add_similar(changed(first), to=old, extra=0, patch=False)
    assert 0.05 < session.log[-1].flops / session.log[0].flops < 0.15  # 2 of 22 tokens
    session.add_similar(changed(first, row=2), to=old, patch=False)
    assert 0.5 < session.log[-1].flops / session.log[0].flops < 0.65  # 4 of them, and two of 5 layers of all


def test_what_is_known_exactly_is_taken_as_it_is(random_vlm, make_image):
    first = make_image(4, 5)
    session = kj.Session(random_vlm, CAPACITY)
    old = session.add(first)
    both = session.add(changed(first))
    assert session.add_similar(changed(first), to=old) == both
    assert session.add_similar(first, to=both) == old
    assert session.keys == (old, both) and session.stats.encoded == 2


def test_a_series_goes_from_one_to_the_next(random_vlm, make_image):
    """Each like the one before, which may have left the window; the same again is not run again."""
    image = make_image(4, 5)
    session = kj.Session(random_vlm, 64)
    keys = [session.add(image, patch=False)]
    for row in range(1, 4):
        image = changed(image, row)
        keys.append(session.add_similar(image, to=keys[-1], patch=False))
    assert len(set(keys)) == 4 and session.evicted
    before = session.stats.encoded
    assert session.add_similar(image, to=keys[-1]) == keys[-1]
    assert session.stats.encoded == before == 4
    again = session.add_similar(changed(make_image(4, 5), 1), to=keys[0], patch=False)
    assert again == keys[1]
    exact = session.add(image, patch=False)
    assert exact not in keys and session.stats.encoded == 6


def test_an_edited_page_takes_the_place_of_the_old_one(random_vlm, make_image):
    first = make_image(4, 5)
    session = kj.Session(random_vlm, CAPACITY)
    old = session.add(first, pin=True)
    later = session.add("the page is red")
    renewed = kj.renew(random_vlm, session.window.entries[0].chunk, changed(first))
    assert session.replace(old, renewed) == renewed.chunk.key
    assert session.keys == (renewed.chunk.key, later)
    assert session.recall(old) is None and session.keys[-1] == old


def test_it_is_saved_and_restored(random_vlm, make_image, tmp_path):
    first = make_image(4, 5)
    session = kj.Session(random_vlm, CAPACITY)
    new = session.add_similar(changed(first), to=session.add(first))
    session.save(tmp_path / "session")
    back = kj.Session.restore(random_vlm, tmp_path / "session")
    assert back.keys == session.keys
    ours, theirs = (each.window.entries[1].chunk for each in (back, session))
    assert ours == theirs and ours.key == new
    np.testing.assert_array_equal(ours.kv.rot, theirs.kv.rot)


def test_what_is_like_nothing_is_named_and_changes_nothing(random_vlm, make_image):
    session = kj.Session(random_vlm, CAPACITY)
    key = session.add(make_image(4, 5))
    with pytest.raises(ChunkNotHeldError, match="the item could be like"):
        session.add_similar(make_image(4, 5, seed=1), to="0" * 64)
    with pytest.raises(RenewalError, match="encode this one"):
        session.add_similar(make_image(4, 4), to=key)
    assert session.keys == (key,) and session.stats.seen == 1
