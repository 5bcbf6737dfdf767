"""Log-mel spectrograms in numpy, as HF ``WhisperFeatureExtractor`` makes them of sound at 16,000 samples a second.

A frame of mel is the power of 400 samples (25 ms) under a Hann window in bands of the slaney scale, every 160 samples
(10 ms), in powers of ten. What is more than 8 of those below the recording's loudest band is raised to there, so that
frames depend on the whole recording: `log_power` knows nothing of that, `normalised` takes it.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64

RATE = 16000
"""Samples a second."""

HOP = 160
"""Samples from a frame to the next."""

WINDOW = 400
"""Samples of a frame; its middle stands at a multiple of `HOP`."""

EDGE = WINDOW // 2
"""Samples before a frame's middle that it reads; behind a part's last frame they are less, by `HOP`."""

SILENCE = 800
"""Zeros behind a recording stand for any number of them: frames behind these have no power."""

RANGE = 8.0
"""Powers of ten below the loudest band of a recording to which its quietest are raised."""

_LEAST = 1e-10
"""Power that silence counts as."""

_BLOCK = 2**17
"""Samples whose frames are computed together: a frame's spectrum takes 4 times the memory of its samples."""

_LINEAR = 1000.0
"""Hertz below which the slaney scale is linear, 3 mel in 200 Hz, and above which it is logarithmic."""


@cache
def bands(count: int) -> Float64[np.ndarray, "201 F"]:
    """Weights of each frequency in each of F bands from 0 to 8,000 Hz: triangles of equal area on the slaney scale.

    As HF ``mel_filter_bank`` with ``norm="slaney"`` and ``mel_scale="slaney"``, and librosa's ``filters.mel``.
    """
    step = np.log(6.4) / 27
    top = 3 * _LINEAR / 200 + np.log(RATE / 2 / _LINEAR) / step
    mels = np.linspace(0, top, count + 2)
    corners = np.where(mels < 3 * _LINEAR / 200, 200 * mels / 3, _LINEAR * np.exp(step * (mels - 3 * _LINEAR / 200)))
    frequencies = np.linspace(0, RATE // 2, WINDOW // 2 + 1)
    slopes = corners[None, :] - frequencies[:, None]
    widths = np.diff(corners)[None, :]
    rising = -slopes[:, :-2] / widths[:, :-1]
    falling = slopes[:, 2:] / widths[:, 1:]
    area = (2 / (corners[2:] - corners[:-2]))[None, :]
    return np.maximum(0, np.minimum(rising, falling)) * area


def log_power(
    blocks: Iterable[Float32[np.ndarray, " n"]],
    count: int,
    *,
    before: bool = False,
    last: bool = True,
    silence: int = SILENCE,
) -> Iterator[Float64[np.ndarray, "t F"]]:
    """The frames of a recording in F bands, as powers of ten, in the order of its samples and not normalised yet.

    Args:
        blocks: its samples, one run of them behind the other; or those of a part of it, of a frame at least.
        count: F.
        before: whether the first `EDGE` samples stand before the part; a recording is mirrored at its beginning.
        last: whether the recording ends with the last samples; else a part ends `EDGE` - `HOP` samples before them.
        silence: zeros that stand behind a recording's end before it is mirrored there: none, or what HF pads to the
            length that the model reads, of which `SILENCE` are enough. Without any there are no frames of a recording
            of `EDGE` samples or fewer.
    """
    waiting = np.zeros(0, np.float32)
    begun = before
    for block in _blocks(blocks, silence if last else 0):
        waiting = np.concatenate([waiting, block])
        if not begun and len(waiting) > EDGE:
            waiting = np.pad(waiting, (EDGE, 0), mode="reflect")
            begun = True
        frames = (len(waiting) - WINDOW) // HOP + 1
        # What mirrors the end is kept, and so is a frame, which is none where the recording ends.
        if begun and frames > 2 and len(waiting) >= _BLOCK:
            yield _frames(waiting, count)[: frames - 2]
            waiting = waiting[(frames - 2) * HOP :]
    if not begun:
        return
    if last:
        yield _frames(np.pad(waiting, (0, EDGE), mode="reflect"), count)[:-1]
    else:
        yield _frames(waiting, count)


def _blocks(runs: Iterable[np.ndarray], silence: int) -> Iterator[np.ndarray]:
    """The samples in runs of about `_BLOCK`, and the silence behind them: codecs give a thousand at a time."""
    held: list[np.ndarray] = []
    for run in runs:
        for start in range(0, len(run), _BLOCK):
            held.append(run[start : start + _BLOCK])
            if sum(map(len, held)) >= _BLOCK:
                yield np.concatenate(held)
                held = []
    yield np.concatenate([*held, np.zeros(silence, np.float32)])


def _frames(samples: np.ndarray, count: int) -> np.ndarray:
    """Every whole frame of samples."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    cut = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), WINDOW)[::HOP] * window
    power = np.square(np.abs(np.fft.rfft(cut)))
    return np.log10(np.maximum(power @ bands(count), _LEAST))


def normalised(power: Float64[np.ndarray, "t F"], loudest: float) -> Float32[np.ndarray, "t F"]:
    """Frames as the model reads them: not below `RANGE` under the ``loudest`` of the whole recording, and scaled."""
    return ((np.maximum(power, loudest - RANGE) + 4) / 4).astype(np.float32)
