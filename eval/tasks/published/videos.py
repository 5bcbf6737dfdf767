"""Parts of video files, as chunks: so many frames of a stretch of time, cut into segments."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.media.sampling import Sampling
from models.media.video_files import read_video

EARLY = 1e-3
"""Frames that a moment may lie beside the one that it is meant for: times are rounded."""


@dataclass(frozen=True)
class Stretch(Sampling):
    """So many frames, evenly spread over a part of the file.

    Attributes:
        begin, end: of the part, seconds from the file's first frame.
    """

    begin: float | int = 0
    end: float | int = float("inf")

    def places(self, total: int, rate: float | int) -> Float64[np.ndarray, " n"]:
        """See `Sampling.places`."""
        last = max(math.ceil(min(float(self.end) * rate - EARLY, total)), 1)
        first = max(min(math.floor(float(self.begin) * rate + EARLY), last - 1), 0)
        count = min(self.frames or 1, last - first)
        return first + np.arange(count) * ((last - first) / count)


def segments(
    path: Path, count: int, frames: int, *, begin: float | int = 0, end: float | int = float("inf"), still: bool
) -> list[Any]:
    """A stretch of a video file as items, in order.

    Args:
        path: the file.
        count: how many segments, at most: each has a frame, and two where there are enough.
        frames: of all together.
        begin, end: of the stretch, seconds from the file's first frame.
        still: whether each frame is an item, an image, in place of the segments.
    """
    video = read_video(path, Stretch(frames=frames, begin=begin, end=end))
    if still:
        return list(video.frames)
    total = len(video.frames)
    count = max(1, min(count, total // 2 if total > 3 else total))
    borders = [round(i * total / count) for i in range(count + 1)]
    return [video.between(first, last) for first, last in zip(borders, borders[1:], strict=False)]
