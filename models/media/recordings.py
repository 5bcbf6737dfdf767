"""Recordings and parts of them: a part is cut where the tower sees no further, and normalised with the whole.

The floor of a log-mel spectrogram is that of the loudest band of the whole recording, so a part alone would be read
otherwise than in its place. A long recording is therefore read twice, and never held whole: once for its loudest band,
once for its parts.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from kamera_jax.items import Audio
from models.media import mel
from models.media.audio_stream import AudioLengthError, DamagedAudioError, at_rate, decoded
from models.media.video_stream import clock_time

SUFFIXES = (
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac"),
    *(".aif", ".aiff", ".wma", ".au", ".caf", ".mka"),
)
"""Names of files that are taken for recordings end so; `AudioFile` reads the sound of a file of any name."""

FRAMES = mel.RATE // mel.HOP
"""Frames of mel in a second."""

LEAST = 3
"""Frames that give a token at least, where an audio tower does not say otherwise."""

_AFTER = mel.EDGE - mel.HOP
"""Samples behind a part that its last frame reads."""


@dataclass(frozen=True)
class AudioFile:
    """The sound of a file as an item; a path does where its name ends in one of `SUFFIXES`, and of a video not.

    Attributes:
        path: the file's path.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))


@dataclass(frozen=True, eq=False, repr=False)
class AudioPart:
    """A part of a recording, with the samples around it that its frames read.

    Attributes:
        samples: f32[n], 16,000 a second; `mel.EDGE` of them stand before the part if it is not the first.
        begin: frames of the recording before it.
        frames: its own.
        last: whether the samples go to the recording's end.
        loudest: of the bands of the whole recording, as a power of ten.
    """

    samples: Float32[np.ndarray, " n"]
    begin: int
    frames: int
    last: bool
    loudest: float

    def __repr__(self) -> str:
        begin, end = (clock_time(each / FRAMES) for each in (self.begin, self.begin + self.frames))
        return f"<AudioPart {begin}–{end} of a recording>"

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.frames / FRAMES

    def between(self, first: int, last: int) -> "AudioPart":
        """Its frames ``first`` to ``last`` - 1, as a part of the same recording."""
        lead = mel.EDGE if self.begin else 0
        start = max(0, lead + first * mel.HOP - mel.EDGE)
        ends = last >= self.frames
        end = len(self.samples) if ends else lead + last * mel.HOP + _AFTER
        frames = min(last, self.frames) - first
        return AudioPart(self.samples[start:end], self.begin + first, frames, self.last and ends, self.loudest)


@dataclass(frozen=True)
class RecordedSegment:
    """A segment of a recording.

    Attributes:
        name: the file's name and the segment's times, for messages: ``talk.wav, 0:30–1:00``.
        begin, end: seconds from the recording's beginning.
        item: what `kamera_jax.encode` takes of it.
    """

    name: str
    begin: float
    end: float
    item: Audio | AudioPart


Blocks = Callable[[], Iterable[Float32[np.ndarray, " n"]]]
"""What gives the samples of a recording, one run behind the other, as often as it is called."""


def audio_file(item: Any) -> AudioFile | None:
    """The recording that an item is, or that a path names which ends in one of `SUFFIXES`; None of other items."""
    if isinstance(item, Path) and item.suffix.lower() in SUFFIXES:
        return AudioFile(item)
    return item if isinstance(item, AudioFile) else None


def blocks_of(item: Audio | AudioFile) -> Blocks:
    """The samples of a recording, 16,000 a second."""
    if isinstance(item, AudioFile):
        return partial(decoded, item.path)
    samples = at_rate(item).samples
    return lambda: (samples,)


