"""Plain data of users: a video is frames and times."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.items import VideoError

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
