"""The sound of files through PyAV (``pip install "kamera-jax[video]"``): one channel of 16,000 samples a second.

Channels are averaged, as librosa does it: FFmpeg's own mix of two into one is louder by a factor of sqrt(2). A file is
read from its beginning to its end, and no more of it is in memory than what its codec needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from kamera_jax.items import LOUDEST, Audio
from models.media.audio_boxes import missing_bytes, states_length
from models.media.files import MediaFileError, opened
from models.media.mel import RATE
from models.media.video_stream import INSTALL, clock_time

FORMATS = (
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "ogg", "mov", "matroska", "webm", "asf"),
    *("avi", "mpegts", "mpeg", "flv", "mxf"),
)
"""The demuxers that may open a file, whatever it is called. None of them opens another file, as a playlist does."""

_RUN = 2**20
"""Samples that are resampled together."""

LEAST_RATE = 1000
"""Samples a second, at least: of fewer, some thousands would be resampled to gigabytes."""

SHORTER = 0.25
"""Seconds by which what is decoded may be shorter than what a file states: encoders add silence at both ends."""


class AudioFileError(MediaFileError):
    """A file that cannot be read as a recording."""


class AudioReaderError(AudioFileError):
    """PyAV, which reads and resamples sound, is not installed, or cannot be imported."""


class AudioFormatError(AudioFileError):
    """A file that is none of the formats that are read, or holds no sound."""


class DamagedAudioError(AudioFileError):
    """A file of sound that breaks off, or that cannot be decoded."""


class AudioLengthError(AudioFileError):
    """A recording, or a part of one, that is longer than the model reads as one chunk, or too short for one token."""


@cache
def _package() -> Any:
    try:
        import av
    except ImportError as error:
        raise AudioReaderError(f"reading and resampling sound takes the package av ({error}): {INSTALL}") from error
    return av


@contextmanager
def _container(av: Any, path: Path, file: BinaryIO) -> Iterator[Any]:
    """An opened file, as PyAV has it.

    Raises:
        AudioFileError: it breaks off, or is none of the formats that are read.
    """
    if missing := missing_bytes(file):
        raise DamagedAudioError(
            f"{path} breaks off: {missing} bytes or more are lacking at its end; get it again, or keep what is there "
            "by ffmpeg -i FILE OTHER"
        )
    try:
        allowed = {"format_whitelist": ",".join(FORMATS)}
        container = av.open(file, options=allowed, metadata_errors="replace")  # a title need not be UTF-8
    except (av.error.FFmpegError, OSError) as error:
        raise AudioFormatError(
            f"{path} is no file of sound that can be read ({_reason(error)}); expected WAV, FLAC, MP3, Ogg, Opus, M4A, "
            "AAC, AIFF or WMA: is it whole, and is it a recording?"
        ) from error
    with container:
        yield container


def decoded(path: Path) -> Iterator[Float32[np.ndarray, " n"]]:
    """The samples of a file, one run of them behind the other.

    Raises:
        AudioFileError: a subclass, named for what is wrong with the file, where it is.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    av = _package()
    with opened(path) as file:
        states = states_length(file)
        with _container(av, path, file) as container:
            yield from _samples(av, path, container, states)


def _samples(av: Any, path: Path, container: Any, states: bool) -> Iterator[np.ndarray]:
    """The samples of the first stream of sound; ``states``: whether its length is known, and no estimate."""
    if not container.streams.audio:
        others = ", ".join(sorted({each.type for each in container.streams})) or "none"
        raise AudioFormatError(f"{path} has no sound (its streams are: {others}); expected a stream of audio")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioFormatError(f"{path} is of a codec that this PyAV does not decode; convert it to FLAC or WAV")
    stated = stream.duration * stream.time_base if stream.duration and states else 0
    count = 0
    resampler = av.AudioResampler(format="flt", rate=RATE)
    try:
        for frame in container.decode(stream):
            _check_rate(frame.sample_rate)
            for each in resampler.resample(frame):
                yield _mono(each)
                count += each.samples
        for each in resampler.resample(None) if count else ():
            yield _mono(each)
            count += each.samples
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DamagedAudioError(
            f"{path}: the sound behind {clock_time(count / RATE)} cannot be decoded ({_reason(error)}); is the file "
            "whole?"
        ) from error
    if not count:
        raise DamagedAudioError(f"{path} has a stream of sound without samples; expected one at least")
    if count / RATE < stated - SHORTER:
        raise DamagedAudioError(
            f"{path} breaks off: {clock_time(count / RATE)} of the {clock_time(float(stated))} that it states are "
            "there; get it again, or keep what is there by ffmpeg -i FILE OTHER"
        )


def _mono(frame: Any) -> np.ndarray:
    """A frame [n], the mean of its channels, which lie side by side: of more than 8 apart PyAV reads past the end."""
    samples = frame.to_ndarray().reshape(max(1, frame.samples), -1)
    mean = samples.mean(1, dtype=np.float32)
    largest = np.abs(mean).max(initial=0.0)
    if not largest <= LOUDEST:
        raise ValueError(f"samples of up to {largest:g}, where 1 is the loudest")
    return mean


def _check_rate(rate: int) -> None:
    """Raise ValueError for a rate so low that a few samples would become gigabytes."""
    if rate < LEAST_RATE:
        raise ValueError(f"{rate} samples a second, expected {LEAST_RATE} at least")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def at_rate(audio: Audio) -> Audio:
    """Sound at `RATE` samples a second: itself, or resampled by PyAV.

    Raises:
        AudioFormatError: it has fewer samples a second than `LEAST_RATE`.
        AudioReaderError: it has another rate, and PyAV is not installed.
    """
    if audio.rate == RATE:
        return audio
    try:
        _check_rate(audio.rate)
    except ValueError as error:
        raise AudioFormatError(f"the sound has {error}: was its rate given in kHz?") from None
    try:
        av = _package()
    except AudioReaderError as error:
        raise AudioReaderError(
            f"the sound has {audio.rate} samples a second, and the model reads {RATE}; {error}, or resample it yourself"
        ) from error
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    made = []
    for start in range(0, len(audio.samples), _RUN):
        frame = av.AudioFrame.from_ndarray(audio.samples[None, start : start + _RUN], format="fltp", layout="mono")
        frame.sample_rate = audio.rate
        made += resampler.resample(frame)
    return Audio(np.concatenate([_mono(each) for each in (*made, *resampler.resample(None))]), RATE)
