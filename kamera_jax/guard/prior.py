"""What a stored patch is worth behind other chunks than it was formed behind, by what is known without any measurement.

What a chunk absorbs is a sum over the chunks before it, each with the attention that it gets. A patch keeps that sum
as it was. Where an antecedent is gone, its part stands there wrongly; where a chunk is new, its part is missing; where
two antecedents changed places, both parts are a little off. The KL of a small error is quadratic in it, and parts of
unlike chunks are nearly orthogonal: so squares of these shares add up. The constants, nats of next-token KL, were
fitted to drifts measured on a language model, and held against another corpus; see docs/guard.md.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

KEPT = 0.005
"""Of a patch whose antecedents are all there, but not to the bit: what its size left out."""

LOST = 0.094
"""More where all that it was formed behind is gone."""

ADDED = 0.073
"""More where all that is to be absorbed now is new."""

MOVED = 0.066
"""More where all of the attention went to antecedents that changed places."""

BARE = 0.094
"""Of a chunk without a patch, behind chunks that it was not run behind."""

MARGIN = 2.0
"""A budget must be so many times the expected cost for a reuse to be accepted: cases are scattered about their mean."""


@dataclass(frozen=True)
class Difference:
    """How what stands before a chunk differs from what it was conditioned on; shares are of attention, from 0 to 1.

    Attributes:
        gone: antecedents that are not there, in order, each with its share.
        new: chunks that are there and were not, in order, each with the share that it is expected to take.
        moved: the share of attention that went to antecedents which changed places among each other.
        antecedents: how many there were.
        present: how many chunks stand there.
    """

    gone: tuple[tuple[str, float], ...]
    new: tuple[tuple[str, float], ...]
    moved: float
    antecedents: int
    present: int

    @property
    def lost(self) -> float:
        """The share of all that is gone."""
        return 1.0 if self.nothing_left else min(math.fsum(share for _, share in self.gone), 1.0)

    @property
    def added(self) -> float:
        """The share that all new chunks take of what is to be absorbed now."""
        come = math.fsum(share for _, share in self.new)
        kept = 1.0 - self.lost if self.antecedents else 0.0
        return come / (come + kept) if come else 0.0

    @property
    def nothing_left(self) -> bool:
        """Whether it was conditioned on chunks, and none of them is there."""
        return 0 < self.antecedents == len(self.gone)

    @property
    def reason(self) -> str:
        """What differs, in words; keys by their first 12 letters."""
        gone = [f"antecedent {key[:12]} is gone ({share:.0%} of attention)" for key, share in self.gone]
        new = [f"chunk {key[:12]} is new" for key, _ in self.new]
        moved = ["its antecedents stand in another order"] if self.moved else []
        return "; ".join([*gone, *new, *moved]) or "its antecedents are the same but not their patches or codecs"


def shares_of(mass: Float[np.ndarray, "L n"]) -> tuple[float, ...]:
    """The share of attention of each antecedent, of all that went to antecedents; they sum to 1.

    The deeper half of the layers counts: on the language model that the prior is fitted to, a chunk's KV depends most
    on what stands before it there. Where nothing went to any antecedent, all of it to the preamble and the chunk
    itself, they share alike.

    Args:
        mass: attention to each antecedent while the patch was formed: the first columns of `kamera_jax.Patch.mass`.
    """
    deep = np.asarray(mass, np.float64)[mass.shape[0] // 2 :].mean(0)
    total = float(deep.sum())
    if not (total > 0 and np.isfinite(total)):
        return uniform(mass.shape[1])
    return tuple(float(share) for share in deep / total)


def uniform(count: int) -> tuple[float, ...]:
    """Equal shares of so many antecedents."""
    return (1.0 / max(count, 1),) * count


def difference(antecedents: Sequence[str], shares: Sequence[float], present: Sequence[str]) -> Difference:
    """How the chunks before a place differ from a chunk's antecedents.

    A chunk that stands there several times is matched to as many antecedents of its key, the last ones first. A new
    chunk is expected to take the share that the antecedent had which stood as far before the chunk; before all of them,
    that of the first.

    Args:
        antecedents: their keys, in order.
        shares: of each; see `shares_of`.
        present: keys of the chunks that stand there.
    """
    there = _last(antecedents, Counter(present))
    kept = _last(present, Counter(antecedents))
    gone = tuple((key, shares[i]) for i, key in enumerate(antecedents) if i not in there)
    expected = list(shares) or [1.0 / max(len(present), 1)]
    new = []
    for place, key in enumerate(present):
        if place not in kept:
            new.append((key, expected[max(len(expected) - (len(present) - place), 0)]))
    return Difference(
        gone, tuple(new), _moved(antecedents, shares, there, present, kept), len(antecedents), len(present)
    )


def _last(keys: Sequence[str], among: Counter[str]) -> list[int]:
    """Places of keys that are also among others, the last ones of each key, in order."""
    left = Counter(among)
    places = []
    for place in reversed(range(len(keys))):
        if left[keys[place]]:
            left[keys[place]] -= 1
            places.append(place)
    return places[::-1]


def _moved(
    antecedents: Sequence[str],
    shares: Sequence[float],
    there: Sequence[int],
    present: Sequence[str],
    kept: Sequence[int],
) -> float:
    """The share of the antecedents that are out of order: those outside the heaviest row which kept its order."""
    places: dict[str, list[int]] = {}
    for place in kept:
        places.setdefault(present[place], []).append(place)
    now = [places[antecedents[i]].pop(0) for i in there]
    best: list[float] = []
    for i, at in enumerate(now):
        before = max((best[j] for j in range(i) if now[j] < at), default=0.0)
        best.append(before + shares[there[i]])
    total = math.fsum(shares[i] for i in there)
    moved = total - max(best, default=0.0)
    return moved if moved > 1e-9 else 0.0


def expected_kl(found: Difference) -> float:
    """The KL, in nats, that reusing a patch is expected to cost behind what stands there now.

    Where none of its antecedents is there this is more than `expected_bare_kl`: all that the patch adds is wrong.
    """
    return float(expected_of(found.lost, found.added, found.moved))


def expected_of(
    lost: float | Float[np.ndarray, " n"],
    added: float | Float[np.ndarray, " n"],
    moved: float | Float[np.ndarray, " n"],
) -> Any:
    """As `expected_kl`, of shares alone: where one of the first two is 1, nothing of what the patch adds is right."""
    estimate = KEPT + LOST * np.square(lost) + ADDED * np.square(added) + MOVED * np.asarray(moved)
    return np.where(np.equal(lost, 1.0) | np.equal(added, 1.0), np.maximum(estimate, BARE + KEPT), estimate)


def expected_bare_kl(present: int) -> float:
    """The KL, in nats, that reusing a canonical chunk without a patch is expected to cost behind so many chunks."""
    return BARE if present else 0.0


def accepted(estimate: float, max_kl: float) -> bool:
    """Whether what is expected to cost so much is within a budget for nearly all cases; see `MARGIN`."""
    return estimate * MARGIN <= max_kl
