"""The streams of video files through PyAV: when frames begin, by their packets, and the frames, decoded and upright."""

import heapq
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from models.media import pictures
from models.media.files import MediaFileError, opened
from models.media.video_boxes import missing_bytes

FORMATS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf"),
    *("h264", "hevc", "m4v", "mpegvideo"),
)
"""The demuxers that may open a file, whatever it is called. None of them opens another file, as a playlist does."""

MAX_BYTES = 2**30
"""The frames that are taken of a file, or of a segment of one, have no more bytes than this."""

INSTALL = 'pip install "kamera-jax[video]"'

_REORDERED = 64
"""Packets in which frames may come in another order than they are shown; codecs reorder within 16."""


class VideoFileError(MediaFileError):
    """A file that cannot be read as a video."""


class VideoReaderError(VideoFileError):
    """PyAV, which reads video files, is not installed, or cannot be imported."""


class VideoFormatError(VideoFileError):
    """A file that is none of the formats of video files that are read, or holds no video: sound alone."""


class DamagedVideoError(VideoFileError):
    """A video file that breaks off, or whose frames cannot be decoded."""


class VideoSizeError(VideoFileError):
    """Frames of more pixels than are read, or more frames than are held in memory."""


class FrameSizeError(VideoFileError):
    """Frames whose size changes within a video, or a segment of it."""


class VideoTimesError(VideoFileError):
    """Frames without times, or whose times fall back."""


def clock_time(seconds: float | int) -> str:
    """Seconds as people write them: ``0:04``, ``1:02:03``, ``0:02.5``."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    part = f"{rest // 100:02d}" + f".{rest % 100:02d}".rstrip("0").rstrip(".")
    return f"{hours}:{minutes:02d}:{part}" if hours else f"{minutes}:{part}"


@dataclass(frozen=True)
class Clock:
    """A stream's clock: when its first frame begins, in ticks; a tick's seconds; and frames a second, as it states."""

    first: int
    tick: float
    nominal: float | None

    def seconds(self, pts: Any) -> Any:
        """The time of ticks, an int or an array of them, from the first frame's."""
        return (pts - self.first) * self.tick


