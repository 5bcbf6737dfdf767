"""Planning a change of a window: what each chunk needs then, in dependency order, and doing it.

A chunk that comes back, goes, moves or is edited changes what every chunk after it would have read. Most of them need
no more than rotation, or a patch that is still stored; for the others a patch is formed anew, which changes what comes
after them in turn. That cascade stops where the estimated error falls under the budget.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kamera_jax.arguments import check_list, check_type
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.chunk import Chunk, Entry, Patch, describe
from kamera_jax.errors import StalePatchError
from kamera_jax.guard.policy import ReusePolicy, Verdict
from kamera_jax.inference.encode import form_patch, run_chunk
from kamera_jax.patch.size import Size
from kamera_jax.window.changes import append, without
from kamera_jax.window.checks import check_model
from kamera_jax.window.edits import (
    Append,
    Change,
    Changes,
    Evict,
    Pair,
    Recall,
    Reorder,
    Replace,
    applied,
)
from kamera_jax.window.window import Window

__all__ = [
    "Action",
    "Append",
    "Change",
    "Evict",
    "Pair",
    "Plan",
    "Recall",
    "Reorder",
    "Replace",
    "Step",
    "execute",
    "plan",
]


class Action(StrEnum):
    """What a chunk needs."""

    KEEP = "nothing"
    ROTATE = "rotation"
    STORED = "stored patch"
    FORM = "fresh patch"
    PREFILL = "re-prefill"


FORWARDS = (Action.FORM, Action.PREFILL)
"""Actions that run the model."""


@dataclass(frozen=True)
class Step:
    """What one chunk of the changed window needs.

    Attributes:
        chunk: what comes to stand there; the steps' order is the window's.
        stored: patches of it that may be used, its present one first.
        patch: the one in use; None for none, and in a plan for one that is still to be formed.
        action: what is done.
        estimate_kl: next-token KL, in nats, that is expected of its reuse; 0 behind a forward, infinite where nothing
            is known.
        reason: why, in words.
        flops: FLOPs of its forward; 0 without one.
        bytes: bytes of KV and patch that are read and written for it.
    """

    chunk: Chunk
    stored: tuple[Patch, ...]
    patch: Patch | None
    action: Action
    estimate_kl: float
    reason: str
    flops: float = 0.0
    bytes: int = 0

    @property
    def held(self) -> tuple[Patch, ...]:
        """The old name of `stored`."""
        warnings.warn("Step.held is now Step.stored", DeprecationWarning, stacklevel=2)
        return self.stored


@dataclass(frozen=True)
class Plan:
    """What a change of a window takes, or what it took.

    Attributes:
        steps: one for each chunk of the changed window, in its order: a chunk depends on those before it alone.
        window: the changed window, as far as the first forward that is still to be run.
        policy: the budget it keeps to.
        prefill_flops: FLOPs of running every chunk of the changed window.
    """

    steps: tuple[Step, ...]
    window: Window
    policy: ReusePolicy
    prefill_flops: float

    @property
    def flops(self) -> float:
        """FLOPs of all forwards."""
        return sum(step.flops for step in self.steps)

    @property
    def bytes(self) -> int:
        """Bytes of KV and patches that are read and written."""
        return sum(step.bytes for step in self.steps)

    @property
    def estimate_kl(self) -> float:
        """The largest KL that is expected of any step, in nats."""
        return max((step.estimate_kl for step in self.steps), default=0.0)

    def count(self, action: Action) -> int:
        """How many chunks need just this."""
        return sum(step.action is action for step in self.steps)

    def __str__(self) -> str:
        """The steps, one a line, and what they come to."""
        lines = [f"{i}: {step.chunk.key[:12]} {step.action.value}: {step.reason}" for i, step in enumerate(self.steps)]
        share = self.flops / self.prefill_flops if self.prefill_flops else 0.0
        return "\n".join([*lines, f"{share:.1%} of the FLOPs of a full prefill; {self.bytes / 2**20:.2f} MiB moved"])


def plan(
    vlm: Backbone,
    window: Window,
    change: Changes,
    *,
    policy: ReusePolicy,
    stored: Sequence[Patch] = (),
) -> Plan:
    """What every chunk needs when a window changes, judged against the present reference; the model is not run.

    A fresh patch is not known before it is formed: what stands behind one is judged here as if its neighbours were
    right already, and again by `execute`.

    Args:
        vlm: the model: its FLOPs are stated.
        window: as it stands; stays as it is.
        change: what is to happen, one after the other.
        policy: the budget, and what is done where no stored patch keeps to it.
        stored: more patches, of any chunks.

    Raises:
        ValueError: a place that there is not, or an order that is none; else see `append`.
        StalePatchError: a forward is needed, and the policy asks for an error.
    """
    check_model(vlm, window)
    check_type(policy, ReusePolicy, "policy", "kamera_jax.ReusePolicy(max_kl=0.05)")
    check_list(stored, Patch, "stored", "patches that form_patch made")
    after = applied(window.entries, change)
    kept = 0
    for old, new in zip(window.entries, after, strict=False):
        if old.chunk is not new.chunk or old.patch is not new.patch:
            break
        kept += 1
    steps = [
        Step(each.chunk, _stored(each, stored), each.patch, Action.KEEP, 0.0, "nothing before it changes")
        for each in after[:kept]
    ]
    built = without(window, range(kept, len(window.entries)))
    ready = built
    for each in after[kept:]:
        fresh = [place for place, step in enumerate(steps) if step.action in FORWARDS]
        step = _needed(vlm, built, each.chunk, _stored(each, stored), each.patch, policy, fresh)
        # The caller has its window, and the plan has `ready` from its first forward on; pools may be shared.
        lent = built is window or (built is ready and step.action in FORWARDS)
        built = append(built, each.chunk, step.patch, donate=window.mode == "materialise" and not lent)
        steps.append(step)
        if not any(step.action in FORWARDS for step in steps):
            ready = built
    total = sum(_flops(vlm, built, place) for place in range(len(after)))
    return Plan(tuple(steps), ready, policy, total)


def execute(vlm: Backbone, plan: Plan) -> Plan:
    """Do what a plan says.

    Behind a forward every chunk is judged again, on the window as it then is: the cascade goes on where a change has
    come through, and stops where the expected error is under the budget.

    Returns:
        What was done: its ``window`` is whole, and its patches are those in use, fresh ones among them.

    Raises:
        MissingInputsError: a chunk that must be run again lost its inputs.
        StalePatchError: a forward became necessary, and the policy asks for an error.
    """
    check_type(plan, Plan, "plan", "what kamera_jax.planning.plan gives")
    window = plan.window
    done = list(plan.steps[: len(plan.window.entries)])
    for step in plan.steps[len(done) :]:
        present = step.stored[0] if step.stored else None
        step = _needed(vlm, window, step.chunk, step.stored, present, plan.policy)
        if step.action is Action.PREFILL:
            chunk, _ = run_chunk(vlm, window, step.chunk)
            step = replace(step, chunk=chunk, patch=None)
        elif step.action is Action.FORM:
            step = replace(step, patch=_fresh(vlm, window, step, plan.policy))
        # The plan keeps its window.
        window = append(
            window, step.chunk, step.patch, donate=window.mode == "materialise" and window is not plan.window
        )
        done.append(step)
    return replace(plan, steps=tuple(done), window=window)


def _stored(each: Entry | Pair, stored: Sequence[Patch]) -> tuple[Patch, ...]:
    """The patches of a chunk that may be used, its present one first."""
    key = each.chunk.key
    more = [other for other in stored if key and other.chunk == key and other is not each.patch]
    return (*(() if each.patch is None else (each.patch,)), *more)


def _needed(
    vlm: Backbone,
    window: Window,
    chunk: Chunk,
    stored: tuple[Patch, ...],
    present: Patch | None,
    policy: ReusePolicy,
    fresh: Sequence[int] = (),
) -> Step:
    """What a chunk needs at a window's end, where the entries ``fresh`` are still to be made right."""
    moved = 2 * chunk.length * window.spec.token_bytes if window.mode == "materialise" else 0
    verdicts = [policy.judge(window, chunk, patch, fresh=fresh) for patch in stored] or [_unpatched(window, chunk)]
    best = min(range(len(verdicts)), key=lambda i: (not verdicts[i].accept, verdicts[i].estimate_kl))
    verdict = verdicts[best]
    patch = stored[best] if stored else None
    nbytes = moved + (0 if patch is None else patch.nbytes)
    if verdict.accept:
        action = Action.ROTATE if patch is present else Action.STORED
        return Step(chunk, stored, patch, action, verdict.estimate_kl, verdict.reason, bytes=nbytes)
    if policy.fallback == "error":
        raise StalePatchError(
            f'{describe(chunk)} needs a forward here: {verdict.reason}; choose fallback="patch" or "reprefill"'
        )
    action = Action.PREFILL if chunk.conditioned or policy.fallback == "reprefill" else Action.FORM
    flops = forward_flops(vlm, _tokens(chunk), window.tokens)
    return Step(chunk, stored, patch, action, 0.0, verdict.reason, flops=flops, bytes=nbytes)


