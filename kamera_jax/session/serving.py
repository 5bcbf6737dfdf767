"""What a session serves a chunk with: what it has of it where the policy finds that safe, or a forward."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch, describe
from kamera_jax.errors import MissingInputsError
from kamera_jax.guard.planning import FORWARDS, Action, Step, allowed, choose, run
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.patch.size import Size
from kamera_jax.window.changes import append
from kamera_jax.window.checks import check_reads_bias, is_of_rows
from kamera_jax.window.window import Window


class Coming(NamedTuple):
    """A chunk that comes to stand at a window's end.

    Attributes:
        chunk: the chunk.
        present: the patch that it has in the session's window.
        stored: other patches of it.
        patch: whether it may be patched at all; a patch of its KV is what it is served with, whatever stands before.
        new: whether the caller gave it, and not a key to recall.
    """

    chunk: Chunk
    present: Patch | None = None
    stored: tuple[Patch, ...] = ()
    patch: bool | Patch = True
    new: bool = False


def standing(window: Window, place: int) -> Coming:
    """An entry of a window, to be served again; one that stands without a patch behind others is to stay without."""
    entry = window.entries[place]
    return Coming(entry.chunk, entry.patch, patch=entry.patch is not None or not place or entry.chunk.conditioned)


class Serving:
    """How a session serves chunks: with its model, its policy, and patches of one size."""

    def __init__(self, vlm: Backbone, policy: ReusePolicy | None, rank: int | None) -> None:
        """Without a policy the default one, with the model's own calibration where it has one."""
        self._vlm = vlm
        self.policy = ReusePolicy(calibration=getattr(vlm, "calibration", None)) if policy is None else policy
        self._size = Size(rank=rank)

    def steps(self, window: Window, coming: Sequence[Coming], *, keep: Window) -> tuple[Window, list[Step]]:
        """The window with all but the last of what comes, one behind the other, and what was done for each of them.

        Args:
            window: what stands before.
            coming: at least one.
            keep: a window that is left alone, though it may be the same.
        """
        done = [self.step(window, coming[0])]
        for each in coming[1:]:
            own = window.mode == "materialise" and window is not keep  # in place, pools are shared
            window = append(window, done[-1].chunk, done[-1].patch, donate=own)
            done.append(self.step(window, each))
        return window, done

    def step(self, window: Window, coming: Coming) -> Step:
        """What a chunk is served with at a window's end, its forward done where it takes one.

        Raises:
            MissingInputsError: it takes one, and the chunk was kept without its source.
            StalePatchError: it takes one, and the policy asks for an error.
        """
        chunk = coming.chunk
        check_reads_bias(self._vlm, chunk)
        if isinstance(coming.patch, Patch):
            verdict = self.policy.judge(window, chunk, coming.patch)
            why = "it was found with this patch"
            held = (coming.patch,)
            return Step(chunk, held, coming.patch, Action.STORED, verdict.estimate_kl, why, bytes=coming.patch.nbytes)
        if not coming.patch or (chunk.conditioned and (coming.new or self.policy.fallback == "patch")):
            why = "no patch was asked for" if not coming.patch else "it is not canonical, and stands as it was run"
            estimate = self.policy.judge(window, chunk, None).estimate_kl
            return Step(chunk, (), None, Action.BARE, estimate, why)
        stored = (patch for patch in coming.stored if is_of_rows(patch, chunk))
        known = (*(() if coming.present is None else (coming.present,)), *stored)
        step = choose(self._vlm, window, chunk, known, coming.present, policy=self.policy)
        if step.action not in FORWARDS:
            return step
        if coming.new and not known:  # nothing of it can be stale
            step = replace(step, action=Action.FORM, reason="no patch of it is stored")
        else:
            step = allowed(step, self.policy)
        if chunk.source is None:
            raise MissingInputsError(
                f"{describe(chunk)} needs a forward here ({step.reason}), and was kept without its source; encode it "
                "anew, or bring it with patch=False"
            )
        return run(self._vlm, window, step, policy=self.policy, size=self._size)
