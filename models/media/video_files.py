"""Video files as frames and their times, read by PyAV, which is an extra: ``pip install "kamera-jax[video]"``.

A file is read twice at once: its packets say when frames begin, a segment ahead of the frames that are decoded. So
neither the frames that are not taken nor the segments behind the one in work are in memory.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.items import Video
from models.media.sampling import Sampling, check_wanted, taken
from models.media.video_stream import (
    Clock,
    DamagedVideoError,
    Frames,
    FrameSizeError,
    VideoFileError,
    VideoFormatError,
    VideoReaderError,
    VideoSizeError,
    VideoTimesError,
    clock_time,
    decoded,
    timeline,
)

__all__ = [
    "SUFFIXES",
    "DamagedVideoError",
    "FileSegment",
    "FrameSizeError",
    "VideoFile",
    "VideoFileError",
    "VideoFormatError",
    "VideoReaderError",
    "VideoSizeError",
    "VideoTimesError",
    "file_segments",
    "read_video",
    "video_file",
]

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".flv", ".f4v", ".wmv", ".asf", ".mxf"),
)
"""Names of files that are taken for videos end so; `VideoFile` reads a file of any name."""


@dataclass(frozen=True)
class VideoFile:
    """A video file as an item, with the frames that are to be taken of it; a path alone leaves that to the model.

    Attributes:
        path: the file's path.
        fps: frames a second that are taken; None for what the model's preprocessing states.
        frames: so many frames of the file, or of each segment of it, instead.
    """

    path: Path
    fps: float | int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        check_wanted(self.fps, self.frames)


@dataclass(frozen=True)
class FileSegment:
    """A segment of a video file.

    Attributes:
        name: the file's name and the segment's times, for messages: ``clip.mp4, 0:04–0:08``.
        begin, end: seconds, counted from the file's first frame.
        video: the frames that are taken of those that begin in it, at their times from the file's first frame.
    """

    name: str
    begin: float | int
    end: float | int
    video: Video

    @property
    def item(self) -> Video:
        """What `kamera_jax.encode` takes of it."""
        return self.video


def video_file(item: Any) -> VideoFile | None:
    """The video file that an item is, or that a path names which ends in one of `SUFFIXES`; None of other items."""
    if isinstance(item, Path) and item.suffix.lower() in SUFFIXES:
        return VideoFile(item)
    return item if isinstance(item, VideoFile) else None


def read_video(path: Path, sampling: Sampling | None = None) -> Video:
    """The frames that are taken of a whole file, at their times from its first frame.

    Args:
        path: the file's path.
        sampling: which frames are taken.

    Raises:
        VideoFileError: a subclass, named for what is wrong with the file.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    return next(file_segments(path, math.inf, sampling)).video


def file_segments(path: Path, seconds: float | int, sampling: Sampling | None = None) -> Iterator[FileSegment]:
    """The segments of a file, one after another; each is read when it is asked for.

    A segment in which no frame begins is left out: what it shows was shown before.

    Args:
        path: the file's path.
        seconds: the length of a segment.
        sampling: which frames are taken, of each segment as of a video of its own.

    Raises:
        VideoFileError: a subclass, named for what is wrong with the file, where the segment in work has it.
        MediaFileError, FileNotFoundError: as `read_video`.
        ValueError: ``seconds`` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"a segment is {seconds} seconds long; expected a number above 0")
    sampling = sampling or Sampling()
    with closing(timeline(path)) as times, closing(decoded(path)) as shown:
        frames = Frames(path, shown)
        for clock, pts, begin, end in _grouped(times, seconds):
            video = _segment(clock, pts, end, sampling, frames)
            yield FileSegment(f"{path.name}, {clock_time(begin)}–{clock_time(end)}", begin, end, video)


def _grouped(
    times: Iterator[tuple[Clock, int, int]], seconds: float | int
) -> Iterator[tuple[Clock, list[int], float | int, float | int]]:
    """The times of each segment's frames, and when it begins and ends; the last one ends with its last frame."""
    group: list[int] = []
    number = 0
    clock = None
    duration = 0
    for clock, pts, lasting in times:
        at = 0 if seconds == math.inf else int((clock.seconds(pts) + clock.tick / 2) // seconds)
        if group and at != number:
            yield clock, group, number * seconds, (number + 1) * seconds
            group = []
        group.append(pts)
        number = at
        duration = lasting
    if clock is not None and group:
        begin = 0.0 if seconds == math.inf else number * seconds
        yield clock, group, begin, _end(clock, group, duration)


def _end(clock: Clock, pts: list[int], duration: int) -> float:
    """When the last of a file's frames ends: by its duration, else as long after it as the one before was shown."""
    if duration:
        lasting = duration * clock.tick
    elif clock.nominal:
        lasting = 1 / clock.nominal
    else:
        lasting = (pts[-1] - pts[-2]) * clock.tick if len(pts) > 1 else 1.0
    return clock.seconds(pts[-1]) + lasting


def _segment(clock: Clock, pts: list[int], end: float | int, sampling: Sampling, frames: "Frames") -> Video:
    """The frames that are taken of those that begin at ``pts``."""
    ticks = np.asarray(pts, np.int64)
    begin = clock.seconds(pts[0])
    times = (ticks - pts[0]) * clock.tick
    indices, moments = taken(times, end - begin, clock.tick, clock.nominal, sampling)
    pixels = frames.take(ticks[indices].tolist(), pts[0], clock)
    return Video(pixels, begin + moments)
