"""Planning a change of a window: what each chunk needs then, in dependency order, and doing it.

A chunk that comes back, goes, moves or is edited changes what every chunk after it would have read. Most of them need
no more than rotation, or a patch that is still stored; for the others a patch is formed anew, which changes what comes
after them in turn. That cascade stops where the estimated error falls under the budget.

`choose` picks what one chunk is served with, and `run` runs the model where that takes a forward: a session asks them
for every chunk that comes, and plans only where others stand behind it.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kamera_jax.arguments import check_list, check_type
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.chunk import Chunk, Entry, Patch, describe
from kamera_jax.compress.pooled import kept_in
from kamera_jax.errors import StalePatchError
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.handle import in_bytes
from kamera_jax.inference.encode import form_patch, run_chunk
from kamera_jax.patch.size import Size
from kamera_jax.window.changes import append, without
from kamera_jax.window.checks import check_model, check_reads_bias, is_of_rows
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
    "choose",
    "execute",
    "plan",
    "run",
]


class Action(StrEnum):
    """What a chunk needs."""

    KEEP = "nothing"
    ROTATE = "rotation"
    BARE = "no patch"
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
        present: the patch that it had before the change, or comes with.
    """

    chunk: Chunk
    stored: tuple[Patch, ...]
    patch: Patch | None
    action: Action
    estimate_kl: float
    reason: str
    flops: float = 0.0
    bytes: int = 0
    present: Patch | None = None

    def __repr__(self) -> str:
        return (
            f"<Step {self.action.name} of {describe(self.chunk)}: estimate {self.estimate_kl:.3g} nats, "
            f"{self.flops:.3g} FLOPs, {in_bytes(self.bytes)}; {self.reason}>"
        )

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

    def __repr__(self) -> str:
        counts = Counter(step.action.name for step in self.steps)
        actions = ", ".join(f"{count} {name}" for name, count in counts.items())
        return (
            f"<Plan of {len(self.steps)} steps ({actions or 'none'}): {self.flops:.3g} of {self.prefill_flops:.3g} "
            f"FLOPs of a prefill, {in_bytes(self.bytes)} read and written>"
        )

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
        Step(
            each.chunk,
            _stored(each, stored),
            each.patch,
            Action.KEEP,
            0.0,
            "nothing before it changes",
            present=each.patch,
        )
        for each in after[:kept]
    ]
    built = without(window, range(kept, len(window.entries)))
    ready = built
    for each in after[kept:]:
        fresh = [place for place, step in enumerate(steps) if step.action in FORWARDS]
        step = allowed(
            choose(vlm, built, each.chunk, _stored(each, stored), each.patch, policy=policy, fresh=fresh), policy
        )
        # The caller has its window, and the plan has `ready` from its first forward on; pools may be shared.
        lent = built is window or (built is ready and step.action in FORWARDS)
        built = append(
            built, each.chunk, step.patch, donate=window.mode == "materialise" and not lent, as_it_stood=True
        )
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
        step = choose(vlm, window, step.chunk, step.stored, step.present, policy=plan.policy)
        step = allowed(step, plan.policy)
        step = run(vlm, window, step, policy=plan.policy)
        own = window.mode == "materialise" and window is not plan.window  # which the plan keeps
        window = append(window, step.chunk, step.patch, donate=own, as_it_stood=True)
        done.append(step)
    return replace(plan, steps=tuple(done), window=window)


def _stored(each: Entry | Pair, stored: Sequence[Patch]) -> tuple[Patch, ...]:
    """The patches of a chunk that may be used, its present one first."""
    key = each.chunk.key
    own = [other for other in stored if key and other.chunk == key and is_of_rows(other, each.chunk)]
    more = [other for other in own if other is not each.patch]
    return (*(() if each.patch is None else (each.patch,)), *more)


