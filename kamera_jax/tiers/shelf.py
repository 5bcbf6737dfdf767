"""A tier: what is kept, in how many bytes, and who leaves when something comes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kamera_jax.tiers.value import Held, Policy


@dataclass
class Shelf:
    """Things by key, of no more bytes than a limit; who leaves is a policy's to say.

    Attributes:
        limit: bytes at most, None for no bound.
        held: what is there.
        nbytes: bytes of it.
    """

    limit: int | None
    held: dict[str, Held] = field(default_factory=dict)
    nbytes: int = 0

    def copied(self) -> "Shelf":
        """The same things, to be changed without changing these."""
        return replace(self, held=dict(self.held))

    def __contains__(self, key: str) -> bool:
        return key in self.held

    def __iter__(self) -> Iterator[Held]:
        return iter(self.held.values())

    def get(self, key: str) -> Held | None:
        """What is there under a key."""
        return self.held.get(key)

    def drop(self, key: str) -> Held | None:
        """Remove what is there under a key, and give it."""
        held = self.held.pop(key, None)
        if held is not None:
            self.nbytes -= held.nbytes
        return held

    def offer(self, held: Held, policy: Policy) -> Sequence[Held] | None:
        """Take something, in place of one of the same key, if the policy admits it.

        Returns:
            What left for it; None where it was not taken, and nothing changed.
        """
        free = self._free(held)
        leaving: list[Held] = []
        if free < 0:
            others = [(policy.worth(each), each) for each in self if each.key != held.key]
            others.sort(key=lambda each: each[0])
            for worth, each in others:
                if free >= 0 or worth == math.inf:
                    break
                leaving.append(each)
                free += each.nbytes
            leaving = _needed(leaving, free)
            if free < 0 or not policy.admits(held, leaving):
                return None
        self.drop(held.key)
        for each in leaving:
            self.drop(each.key)
        self.held[held.key] = held
        self.nbytes += held.nbytes
        return leaving

    def shrink(self, limit: int, policy: Policy) -> list[Held]:
        """Let the least worth leave until no more than so many bytes are there, and give what left."""
        order = sorted(((policy.worth(each), each) for each in self), key=lambda each: each[0])
        leaving = []
        for worth, each in order:
            if self.nbytes <= limit or worth == math.inf:
                break
            leaving.append(each)
            self.drop(each.key)
        return leaving

    def _free(self, held: Held) -> int:
        """Bytes that are free once something has come; below 0 where there is no room for it."""
        there = self.held.get(held.key)
        return 0 if self.limit is None else self.limit - self.nbytes - held.nbytes + (there.nbytes if there else 0)


def _needed(leaving: Sequence[Held], free: int) -> list[Held]:
    """Of what would leave, the least worth first, what has to: those of most worth stay where there is room."""
    kept = []
    for each in reversed(leaving):
        if each.nbytes <= free:
            free -= each.nbytes
        else:
            kept.append(each)
    return kept[::-1]
