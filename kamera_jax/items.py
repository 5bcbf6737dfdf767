"""Plain data that users hand in: what is neither text nor a single image."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt8


class VideoError(ValueError):
    """A video that cannot be: no frames, frames of another kind, or times that do not rise."""


class AudioError(ValueError):
    """A sound that cannot be: no samples, samples of another kind, or a rate that is none."""


@dataclass(frozen=True, eq=False, init=False)
class Video:
    """Frames and the times at which they are shown.

    Attributes:
        frames: RGB, uint8[n, H, W, 3].
        times: seconds, f32[n], each above the one before.
    """

    frames: UInt8[np.ndarray, "n H W 3"]
    times: Float32[np.ndarray, " n"]

    def __init__(self, frames: object, times: object) -> None:
        """Check frames and times.

        Raises:
            VideoError: there is no frame or no pixel, the frames are not uint8[n, H, W, 3], or the times are not n
                finite numbers that rise.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
            raise VideoError(
                f"the frames are {frames.dtype}{list(frames.shape)}; expected uint8[n, H, W, 3], with one frame and "
                "one pixel at least: rows, columns, and red, green and blue of each frame"
            )
        try:
            seconds = np.asarray(times, np.float32)
        except (TypeError, ValueError) as error:
            raise VideoError(f"the times cannot be read as numbers ({error}); expected seconds, f32[n]") from error
        if seconds.shape != (len(frames),):
            raise VideoError(
                f"the times are of shape {list(seconds.shape)} for {len(frames)} frames; expected one for each frame"
            )
        if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
            raise VideoError("the times do not rise; expected finite seconds, each above the one before")
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "times", seconds)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"<Video {count} frames of {height} x {width}, {self.times[0]:g} to {self.times[-1]:g} s>"

    @classmethod
    def at_rate(cls, frames: np.ndarray, fps: float | int) -> "Video":
        """A video whose frames follow one another at ``fps`` a second, the first at 0.

        Raises:
            VideoError: as for `Video`, or ``fps`` is not a finite number above 0.
        """
        if not 0 < fps < float("inf"):
            raise VideoError(f"fps is {fps}; expected a finite number of frames a second, above 0")
        return cls(frames, np.arange(len(frames)) / fps)

    def segments(self, seconds: float | int) -> "Iterator[Video]":
        """Parts of so many seconds, counted from the first frame; one in which there is no frame is left out.

        Raises:
            VideoError: ``seconds`` is not above 0.
        """
        if not seconds > 0:
            raise VideoError(f"a segment is {seconds} seconds long; expected a number above 0")
        since = self.times.astype(np.float64) - float(self.times[0])
        # A time in f32 may lie this far below the one that it stands for.
        numbers = np.floor((since + np.spacing(np.abs(self.times).max())) / seconds)
        borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(since)]
        for first, last in pairwise(borders):
            yield self.between(first, last)

    def between(self, first: int, last: int) -> "Video":
        """Frames ``first`` to ``last`` - 1, with their times."""
        return Video(self.frames[first:last], self.times[first:last])


LOUDEST = 64.0
"""A sample of more than this is taken for an integer that was not divided by what its format has at most."""


@dataclass(frozen=True, eq=False, init=False)
class Audio:
    """Sound of one channel.

    Attributes:
        samples: from about -1 to 1, f32[n].
        rate: samples a second.
    """

    samples: Float32[np.ndarray, " n"]
    rate: int

    def __init__(self, samples: object, rate: object) -> None:
        """Check samples and rate.

        Raises:
            AudioError: there is no sample, the samples are not finite floating-point numbers [n], some are so large
                that they are integers as a file has them, or the rate is no whole number above 0.
        """
        given = np.asarray(samples)
        if given.dtype.kind != "f" or given.ndim != 1 or not given.size:
            advice = ""
            if given.dtype.kind in "iu":
                advice = "; divide integers by what their format has at most, such as 32768"
            elif given.ndim == 2:
                advice = "; take the mean of its channels"
            raise AudioError(
                f"the samples are {given.dtype}{list(given.shape)}; expected floats [n] from about -1 to 1, one at "
                f"least{advice}"
            )
        given = given.astype(np.float32, copy=False)
        largest = float(np.abs(given).max())
        if not largest <= LOUDEST:
            raise AudioError(
                f"the largest of the samples is {largest:g}; expected finite numbers from about -1 to 1: divide "
                "integers by what their format has at most, such as 32768"
            )
        if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 0 < rate < 2**31:
            raise AudioError(f"the rate is {rate!r:.80}; expected a whole number of samples a second, above 0")
        object.__setattr__(self, "samples", given)
        object.__setattr__(self, "rate", int(rate))

    def __repr__(self) -> str:
        return f"<Audio {self.seconds:.2f} s, {self.rate} samples a second>"

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate
