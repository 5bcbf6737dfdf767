"""Handles as Python values: compared, looked up in sets and lists, copied and pickled."""

import copy
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from tests.kamera_jax.toy import Toy


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def made(toy):
    """Two chunks and the second one's patch."""
    a, b = (kj.encode(toy, text) for text in ("abc", "xyz"))
    return a, b, kj.form_patch(toy, b, antecedents=[a], rank=2)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_what_has_a_key_is_equal_by_it(toy, made):
    a, b, p = made
    again = kj.encode(toy, "abc")
    assert again is not a and again == a and hash(again) == hash(a)
    assert a != b and a != p and a != a.key and a is not None
    assert again in [b, a] and [b, a].index(again) == 1 and b not in (a,)
    assert len({a, again, b, p}) == 3 and {a: 1}[again] == 1
    assert kj.form_patch(toy, b, antecedents=[a], rank=2) == p != kj.form_patch(toy, b, antecedents=[a], rank=1)
    assert a.without_source() == a == a.to(jax.devices()[0])


def test_what_has_no_key_is_equal_to_itself(made):
    a, _, p = made
    for each in (a, p):
        lost = [jax.tree.map(jnp.copy, each), jax.jit(lambda x: x)(each), replace(each, length=each.length)]
        assert not any(other == each for other in lost)
        assert all(other == other and other in lost and hash(other) == hash(other) for other in lost)
        assert len({*lost}) == 3 and lost[0] != lost[1]


def test_another_codec_is_another_value(made):
    a, _, _ = made
    assert a.keeping(codec="int8") != a


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_windows_entries_and_arrays(toy, made, mode):
    a, b, p = made
    start = kj.Window.empty(toy, 64, mode=mode)
    one, other = (kj.append(kj.append(start, a), b, p) for _ in range(2))
    assert one == one and one != other and other in [one, other] and len({one, other}) == 2
    assert one.entries[1] == other.entries[1] and one.entries[0] not in one.entries[1:]
    assert len({*one.entries, *other.entries}) == 2
    for values in ((a.kv, b.kv), (p.factors,), (one.state, other.state), (a.source, b.source), one.state.pools):
        assert all(each == each for each in values) and len({*values}) == len(values)


COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_copies_are_the_same_values_under_the_same_names(toy, made, mode, copied):
    a, b, p = made
    window = kj.append(kj.append(kj.Window.empty(toy, 128, mode=mode), a), b, p)
    for each in (a, p, a.source, window, window.entries[1]):
        again = copied(each)
        assert bits(again) == bits(each)
        names = [name for name in ("key", "content", "lineage", "antecedents", "keys") if hasattr(each, name)]
        assert [getattr(again, name) for name in names] == [getattr(each, name) for name in names]
    again = copied(window)
    moved = [kj.slide(kj.append(kj.reorder(each, [1, 0]), a)) for each in (again, window)]
    assert moved[0].lineage == moved[1].lineage != "" and bits(moved[0].state) == bits(moved[1].state)
    np.testing.assert_array_equal(kj.query(toy, moved[0], "what"), kj.query(toy, moved[1], "what"))
    assert copied(a) == a and copied(p) == p


@pytest.mark.parametrize("copied", [COPIES["pickle"], COPIES["deepcopy"]], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_copies_of_a_session_go_on_by_themselves(toy, mode, copied):
    session = kj.Session(toy, 64, mode=mode, rank=2)
    first = session.add("abc")
    session.add("xyz")
    other = copied(session)
    assert other.keys == session.keys and bits(other.window.state) == bits(session.window.state)
    for each in (session, other):
        each.add("more of this")
        each.ask("what", max_new_tokens=2)
    assert other.keys == session.keys and other.evicted == session.evicted == (first,)
    other.recall(first)
    assert first in other.keys and first not in session.keys