def _unpatched(window: Window, chunk: Chunk) -> Verdict:
    """The verdict on a chunk without a patch: canonical, or with the KV that a forward gave it."""
    if chunk.lineage and chunk.lineage == window.lineage:
        return Verdict(True, 0.0, "it stands behind what it was run behind")
    if not chunk.key or not window.lineage:
        return Verdict(False, math.inf, "it has no patch, and without a key it is not known what it was run behind")
    if chunk.preamble != window.preamble.chunk.key:
        return Verdict(False, math.inf, "it has no patch, and was run behind nothing, not behind the window's preamble")
    if chunk.antecedents == window.keys:
        why = "it has no patch, and the chunks before it have other patches or codecs than when it ran"
        return Verdict(False, math.inf, why)
    return Verdict(False, math.inf, "it has no patch, and other chunks before it than it was run behind")


def _fresh(vlm: Backbone, window: Window, step: Step, policy: ReusePolicy) -> Patch:
    largest = max(step.stored, key=lambda patch: patch.nbytes, default=None)
    size = Size() if largest is None else Size.like(largest.factors, largest.length)
    sketch = None if policy.calibration is None else policy.calibration.sketch
    return form_patch(vlm, step.chunk, context=window, sketch=sketch, **size.asked)


def _flops(vlm: Backbone, window: Window, place: int) -> float:
    before = window.preamble.chunk.length + sum(_tokens(entry.chunk) for entry in window.entries[:place])
    return forward_flops(vlm, _tokens(window.entries[place].chunk), before)


def _tokens(chunk: Chunk) -> int:
    """How many tokens a forward of the chunk runs: those of its source, whatever rows of its KV are kept."""
    return chunk.length if chunk.source is None else int(chunk.source.length)
