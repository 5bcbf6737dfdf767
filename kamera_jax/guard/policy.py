"""The guard in serving: is a stored patch safe in the present context, decided without prefilling anything?"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from kamera_jax.arguments import check_type, real_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch, describe
from kamera_jax.compress.pooled import kept_in
from kamera_jax.errors import ModelMismatchError, StalePatchError
from kamera_jax.guard import prior
from kamera_jax.guard.calibration import Calibration, difference_of
from kamera_jax.guard.fidelity import MAX_KL
from kamera_jax.guard.staleness import Staleness, staleness
from kamera_jax.identity import lineage
from kamera_jax.inference.encode import form_patch, run_chunk
from kamera_jax.patch.size import Size
from kamera_jax.window.changes import append
from kamera_jax.window.checks import (
    check_chunk,
    check_model,
    check_pair,
    check_place,
    check_reads_bias,
    check_room,
)
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
        calibration: measured drifts of the model. Without one the prior of uncalibrated models says what a patch costs
            behind other chunks; see `kamera_jax.guard.prior`. A patch whose antecedents stand before it as they were,
            with the patches they had, is always reused; see `Window.is_as_formed`.
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
        self,
        window: Window,
        chunk: Chunk,
        patch: Patch | None,
        at: int | None = None,
        *,
        fresh: Collection[int] = (),
    ) -> Verdict:
        """Whether a chunk is safe at a place with ``patch``, or without one, without running the model.

        Where nothing has changed it costs nothing, by definition: the patch is what would be formed there. Else the
        calibration says what it costs, and where the policy has none, the prior: see `kamera_jax.guard.prior`, which
        looks at the keys and at what the patch says of attention, and sends nothing to the device.

        Args:
            window: the context.
            chunk: what is to stand there.
            patch: of the chunk; None for the chunk as it is: canonical, or with the KV that a forward gave it.
            at: the place; the window's end by default.
            fresh: entries before it that a forward is still to make right, and that count as right.

        Raises:
            ModelMismatchError, PreambleMismatchError, PatchMismatchError: they do not belong together, or the
                calibration is another model's.
            ValueError: ``at`` is no place in the window.
        """
        check_chunk(window, chunk)
        if patch is not None:
            check_pair(chunk, patch)
        place = check_place(window, at)
        calibration = self.calibration
        if calibration is not None and calibration.model != chunk.model:
            raise ModelMismatchError(
                f"the calibration is of model {calibration.model[:12]}, the chunk of {chunk.model[:12]}; calibrate "
                "this model"
            )
        if patch is None:
            return self._judge_bare(window, chunk, place)
        if window.is_as_formed(chunk, patch, at, fresh):
            return Verdict(True, 0.0, "its antecedents are those it was formed on")
        before = window.keys[:place]
        unknown = ""
        if not patch.lineage or not window.intact or not all(before) or not all(patch.antecedents):
            unknown = "without keys it is not known whether its antecedents have changed"
        elif calibration is None and patch.codec != chunk.codec:
            unknown = f"it was fitted to KV of codec {patch.codec!r}, and this is {chunk.codec!r}"
        if unknown:
            kind = "no calibration" if calibration is None else "a calibration"
            return Verdict(False, math.inf, f"{unknown}, and the policy has {kind} of this model")
        found = difference_of(patch, before)
        if calibration is None:
            return self._by_prior(found)
        if patch.sketch is None or patch.sketch.spec != calibration.sketch:
            why = f"{found.reason}; the patch keeps no {calibration.sketch}, which the calibration is for"
            return Verdict(False, math.inf, why)
        return self._measured(calibration, staleness(window, chunk, patch, at), found)

    def _measured(self, calibration: Calibration, stale: Staleness, found: prior.Difference) -> Verdict:
        """The verdict where something has changed, by what was measured of the model."""
        limit = calibration.threshold(self.max_kl)
        estimate = calibration.estimate(stale.change, found.lost, found.added, found.moved)
        accept = estimate <= limit
        what = f"attention changes by {stale.change:.3f}: {stale.reason}; expected {estimate:.3g} nats"
        if limit < 0:
            return Verdict(False, estimate, f"{what}, and by the calibration no change is safe for {self.max_kl:g}")
        side = "within" if accept else "above"
        return Verdict(accept, estimate, f"{what}, {side} the {limit:.3g} that is safe for {self.max_kl:g}")

    def _judge_bare(self, window: Window, chunk: Chunk, at: int) -> Verdict:
        """The verdict on a chunk without a patch: canonical, or with the KV that a forward gave it."""
        before = window.entries[:at]
        preamble = window.preamble.chunk.key
        here = lineage(preamble, (entry.identity for entry in before)) if window.intact else ""
        if here and chunk.lineage == here:
            return Verdict(True, 0.0, "it stands behind what it was run behind")
        if not (here and chunk.key and all(chunk.antecedents)):
            why = "it has no patch, and without a key it is not known what it was run behind"
            return Verdict(False, math.inf, why)
        if chunk.preamble != preamble:
            why = "it has no patch, and was run behind nothing, not behind the window's preamble"
            return self._priced(prior.BARE, why)
        if not chunk.conditioned:
            return self._priced(prior.expected_bare_kl(len(before)), "it has no patch, and chunks stand before it")
        if not chunk.antecedents:
            return Verdict(False, math.inf, "it has no patch, and it is not known which chunks it was run behind")
        keys = tuple(entry.chunk.key for entry in before)
        if keys == chunk.antecedents:
            why = "it has no patch, and the chunks before it have other patches or codecs than when it ran"
            return self._priced(prior.KEPT, why)
        found = prior.difference(chunk.antecedents, prior.uniform(len(chunk.antecedents)), keys)
        return self._by_prior(found)

    def _by_prior(self, found: prior.Difference) -> Verdict:
        return self._priced(prior.expected_kl(found), found.reason)

    def _priced(self, estimate: float, why: str) -> Verdict:
        """The verdict by an estimate of the prior, or by what was measured of chunks without patches."""
        if self.calibration is not None:
            estimate = max(self.calibration.bare_estimate, estimate)
            accept = self.calibration.accepts_bare(self.max_kl)
            return Verdict(accept, estimate, f"{why}; expected {estimate:.3g} nats by the calibration")
        accept = prior.accepted(estimate, self.max_kl)
        return Verdict(accept, estimate, f"{why}; expected {estimate:.3g} nats by the prior of uncalibrated models")


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
    check_reads_bias(vlm, chunk)
    check_type(patch, Patch, "patch", "what form_patch made")
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
        return append(window, kept_in(run_chunk(vlm, window, chunk)[0], window.storage)), verdict
    sketch = None if patch.sketch is None else patch.sketch.spec
    if policy.calibration is not None:
        sketch = policy.calibration.sketch
    size = Size.like(patch.factors, patch.length)
    fresh = form_patch(vlm, chunk, context=window, sketch=sketch, **size.asked)
    return append(window, chunk, fresh), verdict
