"""The benchmark's policies and bounds: nobody saves more than the bound, and Belady's rule is the optimum."""

from functools import cache

import numpy as np
import pytest

from benchmarks import tiers, traces
from benchmarks.tiers_policies import Belady, Frequent, Recent, TinyLfu, bound, packed
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.value import Held, Value


@pytest.mark.parametrize("kind", (traces.zipf, traces.agents))
def test_nobody_saves_more_than_the_bound(kind):
    library = traces.library(60, 0, 100, 1.0)
    trace = kind(60, 600, 0)
    limit = int(library.nbytes.sum()) // tiers.TIMES
    most = bound(trace.keys, library.nbytes, library.seconds, limit) / library.seconds[trace.keys].sum()
    names = [str(key) for key in trace.keys]
    policies = {"lru": Recent(), "lfu": Frequent(), "tiny": TinyLfu(60), "value": Value(), "best": Belady(names)}
    saved = {
        name: tiers.look(trace, library, policy, any(trace.told))
        for name, policy in policies.items()
        if name == "value"
    }
    saved |= {name: tiers.look(trace, library, policy, False) for name, policy in policies.items() if name != "value"}
    offline = packed(trace.keys, library.nbytes, library.seconds, limit) / library.seconds[trace.keys].sum()
    assert max(each["saved"] for each in saved.values()) <= most and offline <= most
    assert saved["best"]["saved"] > saved["lru"]["saved"] < saved["value"]["saved"] <= offline * 1.05


def test_with_equal_costs_and_sizes_belady_is_the_optimum():
    """Against all that can be done, tried one by one."""

    @cache
    def best(keys, there):
        if not keys:
            return 0
        key, *rest = keys
        if key in there:
            return 1 + best(tuple(rest), there)
        choices = [there | {key}] if len(there) < 2 else [there - {out} | {key} for out in there]
        return max(best(tuple(rest), frozenset(each)) for each in (*choices, there))

    rng = np.random.default_rng(0)
    for _ in range(5):
        keys = rng.integers(0, 5, 14)
        policy = Belady([str(key) for key in keys])
        shelf = Shelf(2)
        hits = 0
        for key in map(str, keys):
            policy.use(key)
            hits += key in shelf
            if key not in shelf:
                shelf.offer(Held(key, key, 1, 1.0), policy)
        ones = np.ones(5)
        assert hits == best(tuple(keys.tolist()), frozenset()) <= bound(keys, ones, ones, 2)
        assert packed(keys, ones, ones, 2) <= hits


def test_what_agents_are_told_comes():
    """Of what is told most is used, about when it was said."""
    trace = traces.agents(100, 1500, 0)
    late = []
    due = {}
    for step, key in enumerate(trace.keys.tolist()):
        if key in due:
            late.append(step - due.pop(key))
        for named, steps in trace.told[step].items():
            due.pop(named, None)
            if steps is not None:
                due[named] = step + steps
    assert len(late) > 0.6 * len(trace.keys) and abs(np.median(late)) < 20
