"""What a session did for its chunks, and why."""

from dataclasses import dataclass
from typing import Literal

from kamera_jax.guard.planning import Action, Step
from kamera_jax.identity import RENEWED

Operation = Literal["add", "recall", "replace"]
"""What the session was asked for."""

KEPT = 1000
"""Records that a session keeps, the latest."""


@dataclass(frozen=True)
class Served:
    """What one operation did for one chunk.

    Attributes:
        operation: what the session was asked for.
        key: of the chunk as it stands in the window.
        action: what was done: rotation, no patch, a stored patch, a fresh patch or a re-prefill; ``"nothing"`` where
            the chunk stood in the window already.
        reason: why, in words.
        estimate_kl: next-token KL, in nats, that is expected of its reuse; 0 behind a forward.
        encoded: whether its canonical KV had to be computed, all of it or the rows that changed (`kamera_jax.renew`).
        flops: FLOPs of all forwards that it took, encoding among them.
        came: whether it is the chunk that was asked for; if not, it stands behind that one.
    """

    operation: Operation
    key: str
    action: Action
    reason: str
    estimate_kl: float = 0.0
    encoded: bool = False
    flops: float = 0.0
    came: bool = True

    @property
    def reused(self) -> bool:
        """Whether no forward was run for it."""
        return not self.flops

    def __str__(self) -> str:
        """One line."""
        encoded = "encoded, " if self.encoded else ""
        return f"{self.operation} {self.key[:12]}: {encoded}{self.action.value}: {self.reason}"


def served(operation: Operation, step: Step, *, came: bool, encoding: float) -> Served:
    """The record of a step that is done; ``encoding`` is what the FLOPs were of encoding the chunk that came."""
    encoding = encoding if came else 0.0
    approximate = step.chunk.codec.startswith(RENEWED)
    return Served(
        operation=operation,
        key=step.chunk.key,
        action=step.action,
        reason=f"its KV is approximate, {step.chunk.codec}; {step.reason}" if approximate else step.reason,
        estimate_kl=step.estimate_kl,
        encoded=encoding > 0,
        flops=step.flops + encoding,
        came=came,
    )