def read_audio(path: Path, seconds: float | int) -> Audio:
    """The sound of a whole file.

    Args:
        path: the file's path.
        seconds: no more of it is read than this.

    Raises:
        AudioLengthError: it is longer.
        AudioFileError: a subclass, named for what is wrong with the file.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    runs = []
    count = 0
    for run in decoded(path):
        runs.append(run)
        count += len(run)
        if count > seconds * mel.RATE:
            raise _too_long(str(path), f"more than {seconds:g}", seconds)
    return Audio(np.concatenate(runs), mel.RATE)


def _too_long(name: str, has: str, seconds: float | int) -> AudioLengthError:
    return AudioLengthError(
        f"{name} has {has} seconds of sound; the model reads {seconds:g} as one chunk: cut it up, as "
        "kamera_jax.encode_all(…, segment=30) and kamera encode --segment 30s do"
    )


def frame_count(samples: int, *, mirrored: bool = False) -> int:
    """Frames of a recording of so many samples; see `spectrogram` for ``mirrored``."""
    if mirrored:
        return samples // mel.HOP if samples > mel.EDGE else 0
    return math.ceil(samples / mel.HOP)


def parts(
    blocks: Blocks, frames: int, bands: int, *, mirrored: bool = False, least: int = LEAST
) -> Iterator[Audio | AudioPart]:
    """A recording in parts of so many frames of mel each, which are made one by one; a short one is a whole alone.

    What is left over at its end is no part where it gives no token.

    Args:
        blocks: the recording's samples.
        frames: of a part: whole pieces of the tower.
        bands: of the spectrogram.
        mirrored: see `spectrogram`.
        least: frames that give a token at least.
    """
    loudest, samples = _loudest(blocks, bands, 0 if mirrored else mel.SILENCE)
    total = frame_count(samples, mirrored=mirrored)
    if total < frames + least:
        yield Audio(np.concatenate(list(blocks())), mel.RATE)
        return
    begins = [begin for begin in range(0, total, frames) if total - begin >= least]
    runs = iter(blocks())
    waiting = np.zeros(0, np.float32)
    dropped = 0
    for begin in begins:
        last = begin == begins[-1]
        end = samples if last else min(samples, (begin + frames) * mel.HOP + _AFTER)
        held = [waiting]
        ready = dropped + len(waiting)
        while ready < end:
            run = next(runs, None)
            if run is None:
                raise DamagedAudioError("the recording is shorter than it was a moment ago; is it still written?")
            held.append(run)
            ready += len(run)
        waiting = np.concatenate(held)
        start = max(0, begin * mel.HOP - mel.EDGE)
        here = waiting[start - dropped : end - dropped].copy()
        yield AudioPart(here, begin, min(frames, total - begin), end == samples, loudest)
        following = max(0, (begin + frames) * mel.HOP - mel.EDGE)
        waiting = waiting[following - dropped :]
        dropped = following


def _loudest(blocks: Blocks, bands: int, silence: int) -> tuple[float, int]:
    """The loudest band of a recording, as a power of ten, and how many samples it has; see `mel.log_power`."""
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for run in blocks():
            count += len(run)
            yield run

    power = mel.log_power(counted(), bands, silence=silence)
    loudest = max((float(rows.max()) for rows in power if len(rows)), default=-math.inf)
    return loudest, count


def spectrogram(
    item: Audio | AudioPart, bands: int, seconds: float | int, *, mirrored: bool = False, least: int = LEAST
) -> Float32[np.ndarray, "T F"]:
    """The log-mel spectrogram of a recording or a part of one, as the model reads it.

    Args:
        item: at 16,000 samples a second.
        bands: F.
        seconds: what the model reads at most; HF fills a recording with silence to there.
        mirrored: whether it fills none, so that the end is mirrored as the beginning is, and what makes no whole 10 ms
            there has no frame of its own.
        least: frames that give a token at least.

    Raises:
        AudioLengthError: it is longer, or shorter than ``least`` frames.
    """
    part = isinstance(item, AudioPart)
    frames = item.frames if part else frame_count(len(item.samples), mirrored=mirrored)
    if frames > seconds * FRAMES:
        raise _too_long("the recording", f"{frames / FRAMES:g}", seconds)
    if frames < least:
        raise AudioLengthError(
            f"the recording has {frames} frames of 10 ms; expected {least} at least, which are a token"
        )
    silence = 0 if mirrored else mel.SILENCE
    if part:
        rows = mel.log_power([item.samples], bands, before=item.begin > 0, last=item.last, silence=silence)
        return mel.normalised(np.concatenate(list(rows))[:frames], item.loudest)
    silence = min(silence, int(seconds * mel.RATE) - len(item.samples))
    power = np.concatenate(list(mel.log_power([item.samples], bands, silence=silence)))
    return mel.normalised(power[:frames], float(power.max()))
