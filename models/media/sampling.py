"""Which frames of a video are taken: what the video processors of transformers take, at times that the file states."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

FPS = 2.0
"""Frames a second that are taken of a file where the model's preprocessing does not say: what the Qwen models use."""

MAX_FRAMES = 768
"""Frames that are taken of a file at most where the model's preprocessing does not say."""

UNBOUNDED = 2**31 - 1
"""For `Sampling.most`, of a processor that knows no largest number of frames."""

_EARLY = 1e-6
"""Seconds that a frame may begin after the moment at which it is looked for: times are sums of rounded numbers."""


class SamplingError(ValueError):
    """Frames to take that cannot be: a rate or a number that is not above 0, or both."""


@dataclass(frozen=True)
class Sampling:
    """How many frames are taken, evenly spread, as HF ``Qwen2VLVideoProcessor.sample_frames``.

    Attributes:
        fps: frames a second.
        frames: so many frames of each video or segment instead.
        least, most: bounds on what ``fps`` gives; a video of fewer frames gives what it has.
        multiple: the number is rounded to a multiple of this: frames of a temporal patch.
    """

    fps: float | int = FPS
    frames: int | None = None
    least: int = 1
    most: int = MAX_FRAMES
    multiple: int = 1

    def __post_init__(self) -> None:
        check_wanted(self.fps, self.frames)
        for name in ("least", "most", "multiple"):
            if getattr(self, name) < 1:
                raise SamplingError(f"{name} is {getattr(self, name)}; expected 1 at least")

    def wanting(self, fps: float | int | None = None, frames: int | None = None) -> "Sampling":
        """The same with another rate, or number of frames; None for both leaves it as it is.

        Raises:
            SamplingError: both are given, or one is not above 0.
        """
        check_wanted(fps, frames)
        if fps is None and frames is None:
            return self
        if fps is not None and frames is not None:
            raise SamplingError(f"both fps={fps} and frames={frames} are given; expected one of them")
        return replace(self, fps=self.fps if fps is None else fps, frames=frames)

    def count(self, total: int, rate: float | int) -> int:
        """How many frames are taken of ``total`` frames that follow one another at ``rate`` a second."""
        group = self.multiple
        if self.frames is not None:
            wanted = min(round(self.frames / group) * group, total)
        else:
            most = min(self.most, total) // group * group
            wanted = math.floor(min(max(total / rate * self.fps, self.least), most, total))
        return max(wanted // group * group, min(group, total))

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """Places from 0 to below ``total``, in frames: each stands for the frame at the whole number below it."""
        count = self.count(total, rate)
        return np.arange(count) * (total / count)


@dataclass(frozen=True)
class EndToEndSampling(Sampling):
    """The same from the first frame to the last one, as HF ``Qwen3VLVideoProcessor.sample_frames``."""

    def count(self, total: int, rate: float | int) -> int:
        """See `Sampling.count`; the number is not rounded to a multiple."""
        if self.frames is not None:
            return min(self.frames, total)
        return min(max(int(total / rate * self.fps), self.least), self.most, total)

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """See `Sampling.places`; each is a whole number."""
        return np.linspace(0, total - 1, self.count(total, rate)).round()


@dataclass(frozen=True)
class UniformSampling(EndToEndSampling):
    """The same from the first frame on, each the first of its part, as HF ``BaseVideoProcessor.sample_frames``."""

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """See `Sampling.places`; each is a whole number."""
        count = self.count(total, rate)
        return (np.arange(count) * total // count).astype(np.float64)


@dataclass(frozen=True)
class ShiftedSampling(Sampling):
    """The same from a first frame on, as HF ``InternVLVideoProcessor.sample_frames``.

    Attributes:
        shift: frames before the first one that is taken; of a shorter video the last frame is. None for half of the
            distance between two, so that each stands for the middle of its part.
    """

    shift: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift is not None and not 0 <= self.shift < math.inf:
            raise SamplingError(f"shift is {self.shift}; expected frames before the first one, 0 at least")

    def count(self, total: int, rate: float | int) -> int:
        """See `Sampling.count`; the number is not rounded to a multiple, and fewer stand behind a long shift."""
        start, step = self._steps(total, rate)
        return max(1, min(round(total / step), math.ceil((total - start) / step)))

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """See `Sampling.places`."""
        start, step = self._steps(total, rate)
        return start + np.arange(self.count(total, rate)) * step

    def _steps(self, total: int, rate: float | int) -> tuple[float, float]:
        """The first place, and the distance between two."""
        wanted = int(total / rate * self.fps) if self.frames is None else self.frames
        step = total / (min(max(wanted, self.least), self.most, total) if self.frames is None else min(wanted, total))
        return (step / 2 if self.shift is None else float(min(self.shift, total - 1))), step


@dataclass(frozen=True)
class TrimmedSampling(Sampling):
    """The same from end to end, or of a long video from a second on to a second before its end.

    As HF ``SmolVLMVideoProcessor.sample_frames``, by which a video is long where two seconds less than it are more than
    ``most`` times ``fps``.
    """

    def count(self, total: int, rate: float | int) -> int:
        """See `Sampling.count`; the number is not rounded to a multiple."""
        return len(self.places(total, rate))

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """See `Sampling.places`; each is a whole number."""
        seconds = total / rate
        most = self.most if self.frames is None else self.frames
        wanted = max(min(round(self.fps * seconds), most), 1) if self.frames is None else min(self.frames, total)
        first = 0
        last = total - 1
        if seconds - 2 > most * self.fps:
            first = int(rate)
            last = min(int(total - rate), total - 1)
        if first >= last:
            first = 0
            last = total - 1
        return np.unique(np.floor(np.linspace(first, last, wanted)))


def check_wanted(fps: float | int | None, frames: int | None) -> None:
    """Check what a caller asks for.

    Raises:
        SamplingError: one is not above 0.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise SamplingError(f"fps is {fps}; expected a finite number of frames a second, above 0")
    if frames is not None and frames < 1:
        raise SamplingError(f"frames is {frames}; expected 1 at least")


def taken(
    times: Float64[np.ndarray, " n"], end: float | int, tick: float, nominal: float | None, sampling: Sampling
) -> tuple[Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Which of some frames are taken, and the moments that they stand for, from the first frame's time.

    Where the frames follow one another at a constant rate, they are those that transformers takes by their numbers.
    Where they do not, the frame that is shown at a moment stands for it, and for the next one too if it is still shown
    then.

    Args:
        times: seconds at which the frames begin, rising from 0.
        end: the time at which the last one ends.
        tick: seconds of the file's clock, to which the times are rounded.
        nominal: frames a second, as the file states it.
        sampling: how many are taken.
    """
    total = len(times)
    rate = constant_rate(times, tick, nominal)
    if rate is not None:
        places = sampling.places(total, rate)
        # Through float32, as in transformers, whose last bit decides where a place is all but a whole number.
        indices = np.minimum(places.astype(np.float32).astype(np.int64), total - 1)
        return indices, places / rate
    rate = total / end
    moments = sampling.places(total, rate) / rate
    return np.searchsorted(times, moments + _EARLY, side="right") - 1, moments


def constant_rate(times: Float64[np.ndarray, " n"], tick: float, nominal: float | None) -> float | None:
    """Frames a second where all times are those of one rate, within the file's clock; None where they are not."""
    total = len(times)
    if total == 1:
        return nominal or 1.0
    for rate in (nominal, (total - 1) / times[-1]):
        if rate and np.abs(times - np.arange(total) / rate).max() <= min(1.01 * tick, 0.4 / rate):
            return float(rate)
    return None
