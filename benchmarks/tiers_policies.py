"""Policies that `kamera_jax.tiers.value.Value` is compared with, and what no policy can do better than."""

import heapq
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kamera_jax.tiers.frequency import Frequency
from kamera_jax.tiers.value import Held


class Recent:
    """LRU: what was used last stays, and everything is admitted."""

    def __init__(self) -> None:
        self.now = 0
        self.last: dict[str, int] = {}

    def use(self, key: str) -> None:
        self.now += 1
        self.last[key] = self.now

    def worth(self, held: Held) -> float:
        return self.last[held.of]

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        return True


class Frequent(Recent):
    """LFU: what was used most stays, of that what was used last; counts of all keys are kept for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[str] = Counter()

    def use(self, key: str) -> None:
        super().use(key)
        self.uses[key] += 1

    def worth(self, held: Held) -> float:
        return self.uses[held.of] + self.last[held.of] / 1e9


class TinyLfu(Recent):
    """LRU with TinyLFU's admission (arXiv 1512.00727): what comes has been used more than any that leaves for it."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.frequency = Frequency(keys)

    def use(self, key: str) -> None:
        super().use(key)
        self.frequency.add(key)

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        return self.frequency.of(held.of) > max((self.frequency.of(each.of) for each in leaving), default=-1)


class Belady:
    """Offline: who knows the trace keeps what costs most, for each byte and look-back until it is used again.

    With equal costs and sizes this is Belady's rule, the optimum; with others it is a heuristic that is near it.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.now = 0
        self._next = next_uses(keys)
        self._due: dict[str, float] = {}

    def use(self, key: str) -> None:
        self._due[key] = self._next[self.now]
        self.now += 1

    def worth(self, held: Held) -> float:
        return held.cost / held.nbytes / (self._due[held.of] - self.now + 1)

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        return self.worth(held) * held.nbytes > sum(self.worth(each) * each.nbytes for each in leaving)


def next_uses(keys: Sequence[str]) -> list[float]:
    """At each look-back, when its key is used again; infinite if it is not."""
    seen: dict[str, int] = {}
    found = [math.inf] * len(keys)
    for place in range(len(keys) - 1, -1, -1):
        found[place] = seen.get(keys[place], math.inf)
        seen[keys[place]] = place
    return found


def intervals(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each use that is followed by another of the same key: where both are."""
    after = np.asarray(next_uses(keys.tolist()))
    first = np.flatnonzero(np.isfinite(after))
    return first, after[first].astype(np.int64)


def bound(keys: np.ndarray, nbytes: np.ndarray, cost: np.ndarray, limit: int) -> float:
    """What no policy can save more than: PFOO-U (Berger, SIGMETRICS 2018) by cost.

    To save an interval takes its bytes for all its look-backs. All that a tier has is its bytes at all look-backs;
    whoever may spread them freely saves the intervals of most cost for what they take.
    """
    first, last = intervals(keys)
    taken = nbytes[keys[first]] * (last - first).astype(float)
    order = np.argsort(-cost[keys[first]] / taken)
    room = np.cumsum(taken[order])
    fits = room <= float(limit) * len(keys)
    return float(cost[keys[first]][order][fits].sum())


def packed(keys: np.ndarray, nbytes: np.ndarray, cost: np.ndarray, limit: int) -> float:
    """What one plan made offline saves: PFOO-L by cost, intervals of most cost for what they take, where they fit."""
    first, last = intervals(keys)
    own = nbytes[keys[first]]
    saved = cost[keys[first]]
    heap = [(-saved[i] / (own[i] * (last[i] - first[i])), i) for i in range(len(first))]
    heapq.heapify(heap)
    used = np.zeros(len(keys))
    total = 0.0
    while heap:
        _, i = heapq.heappop(heap)
        span = used[first[i] : last[i]]
        if span.max() + own[i] <= limit:
            span += own[i]
            total += saved[i]
    return total
