"""What is worth its bytes: the cost of making it again, times the chance that it is asked for, over its size."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kamera_jax.tiers.frequency import Frequency
from kamera_jax.tiers.returns import FORGET, LEARN, LEVELS, Returns, level_of

FOLLOWED = 2**14
"""Keys of which it is known when they were used last, kept or not."""

LATE = 4
GRACE = 64
"""A hint is forgotten once it is overdue by so many times what it said, and so many look-backs."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something that is kept in a tier.

    Attributes:
        key: its name.
        of: the key that is asked for when it is wanted: a patch's chunk.
        nbytes: that it takes.
        cost: of making it again, in any unit that is the same for all.
        item: what is kept.
        share: of the uses of ``of``, those that are expected to be its.
    """

    key: str
    of: str
    nbytes: int
    cost: float
    item: Any = None
    share: float = 1.0


@runtime_checkable
class Policy(Protocol):
    """What decides who stays in a `kamera_jax.tiers.shelf.Shelf`."""

    def worth(self, held: Held) -> float:
        """What keeping it is worth for each of its bytes; infinite for what may not leave."""
        ...

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        """Whether something comes for which these would have to leave; they are there, the least worth first."""
        ...


def outweighs(policy: Policy, held: Held, leaving: Sequence[Held]) -> bool:
    """Whether something is worth more than all of others together."""
    return policy.worth(held) * held.nbytes > sum(policy.worth(each) * each.nbytes for each in leaving)


class Value:
    """The policy of `kamera_jax.Tiers`: (cost to make again × uses expected for each look-back) ÷ bytes.

    The clock counts look-backs. Without a hint the expected uses are learned of how often and how lately keys were
    used; see `kamera_jax.tiers.returns.Returns`. A hint says in how many look-backs a key is used next (KVFlow, arXiv
    2507.07400): it then is worth one use in so many. A use takes up its hint; one that is overdue is worth the less
    the longer it is so, and is forgotten in the end. Of keys that a workflow has spoken of, and of whose next use it
    says nothing, the rates are learned apart.
    """

    def __init__(self, followed: int = FOLLOWED) -> None:
        """Know nothing yet.

        Args:
            followed: keys of which it is remembered when they were used last.
        """
        self.now = 0
        self.pinned: frozenset[str] = frozenset()
        self._followed = followed
        self._frequency = Frequency(followed)
        self._returns = Returns()
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()  # when it was used, and its level; oldest first
        self._due: dict[str, tuple[int, int]] = {}  # when it is, and how many look-backs before that was said
        self._planned: set[str] = set()

    def use(self, key: str) -> None:
        """A look-back: a key is asked for, whether it is kept or not."""
        self.now += 1
        if (known := self._last.pop(key, None)) is not None and key not in self._due:
            last, level = known
            self._returns.returned(self._class(key, level), self.now - last)
        self._due.pop(key, None)
        self._frequency.add(key)
        self._remember(key)
        if self.now % LEARN == 0:
            self._learn()

    def know(self, key: str) -> None:
        """Something came that nobody asked for: it counts as used now, if it was not known, and as no look-back."""
        if key not in self._last:
            self._remember(key)

    def hint(self, steps: Mapping[str, int | None]) -> None:
        """In how many look-backs from now keys are used next, at least 1; None takes a hint back."""
        for key, after in steps.items():
            if after is None:
                self._due.pop(key, None)
            else:
                self._planned.add(key)
                self._due[key] = (self.now + max(after, 1), max(after, 1))
        for hints in (self._planned, self._due):
            if len(hints) > 4 * self._followed:  # of keys that nobody ever used
                hints.clear()

    def hinted(self, key: str) -> bool:
        """Whether a use of a key is said to come."""
        return key in self._due

    def pin(self, key: str, pinned: bool = True) -> None:
        """Let what is kept of a key not leave, or leave again."""
        self.pinned = self.pinned | {key} if pinned else self.pinned - {key}

    def rate(self, key: str) -> float:
        """Uses that are expected for each look-back that it is kept for."""
        if (hinted := self._due.get(key)) is not None:
            due, steps = hinted
            if self.now - due <= LATE * steps + GRACE:
                return 1.0 / max(abs(due - self.now), 1)
            del self._due[key]
        last, level = self._last.get(key, (self.now - self._followed, 0))
        return self._returns.rate(self._class(key, level), self.now - last)

    def worth(self, held: Held) -> float:
        """See `Policy.worth`."""
        if held.of in self.pinned:
            return math.inf
        return self.rate(held.of) * held.share * held.cost / max(held.nbytes, 1)

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        """See `Policy.admits`: whether it is worth more than all of them together."""
        return outweighs(self, held, leaving)

    def _class(self, key: str, level: int) -> int:
        return level + LEVELS if key in self._planned else level

    def _remember(self, key: str) -> None:
        self._last[key] = (self.now, level_of(self._frequency.of(key)))
        while len(self._last) > self._followed:
            gone, (last, level) = self._last.popitem(last=False)
            if gone not in self._due:
                self._returns.gone(self._class(gone, level), self.now - last)
            self._planned.discard(gone)

    def _learn(self) -> None:
        last = ((key, *known) for key, known in self._last.items() if key not in self._due)
        waiting = [(self._class(key, level), self.now - when) for key, when, level in last]
        classes, ages = np.asarray(waiting, int).reshape(-1, 2).T
        self._returns.waiting(classes, ages.astype(float))
        self._returns.learn()
        if self.now % (LEARN * FORGET) == 0:
            self._returns.forget()
