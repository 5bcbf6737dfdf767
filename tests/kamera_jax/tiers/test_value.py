"""What a tier keeps: known orders where costs and sizes are equal, pins, budgets, and what is learned of uses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamera_jax.tiers.frequency import MOST, Frequency
from kamera_jax.tiers.returns import BINS, CLASSES, EDGES, Returns, age_bin, level_of
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.value import GRACE, LATE, Held, Value


def held(key, nbytes=1, cost=1.0):
    return Held(str(key), str(key), nbytes, cost)


def kept(policy, *keys, limit=2, **options):
    """What is left on a shelf after these were offered."""
    shelf = Shelf(limit)
    for key in keys:
        shelf.offer(held(key, **options), policy)
    return set(shelf.held)


def used(*keys):
    policy = Value()
    for key in keys:
        policy.use(str(key))
    return policy


def test_used_as_often_the_least_recent_leaves():
    policy = used(*"abcdefgh")
    assert kept(policy, *"abcdefgh", limit=3) == set("fgh") == kept(policy, *"hgfedcba", limit=3)


def test_as_old_the_least_frequent_leaves():
    policy = used(*"aaabbbc", *(f"other {number}" for number in range(60)))
    assert policy.rate("a") > policy.rate("c") and kept(policy, *"cab") == kept(policy, *"abc") == {"a", "b"}


def test_hinted_the_one_used_last_leaves():
    """With equal costs and sizes it is Belady's rule."""
    policy = used(*"abcdef")
    policy.hint({"a": 3, "b": 40, "c": 7, "d": 2, "e": 90, "f": 11})
    assert kept(policy, *"abcdef", limit=4) == set("acdf")
    policy.hint({"d": None})
    assert policy.rate("d") == used(*"abcdef").rate("d")


def test_cost_and_size_decide_among_what_is_used_alike():
    policy = used(*"abc")
    policy.hint(dict.fromkeys("abc", 10))
    shelf = Shelf(4)
    for item in (held("a", 2, 6.0), held("b", 2, 2.0), held("c", 2, 4.0)):
        shelf.offer(item, policy)
    assert set(shelf.held) == {"a", "c"}
    assert shelf.offer(held("b", 4, 9.9), policy) is None  # worth less than both that it would take the place of
    assert [each.key for each in shelf.offer(held("b", 4, 10.1), policy)] == ["c", "a"]


def test_a_use_takes_up_its_hint_and_an_overdue_one_fades():
    policy = used("a", "b")
    policy.hint({"a": 2, "b": 2})
    policy.use("a")
    learned = policy.rate("a")
    assert policy.rate("b") == 1.0 != learned
    worths = []
    for number in range(2 * LATE + GRACE + 2):
        worths.append(policy.rate("b"))
        policy.use(f"other {number}")
    assert worths[2:] == sorted(worths[2:], reverse=True) and worths[-1] < 1 / GRACE
    assert policy.rate("b") not in worths  # forgotten: what is learned of such keys counts


def test_what_comes_back_in_rounds_is_learned():
    """A round of 40 keys beside others that never return: nothing of it is due at once, all of it comes back."""
    policy = Value()
    for number in range(30):
        for key in range(40):
            policy.use(f"round {key}")
            policy.use(f"once {number} {key}")
    assert min(policy.rate(f"round {key}") for key in range(40)) > 5 * policy.rate("once 29 39")


def test_rates_are_those_of_the_waits():
    returns = Returns()
    rng = np.random.default_rng(0)
    for age in rng.geometric(0.02, 4000):
        returns.returned(3, int(age))
    returns.learn()
    for age in (0, 10, 100):  # one in fifty look-backs, however long one has waited
        assert returns.rate(3, age) == pytest.approx(0.02, rel=0.15)
    for _ in range(13):  # those of another class come back after 33 look-backs, never before
        returns.returned(5, 33)
    returns.waiting(np.full(10, 5), np.full(10, 4000.0))
    returns.learn()
    assert returns.rate(5, 32) > returns.rate(5, 1) > returns.rate(5, 2000)


def test_bins_and_levels_cover_everything():
    ages = [0, 1, 2, 3, 100, 10**6, 10**12]
    assert [age_bin(age) for age in ages] == sorted(age_bin(age) for age in ages)
    for age in (0, 1, 2, 3, 7, 1000):
        assert EDGES[age_bin(age)] <= age < EDGES[age_bin(age) + 1]
    assert age_bin(10**12) == BINS - 1 and 2 * (level_of(10**9) + 1) == CLASSES and level_of(0) == 0


def test_frequencies_are_never_too_low_and_are_forgotten():
    sketch = Frequency(256)
    rng = np.random.default_rng(0)
    drawn = [f"key {number}" for number in rng.zipf(1.5, 1500) % 300]
    for key in drawn:
        sketch.add(key)
    off = [sketch.of(key) - min(drawn.count(key), MOST) for key in set(drawn)]
    assert min(off) >= 0 and np.mean(off) < 1.0 and sketch.of("never") <= 2
    before = sketch.of("key 1")
    for number in range(4 * 8 * 256):
        sketch.add(f"other {number % 500}")
    assert sketch.of("key 1") < before / 2


def test_only_so_many_keys_are_followed():
    policy = Value(followed=32)
    for number in range(500):
        policy.hint({f"hinted {number}": 10})
        policy.use(f"key {number}")
    assert len(policy._last) == 32 and len(policy._due) <= 4 * 32 + 1 and len(policy._planned) <= 4 * 32 + 1


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("use", "offer", "hint", "pin", "unpin", "drop", "shrink")),
        st.integers(0, 9),
        st.integers(1, 40),
        st.integers(0, 100),
    ),
    max_size=60,
)


@settings(max_examples=40)
@given(OPERATIONS, st.integers(0, 100))
def test_the_budget_holds_and_pins_stay(operations, limit):
    """Whatever comes in whatever order: bytes are counted right and within the limit, and nothing pinned leaves."""
    policy = Value()
    shelf = Shelf(limit)
    sizes = {}
    for what, number, size, cost in operations:
        key = str(number)
        pinned = {each for each in shelf.held if each in policy.pinned}
        if what == "offer":
            before = dict(shelf.held)
            left = shelf.offer(Held(key, key, size, float(cost)), policy)
            if left is None:
                assert shelf.held == before
            else:
                sizes[key] = size
                assert {each.key for each in left} == before.keys() - shelf.held.keys()
        elif what == "shrink":
            shelf.shrink(size, policy)
        elif what == "drop":
            shelf.drop(key)
            pinned.discard(key)
        elif what == "hint":
            policy.hint({key: size})
        elif what == "use":
            policy.use(key)
        else:
            policy.pin(key, what == "pin")
        assert shelf.nbytes == sum(sizes[each] for each in shelf.held) <= limit
        assert pinned <= shelf.held.keys()
