"""The guard in serving: is a stored patch safe in the present context, decided without prefilling anything?"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from kamera_jax.arguments import check_type, real_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Match, Patch, describe
from kamera_jax.errors import ModelMismatchError, StalePatchError
from kamera_jax.guard.calibration import Calibration
from kamera_jax.guard.fidelity import MAX_KL
from kamera_jax.guard.staleness import staleness
from kamera_jax.inference.encode import form_patch, run_chunk
from kamera_jax.patch.size import Size
from kamera_jax.window.changes import append
from kamera_jax.window.checks import check_chunk, check_model, check_pair, check_place, check_room
from kamera_jax.window.window import Window

Fallback = Literal["patch", "reprefill", "error"]
"""What to do with a patch that is not safe: form it anew, keep the chunk's KV as run in place, or raise."""


@dataclass(frozen=True)
class Verdict:
    """Whether a patch may be reused.

    Attributes:
        accept: it may.
        estimate_kl: what reusing it is expected to cost, in nats; infinite where nothing is known.
        reason: why, in words.
    """

    accept: bool
    estimate_kl: float
    reason: str


@dataclass(frozen=True)
class ReusePolicy:
    """When a stored patch is reused, and what is done otherwise.

    Attributes:
        max_kl: nats of next-token KL that reuse may cost.
        fallback: ``"patch"`` forms a fresh patch on the window as it stands, ``"reprefill"`` keeps the chunk's KV as
            run there, ``"error"`` raises StalePatchError.
        calibration: of the model; without one, or where it finds no change safe, only a patch whose antecedents stand
            before it as they were, with the patches they had, is reused; see `Window.is_as_formed`.
    """

    max_kl: float = MAX_KL
    fallback: Fallback = "patch"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_kl", real_number(self.max_kl, "max_kl"))
        kinds = (Calibration, type(None))
        check_type(self.calibration, kinds, "calibration", "vlm.calibration, or what kamera_jax.calibrate gives")
        if not self.max_kl > 0:
            raise ValueError(f"max_kl is a budget in nats, above 0; got {self.max_kl}")
        if self.fallback not in get_args(Fallback):
            raise ValueError(f"fallback must be one of {get_args(Fallback)}; got {self.fallback!r}")

    def judge(
        self, window: Window, chunk: Chunk, patch: Patch, at: int | None = None, *, fresh: Collection[int] = ()
    ) -> Verdict:
        """Whether ``patch`` is safe for ``chunk`` at a place, without running the model.

        Args:
            window: the context.
            chunk: what is to stand there.
            patch: of the chunk.
            at: the place; the window's end by default.
            fresh: entries before it that a forward is still to make right, and that count as right.

        Raises:
            ModelMismatchError, PreambleMismatchError, PatchMismatchError: they do not belong together, or the
                calibration is another model's.
            ValueError: ``at`` is no place in the window.
        """
        check_chunk(window, chunk)
        check_pair(chunk, patch)
        before = window.keys[: check_place(window, at)]
        calibration = self.calibration
        if calibration is not None and calibration.model != chunk.model:
            raise ModelMismatchError(
                f"the calibration is of model {calibration.model[:12]}, the chunk of {chunk.model[:12]}; calibrate "
                "this model"
            )
        limit = -1.0
        if calibration is None:
            unknown = "the policy has no calibration of this model"
        elif patch.sketch is None or patch.sketch.spec != calibration.sketch:
            unknown = f"the patch keeps no {calibration.sketch}, which the calibration is for"
        else:
            limit = calibration.threshold(self.max_kl)
            unknown = f"by the calibration no change is safe for {self.max_kl:g} nats"
        if calibration is None or limit < 0:
            if window.is_as_formed(chunk, patch, at, fresh):
                return Verdict(True, 0.0, "its antecedents are those it was formed on")
            same = patch.match(before) is Match.EXACT
            changed = "its antecedents have changed"
            if not patch.lineage or not window.lineage:
                changed = "without keys it is not known whether its antecedents have changed"
            elif patch.codec != chunk.codec:
                changed = f"it was fitted to KV of codec {patch.codec!r}, and this is {chunk.codec!r}"
            elif same:
                changed = "its antecedents are the same but not their patches or codecs"
            return Verdict(False, float("inf"), f"{changed}, and {unknown}")
        found = staleness(window, chunk, patch, at)
        estimate = calibration.estimate(found.change)
        accept = found.change <= limit
        reason = (
            f"attention changes by {found.change:.3f}, {'within' if accept else 'above'} the {limit:.3f} "
            f"that is safe for {self.max_kl:g} nats (expected: {estimate:.3g}): {found.reason}"
        )
        return Verdict(accept, estimate, reason)


def append_checked(
    vlm: Backbone, window: Window, chunk: Chunk, patch: Patch, policy: ReusePolicy
) -> tuple[Window, Verdict]:
    """The window with a chunk at its end: with its patch where the policy accepts it, else as the policy falls back.

    Returns:
        The window, whose last entry shows what was done, and the verdict.

    Raises:
        StalePatchError: the patch is refused, and the fallback is ``"error"``.
        MissingInputsError: it is refused, and the chunk lost the inputs that the fallback runs again.
        WindowFullError: too few free slots. Else as `ReusePolicy.judge`.
    """
    check_model(vlm, window)
    check_chunk(window, chunk)
    check_type(policy, ReusePolicy, "policy", "kamera_jax.ReusePolicy(max_kl=0.05)")
    check_room(window, chunk.length, chunk.advance)
    verdict = policy.judge(window, chunk, patch)
    if verdict.accept:
        return append(window, chunk, patch), verdict
    if policy.fallback == "error":
        raise StalePatchError(
            f"the patch of {describe(chunk)} is not safe here: {verdict.reason}; form it anew on this window, or "
            'choose fallback="patch" or "reprefill"'
        )
    if policy.fallback == "reprefill":
        return append(window, run_chunk(vlm, window, chunk)[0]), verdict
    sketch = None if patch.sketch is None else patch.sketch.spec
    if policy.calibration is not None:
        sketch = policy.calibration.sketch
    size = Size.like(patch.factors, patch.length)
    fresh = form_patch(vlm, chunk, context=window, sketch=sketch, **size.asked)
    return append(window, chunk, fresh), verdict
