"""Plain data of users: a video is frames and times, sound is samples and their rate."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.items import AudioError, VideoError

FRAMES = np.zeros((3, 4, 5, 3), np.uint8)


def test_a_video_is_frames_and_times():
    video = kj.Video(FRAMES, [0, 0.5, 1.5])
    assert video.times.dtype == np.float32 and video.times.tolist() == [0, 0.5, 1.5] and video.frames is FRAMES
    np.testing.assert_array_equal(kj.Video.at_rate(FRAMES, 4).times, [0, 0.25, 0.5])
    assert kj.Video(FRAMES[:1], np.array([7.0])).times.tolist() == [7.0]


BAD = {
    "no frame": (FRAMES[:0], [], r"uint8\[0, 4, 5, 3\]; expected uint8\[n, H, W, 3\]"),
    "no pixel": (FRAMES[:, :0], [0, 1, 2], "expected uint8"),
    "an image": (FRAMES[0], [0, 1, 2, 3], r"uint8\[4, 5, 3\]"),
    "floats": (FRAMES / 255, [0, 1, 2], "float64"),
    "grey": (FRAMES[..., :1], [0, 1, 2], "expected uint8"),
    "few times": (FRAMES, [0, 1], r"shape \[2\] for 3 frames"),
    "one number": (FRAMES, 2.0, r"shape \[\] for 3 frames"),
    "equal times": (FRAMES, [0, 1, 1], "do not rise"),
    "falling times": (FRAMES, [2, 1, 0], "do not rise"),
    "no number": (FRAMES, [0, 1, np.nan], "do not rise"),
    "infinite": (FRAMES, [0, 1, np.inf], "do not rise"),
    "words": (FRAMES, ["a", "b", "c"], "cannot be read as numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_video_is_refused(name):
    frames, times, message = BAD[name]
    with pytest.raises(VideoError, match=message):
        kj.Video(frames, times)


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_above_zero(fps):
    with pytest.raises(VideoError, match="expected a finite number of frames a second"):
        kj.Video.at_rate(FRAMES, fps)


def test_sound_is_samples_and_their_rate():
    given = np.linspace(-1, 1, 24000, dtype=np.float32)
    sound = kj.Audio(given, 16000)
    assert sound.samples is given and sound.rate == 16000 and sound.seconds == 1.5
    assert kj.Audio(given.astype(np.float64), np.int64(8000)).samples.dtype == np.float32
    assert kj.Audio([0.5], 1).rate == 1 and type(kj.Audio([0.5], np.int32(7)).rate) is int


NO_SOUND = {
    "no sample": (np.zeros(0), 16000, r"float64\[0\]; expected floats \[n\]"),
    "channels": (np.zeros((2, 9)), 16000, "take the mean of its channels"),
    "integers": (np.zeros(9, np.int16), 16000, "divide integers by what their format has at most, such as 32768"),
    "integers as floats": ([0.0, 1200.0], 16000, "the largest of the samples is 1200.*divide integers"),
    "no number": ([0.0, np.nan], 16000, "largest of the samples is nan"),
    "infinite": ([0.0, np.inf], 16000, "largest of the samples is inf"),
    "words": (["a"], 16000, "the samples are <U1"),
    "no rate": ([0.5], 0, "the rate is 0"),
    "half a rate": ([0.5], 16000.5, "the rate is 16000.5"),
    "a truth": ([0.5], True, "the rate is True"),
    "none": ([0.5], None, "the rate is None"),
}


@pytest.mark.parametrize("name", NO_SOUND)
def test_what_is_no_sound_is_refused(name):
    samples, rate, message = NO_SOUND[name]
    with pytest.raises(AudioError, match=message):
        kj.Audio(samples, rate)
