"""What a session has done, in numbers."""

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class SessionStats:
    """What a session has done so far.

    Attributes:
        seen: items added or put in place of others.
        encoded: of these, those that were run through the model to get their canonical KV; the others were known.
        patched: patches formed and chunks run again, a forward each.
        reused: chunks that were added or recalled and took no forward at all.
        turns: turns kept.
        evicted: entries that left the window.
        recalls: chunks brought back.
        forgotten: evicted chunks dropped to stay within the memory.
        evicted_bytes: host memory of the evicted chunks, and of patches; of tiers the device's too.
    """

    seen: int = 0
    encoded: int = 0
    patched: int = 0
    turns: int = 0
    evicted: int = 0
    recalls: int = 0
    forgotten: int = 0
    evicted_bytes: int = 0
    reused: int = 0

    @property
    def held_bytes(self) -> int:
        """The old name of `evicted_bytes`."""
        warnings.warn("SessionStats.held_bytes is now evicted_bytes", DeprecationWarning, stacklevel=2)
        return self.evicted_bytes