@cache
def _package() -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoReaderError(f"reading video files takes the package av ({error}): {INSTALL}") from error
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its video stream; nothing is decoded yet but what finds the stream's size.

    Raises:
        VideoFileError: it cannot be read; the message says why.
    """
    av = _package()
    bound = {"max_pixels": str(pictures.MAX_PIXELS)}
    with opened(path) as file:
        if missing := missing_bytes(file):
            raise DamagedVideoError(
                f"{path} breaks off: {missing} bytes are lacking at its end; get it again, or keep what is there by "
                "ffmpeg -i FILE -c copy OTHER"
            )
        try:
            allowed = {**bound, "format_whitelist": ",".join(FORMATS)}
            container = av.open(file, options=allowed, metadata_errors="replace")  # a title need not be UTF-8
        except (av.error.FFmpegError, OSError) as error:
            raise VideoFormatError(
                f"{path} is no video file that can be read ({_reason(error)}); expected MP4, MOV, WebM, Matroska, AVI, "
                "MPEG, Ogg, FLV or WMV: is it whole, and is it a video?"
            ) from error
        with container:
            # A cover among sound is a stream of one picture.
            streams = [each for each in container.streams.video if "attached_pic" not in str(each.disposition)]
            if not streams:
                others = ", ".join(sorted({each.type for each in container.streams})) or "none"
                hint = ": of its sound hand in models.AudioFile(path)" if container.streams.audio else ""
                raise VideoFormatError(f"{path} has no video stream (its streams are: {others}); expected one{hint}")
            stream = streams[0]
            context = stream.codec_context
            if context is None:
                raise VideoFormatError(f"{path} is of a codec that this PyAV does not decode; convert it to H.264")
            pixels = context.width * context.height
            if not 0 < pixels <= pictures.MAX_PIXELS:
                size = f"are {context.width} x {context.height} pixels" if pixels else "have no size that can be found"
                raise VideoSizeError(
                    f"the frames of {path} {size}, expected {pictures.MAX_PIXELS} pixels at most; shrink them, or raise"
                    " models.media.pictures.MAX_PIXELS if you trust where the file comes from"
                )
            context.options = bound
            context.thread_type = "AUTO"
            yield container, stream


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def timeline(path: Path) -> Generator[tuple[Clock, int, int], None, None]:
    """When frames begin and how long they last, in ticks, in the order in which they are shown, before any is decoded.

    Raises:
        VideoTimesError: frames have no times, or they fall back.
        VideoFileError: see `_opened`.
    """
    with _opened(path) as (container, stream):
        first = list(islice(_packets(path, container, stream), _REORDERED))
        timed = bool(first) and all(pts is not None for pts, _ in first)
    with closing(_of_packets(path) if timed else _of_frames(path)) as frames:
        clock = None
        last = -1
        for each, pts, duration in frames:
            if clock is None:
                rate = each.average_rate or each.guessed_rate
                clock = Clock(pts, float(each.time_base), float(rate) if rate else None)
            elif pts == last:  # two packets of one frame
                continue
            elif pts < last:
                raise _fallen(path, clock.seconds(last))
            last = pts
            yield clock, pts, duration
        if clock is None:
            raise DamagedVideoError(f"{path} has a video stream without frames; expected one frame at least")


def _fallen(path: Path, seconds: float) -> VideoTimesError:
    return VideoTimesError(
        f"{path}: the times fall back at {clock_time(seconds)}; cut the file there, or give its frames times that rise:"
        " ffmpeg -i FILE -fps_mode vfr OTHER"
    )


def _of_packets(path: Path) -> Generator[tuple[Any, int, int], None, None]:
    """Stream, time and duration of each packet, put in the order of the times; of what a decoder drops, none."""
    waiting: list[tuple[int, int]] = []
    first = None
    last = None
    with _opened(path) as (container, stream):
        for pts, duration in _packets(path, container, stream):
            if pts is None:  # a second field
                continue
            if first is not None and last is not None and pts < last:
                raise _fallen(path, float((max(waiting)[0] - first) * stream.time_base))
            heapq.heappush(waiting, (pts, duration))
            if len(waiting) > _REORDERED:
                last, duration = heapq.heappop(waiting)
                first = last if first is None else first
                yield stream, last, duration
        while waiting:
            yield stream, *heapq.heappop(waiting)


def _packets(path: Path, container: Any, stream: Any) -> Iterator[tuple[int | None, int]]:
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                yield packet.pts, packet.duration or 0
    except (_package().error.FFmpegError, OSError) as error:
        raise DamagedVideoError(f"{path} cannot be read to its end ({_reason(error)}); is it whole?") from error


def _of_frames(path: Path) -> Generator[tuple[Any, int, int], None, None]:
    """The same by decoding, where packets have no times: containers that state when packets are decoded alone."""
    with _opened(path) as (container, stream):
        for number, frame in enumerate(_decoding(path, container, stream)):
            if frame.pts is None:
                raise VideoTimesError(
                    f"{path}: frame {number} has no time, as in a stream without a container; give the frames times: "
                    "ffmpeg -fflags +genpts -r RATE -i FILE -c copy OTHER.mp4"
                )
            yield stream, frame.pts, frame.duration or 0


def decoded(path: Path) -> Generator[Any, None, None]:
    """The file's frames, in the order in which they are shown."""
    with _opened(path) as (container, stream):
        yield from _decoding(path, container, stream)


def _decoding(path: Path, container: Any, stream: Any) -> Generator[Any, None, None]:
    last = None
    try:
        for frame in container.decode(stream):
            last = frame.time
            yield frame
    except (_package().error.FFmpegError, OSError) as error:
        place = "its first frame" if last is None else f"the frames behind {clock_time(last)}"
        raise DamagedVideoError(f"{path}: {place} cannot be decoded ({_reason(error)}); is the file whole?") from error


