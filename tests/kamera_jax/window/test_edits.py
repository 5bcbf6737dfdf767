"""Edits of a window's entries as values, against lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamera_jax import KV, Chunk, Factors, Patch
from kamera_jax.window.edits import Append, Evict, Pair, Recall, Reorder, Replace, applied

CHUNK = Chunk(KV(np.zeros((1, 16, 2)), np.zeros((1, 16, 2))), np.zeros((1, 16)), 9, 9.0, "m", None, key="c")


def patch_behind(*antecedents):
    """A patch of the chunk that was formed behind others."""
    factors = Factors(np.zeros((1, 1, 16), np.float32), np.zeros((1, 1, 4), np.float32), np.zeros(1, np.int32))
    mass = np.zeros((1, len(antecedents) + 2), np.float32)
    return Patch(factors, "c", "m", antecedents, mass, np.zeros(1, np.float32), 9)


BEHIND = patch_behind("d" * 64)
ALONE = patch_behind()


def drawn(data, count, patches=(None,)):
    """Any kind of edit of a window of so many entries."""
    patch = data.draw(st.sampled_from(patches))
    kind = data.draw(st.sampled_from(("append", "recall", "evict", "reorder", "replace")[: 5 if count else 2]))
    if kind == "append":
        return Append(CHUNK, patch, as_it_stood=data.draw(st.booleans()))
    if kind == "recall":
        return Recall(CHUNK, patch, at=data.draw(st.none() | st.integers(0, count)))
    if kind == "evict":
        return Evict(tuple(data.draw(st.lists(st.integers(0, count - 1), unique=True))))
    if kind == "reorder":
        return Reorder(tuple(data.draw(st.permutations(range(count)))))
    return Replace(data.draw(st.integers(0, count - 1)), CHUNK, patch)


def by_list(items, edit):
    """What an edit says, done to a list in place; what is placed first leaves a patch that was formed behind others."""
    items = list(items)
    placed = False
    match edit:
        case Append(chunk, patch, as_it_stood):
            placed = not items and not as_it_stood
            items.append(Pair(chunk, patch))
        case Recall(chunk, patch, at):
            placed = at == 0 or not items
            items.insert(len(items) if at is None else at, Pair(chunk, patch))
        case Evict(places):
            for place in sorted(places, reverse=True):
                del items[place]
        case Reorder(order):
            placed = bool(order) and order[0] != 0
            items = [items[i] for i in order]
        case Replace(index, chunk, patch):
            placed = index == 0
            items[index] = Pair(chunk, patch)
    if placed and isinstance(items[0], Pair) and items[0].patch is BEHIND:
        items[0] = Pair(items[0].chunk, None)
    return items


@given(st.data(), st.integers(0, 5))
def test_edits_are_those_of_a_list(data, count):
    items = list("abcde"[:count])
    wanted = items
    done = []
    for _ in range(3):
        done.append(drawn(data, len(wanted), (None, BEHIND, ALONE)))
        wanted = by_list(wanted, done[-1])
    assert applied(items, done) == wanted
    assert items == list("abcde"[:count])


@given(st.data(), st.integers(1, 5))
def test_an_edit_of_a_window_that_some_have_left(data, count):
    """First the edit and then those away, or first those away: the same window."""
    edit = drawn(data, count)
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    if isinstance(edit, Replace) and edit.index in gone:
        with pytest.raises(ValueError, match="has left the window"):
            edit.without(gone)
        return
    items = list(range(count))
    later = [each for each in edit.apply(items) if isinstance(each, Pair) or each not in gone]
    assert applied([each for each in items if each not in gone], edit.without(gone)) == later


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Recall(CHUNK, at=3), r"at must be in 0\.\.2.* got 3"),
        (Recall(CHUNK, at=-1), r"at must be in 0\.\.2.* got -1"),
        (Evict((0, 2)), r"the window has entries 0\.\.1; got 2"),
        (Replace(-1, CHUNK), r"the window has entries 0\.\.1; got -1"),
        (Reorder((0, 0)), r"order must be a permutation of 0\.\.1; got \[0, 0\]"),
    ],
)
def test_what_is_not_there_is_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        edit.apply(["a", "b"])


def test_an_empty_window_has_no_entries():
    with pytest.raises(ValueError, match="the window has no entries; got 0"):
        Evict((0,)).apply([])
