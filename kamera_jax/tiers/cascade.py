"""What lies on the device and in host memory, and what goes down when something comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kamera_jax.chunk import Chunk
from kamera_jax.identity import EXACT
from kamera_jax.tiers.forms import Embedded, Form, Packed, device_bytes
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.value import Held, Value, outweighs

PATCHES = 8
"""Patches that are kept of one chunk, at most."""

OLDER = 0.5
"""Of the chance that a patch is asked for: what the one that was served before it has."""

REBUILDS = 0.25
"""Of what a chunk costs: what is saved at most by keeping what it is run from again."""

SLACK = 1 / 16
"""Of host memory: what is made free at once, so that what goes to the library goes in packs."""


@dataclass
class Cascade:
    """The tiers above the library, to be changed as one value: a copy is changed, and taken over once all is stored.

    Attributes:
        policy: what decides who stays.
        codec: what packs chunks in host memory; None for nothing.
        embeds: whether what is run to make a chunk again is to stay when its KV leaves.
        device: chunks on the device, by key.
        host: chunks, embeddings and patches in host memory, by names of their own.
        patched: of each chunk, its patches in host memory, the one that was served last first.
        in_use: chunks that stand in a window: what host memory has of them is not needed until they come back.
        leaving: what has left host memory, and may be stored below.
        copied: bytes that came to host memory.
    """

    policy: Value
    codec: str | None
    embeds: Callable[[Packed], bool]
    device: Shelf
    host: Shelf
    patched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_use: frozenset[str] = frozenset()
    leaving: list[Held] = field(default_factory=list)
    copied: int = 0

    def copy(self) -> "Cascade":
        """The same contents, to be changed without changing these; nothing is leaving."""
        patched = dict(self.patched)
        return replace(
            self, device=self.device.copied(), host=self.host.copied(), patched=patched, leaving=[], copied=0
        )

    def packed(self, key: str) -> Packed | None:
        """A chunk in host memory."""
        held = self.host.get(key)
        return held.item if held is not None and isinstance(held.item, Packed) else None

    def embedded(self, key: str) -> Embedded | None:
        """What a chunk can be run from, in host memory."""
        held = self.host.get(_name_of_embedded(key))
        return None if held is None else held.item

    def put(self, chunk: Chunk, cost: float) -> None:
        """A chunk comes, from a window or from below: to the device if it is worth it there, else to host memory."""
        self.in_use -= {chunk.key}
        held = Held(chunk.key, chunk.key, device_bytes(chunk), cost, chunk)
        left = self.device.offer(held, self.policy)
        for each in [held] if left is None else left:
            self._down(each)

    def promote(self, chunk: Chunk, cost: float) -> None:
        """A chunk of host memory comes to the device too, if it is worth it there."""
        for each in self.device.offer(Held(chunk.key, chunk.key, device_bytes(chunk), cost, chunk), self.policy) or ():
            self._down(each)

    def put_patch(self, held: Held) -> None:
        """A patch comes, or was served once more."""
        others = [key for key in self.patched.get(held.of, ()) if key != held.key]
        for key in others[PATCHES - 1 :]:
            self.host.drop(key)
        order = (held.key, *others[: PATCHES - 1])
        self.patched[held.of] = order
        for place, key in enumerate(order[1:], start=1):
            if (there := self.host.get(key)) is not None:
                self.host.held[key] = replace(there, share=OLDER**place)
        known = self.host.get(held.key)
        if known is None:
            self.copied += held.nbytes
            self._offer(held)
        else:
            self.host.held[held.key] = replace(known, share=1.0)

    def release(self, key: str) -> None:
        """A chunk is in use in a window, which keeps its arrays on the device."""
        self.device.drop(key)
        if key in self.host:
            self.in_use |= {key}

    def make_room(self) -> None:
        """Let more of host memory leave together with what has left already."""
        if self.leaving and self.host.limit is not None:
            for each in self.host.shrink(int(self.host.limit * (1 - SLACK)), self):
                self._out(each)

    def worth(self, held: Held) -> float:
        """Of something in host memory: a chunk that lies on the device or in a window too is not needed here."""
        if isinstance(held.item, Packed) and (held.key in self.device or held.key in self.in_use):
            return 0.0
        return self.policy.worth(held)

    def admits(self, held: Held, leaving: Sequence[Held]) -> bool:
        """Whether something comes to host memory for which these would have to leave.

        Embeddings are small: many of them come to the room of one chunk, so each is compared by the byte.
        """
        if isinstance(held.item, Embedded):
            return self.worth(held) > max((self.worth(each) for each in leaving), default=0.0)
        return outweighs(self, held, leaving)

    def _down(self, held: Held) -> None:
        """A chunk leaves the device."""
        chunk = held.item
        there = self.packed(held.key)
        if there is not None and (chunk.codec != EXACT or there.codec in (EXACT, self.codec)):
            return
        packed = Packed.of(chunk, self.codec)
        self.copied += packed.nbytes
        self._offer(Held(held.key, held.key, packed.nbytes, held.cost, packed))

    def _offer(self, held: Held) -> None:
        if isinstance(held.item, Packed):
            self.host.drop(_name_of_embedded(held.key))
        left = self.host.offer(held, self)
        for each in [held] if left is None else left:
            self._out(each)

    def _out(self, held: Held) -> None:
        """Something leaves host memory, or was not let in."""
        item: Form = held.item
        if isinstance(item, Embedded):
            return
        if not isinstance(item, Packed):
            rest = tuple(key for key in self.patched.get(held.of, ()) if key != held.key)
            self.patched.pop(held.of, None)
            if rest:
                self.patched[held.of] = rest
            self.leaving.append(held)
            return
        if held.key in self.device or held.key in self.in_use:
            self.in_use -= {held.key}
            return
        self.leaving.append(held)
        if self.embeds(item):
            kept = Embedded.of(item)
            self._offer(
                Held(_name_of_embedded(held.key), held.key, kept.nbytes, held.cost * REBUILDS, kept, held.share)
            )


def _name_of_embedded(key: str) -> str:
    return f"embedded {key}"