class Frames:
    """The frames of a file, from which those of one segment after another are taken."""

    def __init__(self, path: Path, decoded: Iterator[Any]) -> None:
        self._path = path
        self._decoded = decoded
        self._current = None

    def take(self, wanted: list[int], first: int, clock: Clock) -> np.ndarray:
        """Frames [n, H, W, 3] that are shown at the times ``wanted``, which do not fall.

        Args:
            wanted: in ticks.
            first: the time at which the segment's first frame begins; frames before it are passed over.
            clock: the stream's.

        Raises:
            VideoFileError: a subclass, named for what is wrong.
        """
        pixels: np.ndarray | None = None
        size = None
        before = None
        frame = self._current or self._next(clock, wanted[0])
        while frame.pts < first:
            frame = self._next(clock, wanted[0])
        for place, pts in enumerate(wanted):
            while True:
                if size not in (None, (frame.width, frame.height)):
                    raise FrameSizeError(
                        f"{self._path}: the frames change from {size[0]} x {size[1]} to {frame.width} x {frame.height} "
                        f"pixels at {clock_time(clock.seconds(frame.pts))}; expected one size: cut the file there"
                    )
                size = (frame.width, frame.height)
                if frame.pts >= pts:
                    break
                before = frame
                frame = self._next(clock, pts)
            # A packet need not give a frame: what was shown before it is shown then.
            shown = before if frame.pts > pts and before is not None else frame
            image = self._pixels(shown, clock)
            if pixels is None:
                self._check_bytes(len(wanted), image)
                pixels = np.empty((len(wanted), *image.shape), np.uint8)
            pixels[place] = image
        assert pixels is not None
        return pixels

    def _next(self, clock: Clock, pts: int) -> Any:
        self._current = next(self._decoded, None)
        if self._current is None:
            raise DamagedVideoError(
                f"{self._path}: no frame can be decoded at {clock_time(clock.seconds(pts))}, where one begins; is the "
                "file whole?"
            )
        return self._current

    def _check_bytes(self, count: int, image: np.ndarray) -> None:
        if count * image.nbytes > MAX_BYTES:
            raise VideoSizeError(
                f"{self._path}: {count} frames of {image.shape[1]} x {image.shape[0]} pixels are {count * image.nbytes}"
                f" bytes, expected {MAX_BYTES} at most: take fewer of them, VideoFile(path, fps=…) or frames=…, or read"
                " the file in segments, encode_all(…, segment=4.0)"
            )

    def _pixels(self, frame: Any, clock: Clock) -> np.ndarray:
        """The frame as uint8[H, W, 3], upright."""
        if frame.is_corrupt:
            raise DamagedVideoError(
                f"{self._path}: the frame at {clock_time(clock.seconds(frame.pts))} is damaged; is the file whole?"
            )
        return upright(frame.to_ndarray(format="rgb24"), _matrix(frame), self._path)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """The part of a frame's display matrix that turns and flips it: x is shown at a x + c y, y at b x + d y."""
    data = frame.side_data.get(_package().sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data)[:20], np.int32).tolist()
    return a, b, c, d


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int], path: Path) -> np.ndarray:
    """Pixels as a player shows them: turned and flipped as the file's display matrix states.

    Raises:
        VideoFileError: it turns by another angle than a multiple of 90 degrees.
    """
    a, b, c, d = matrix
    if a and d and not (b or c):
        rows = -1 if d < 0 else 1
        columns = -1 if a < 0 else 1
    elif b and c and not (a or d):
        pixels = pixels.swapaxes(0, 1)
        rows = -1 if b < 0 else 1
        columns = -1 if c < 0 else 1
    else:
        raise VideoFileError(
            f"{path} is shown turned by its display matrix {list(matrix)}; expected multiples of 90 degrees: turn its "
            "frames, and hand them in as a kamera_jax.Video"
        )
    return pixels[::rows, ::columns]