def choose(
    vlm: Backbone,
    window: Window,
    chunk: Chunk,
    stored: Sequence[Patch] = (),
    present: Patch | None = None,
    *,
    policy: ReusePolicy,
    fresh: Sequence[int] = (),
) -> Step:
    """What a chunk is served with at a window's end; the model is not run.

    Among no patch and each stored one, that of least estimated KL is taken where the policy accepts it; otherwise what
    the policy falls back to, which takes a forward.

    Args:
        vlm: the model: its FLOPs are stated.
        window: what stands before.
        chunk: what comes.
        stored: patches of it that may be used.
        present: the one it has now.
        policy: the budget.
        fresh: entries of the window that are still to be made right, and are taken to be.

    Raises:
        ModelMismatchError, PreambleMismatchError, PatchMismatchError: see `ReusePolicy.judge`.
    """
    check_reads_bias(vlm, chunk)
    moved = 2 * chunk.length * window.spec.token_bytes if window.mode == "materialise" else 0
    candidates: list[Patch | None] = [present, *(patch for patch in stored if patch is not present)]
    if present is not None:
        candidates.append(None)
    verdicts = [policy.judge(window, chunk, patch, fresh=fresh) for patch in candidates]
    best = min(range(len(verdicts)), key=lambda i: (not verdicts[i].accept, verdicts[i].estimate_kl))
    verdict = verdicts[best]
    patch = candidates[best]
    nbytes = moved + (0 if patch is None else patch.nbytes)
    kept = tuple(stored)
    if verdict.accept:
        action = Action.ROTATE if patch is present else Action.BARE if patch is None else Action.STORED
        return Step(chunk, kept, patch, action, verdict.estimate_kl, verdict.reason, bytes=nbytes, present=present)
    action = Action.PREFILL if chunk.conditioned or policy.fallback == "reprefill" else Action.FORM
    flops = forward_flops(vlm, _tokens(chunk), window.tokens)
    return Step(chunk, kept, patch, action, 0.0, verdict.reason, flops=flops, bytes=nbytes, present=present)


def run(vlm: Backbone, window: Window, step: Step, *, policy: ReusePolicy, size: Size | None = None) -> Step:
    """The step with the forward done that it needs at a window's end; the step itself where it needs none.

    Args:
        vlm: the model.
        window: what stands before.
        step: of `choose`, for this window.
        policy: its calibration says which sketch a patch keeps.
        size: of a patch that is formed; as the largest stored one by default, where there is one.

    Raises:
        MissingInputsError: the chunk lost its inputs.
    """
    if step.action is Action.PREFILL:
        chunk, _ = run_chunk(vlm, window, step.chunk)
        return replace(step, chunk=kept_in(chunk, window.storage), patch=None)
    if step.action is not Action.FORM:
        return step
    if size is None:
        largest = max(step.stored, key=lambda patch: patch.nbytes, default=None)
        size = Size() if largest is None else Size.like(largest.factors, largest.length)
    sketch = None if policy.calibration is None else policy.calibration.sketch
    return replace(step, patch=form_patch(vlm, step.chunk, context=window, sketch=sketch, **size.asked))


def allowed(step: Step, policy: ReusePolicy) -> Step:
    """The step, unless it takes a forward where the policy asks for an error.

    Raises:
        StalePatchError: it does.
    """
    if policy.fallback == "error" and step.action in FORWARDS:
        raise StalePatchError(
            f'{describe(step.chunk)} needs a forward here: {step.reason}; choose fallback="patch" or "reprefill"'
        )
    return step


def _flops(vlm: Backbone, window: Window, place: int) -> float:
    before = window.preamble.chunk.length + sum(_tokens(entry.chunk) for entry in window.entries[:place])
    return forward_flops(vlm, _tokens(window.entries[place].chunk), before)


def _tokens(chunk: Chunk) -> int:
    """How many tokens a forward of the chunk runs: those of its source, whatever rows of its KV are kept."""
    return chunk.length if chunk.source is None else int(chunk.source.length)
