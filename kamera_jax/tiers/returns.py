"""When what was used comes back: learned from when it did."""

import math
from bisect import bisect_right

import numpy as np

LEVELS = 17
"""Of uses, two to an octave."""

CLASSES = 2 * LEVELS
"""Of keys: of each level those that no workflow has spoken of, and then those that one has."""

PRIOR = 0.3
"""Returns that each bin begins with: what is expected before any was seen weighs so much."""

LEARN = 256
"""Uses after which the rates are computed anew."""

FORGET = 16
"""Of these, so many after which what was seen counts half."""

EDGES = np.unique([0, *(round(2 ** (half / 2)) for half in range(48))])
"""Ages at which bins begin, two to an octave; the last has no end."""

BINS = len(EDGES)


def age_bin(age: int) -> int:
    """The bin of an age in look-backs."""
    return bisect_right(_EDGES, age) - 1


def level_of(uses: int) -> int:
    """The level of a number of uses."""
    return min(round(2 * math.log2(uses + 1)), LEVELS - 1)


class Returns:
    """At which rate keys come back, by how often they were used and how long ago that was last.

    For each class and age it counts returns, and look-backs during which a key might have returned: their quotient is
    the hazard. Of hazards comes what a key is kept for: the most returns per look-back that keeping it for any time
    from now is expected to give (the Gittins index of that wait; least hit density, Beckmann NSDI 2018, is near it).
    So what comes back in rounds is kept although nothing of it is due at once.

    Before anything was seen, what was used n times and not for t look-backs is expected (n + 1) / (t + 1) times a
    look-back: recency decides among what was used as often, frequency among what is as old.
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        self._hits = np.zeros((CLASSES, BINS))
        self._waits = np.zeros((CLASSES, BINS))
        self._running = np.zeros((CLASSES, BINS))
        self._rates: list[list[float]] = []
        self.learn()

    def returned(self, of: int, age: int) -> None:
        """A key of a class came back at an age, at least 1."""
        self._hits[of, age_bin(age - 1)] += 1.0
        self.gone(of, age)

    def gone(self, of: int, age: int) -> None:
        """A key of a class is not followed any more from this age on."""
        self._waits[of] += np.clip(age - EDGES, 0.0, _WIDTHS)

    def waiting(self, classes: np.ndarray, ages: np.ndarray) -> None:
        """All keys that are followed and have not come back yet, by class and age [n]: in place of those before."""
        waits = np.clip(ages[:, None] - EDGES[None, :], 0.0, _WIDTHS[None, :])
        self._running[:] = 0.0
        np.add.at(self._running, classes, waits)

    def forget(self) -> None:
        """Let what was seen so far count half."""
        self._hits *= 0.5
        self._waits *= 0.5

    def rate(self, of: int, age: int) -> float:
        """Returns of a key of a class, for each look-back that it is kept for; of one bin more for the younger."""
        return self._rates[of][age_bin(age)] * (1.0 - 1e-9 * min(age, 10**6))

    def learn(self) -> None:
        """Compute the rates of what was seen."""
        hazards = (self._hits + PRIOR) / (self._waits + self._running + PRIOR / _EXPECTED)
        # A wait through a bin at a constant hazard: how likely it ends in it, and how long it then is on average.
        ends = -np.expm1(-hazards * _WIDTHS)
        times = ends / hazards
        best = np.zeros_like(hazards)
        for first in range(BINS):
            alive = np.ones(CLASSES)
            found = np.zeros(CLASSES)
            spent = np.zeros(CLASSES)
            for place in range(first, BINS):
                found += alive * ends[:, place]
                spent += alive * times[:, place]
                alive = alive * (1.0 - ends[:, place])
                np.maximum(best[:, first], found / spent, out=best[:, first])
        self._rates = best.tolist()


_EDGES: list[int] = EDGES.tolist()
_WIDTHS: np.ndarray = np.diff(np.append(EDGES, 2 * EDGES[-1])).astype(float)
_USES = 2.0 ** (np.arange(CLASSES) % LEVELS / 2)
_EXPECTED = _USES[:, None] / (1.0 + EDGES[None, :])
