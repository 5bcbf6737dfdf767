"""Video files as items: of a model that reads videos, of one that reads their frames as images, and of others."""

import json
import pickle

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.backbone import BackboneBase
from kamera_jax.errors import WindowFullError
from models import VideoFile, load
from models.hub.fields import UnsupportedConfigError
from models.media.sampling import Sampling
from models.media.video_files import DamagedVideoError, VideoFormatError, read_video
from models.ports.qwen2_5_vl.video import sampling_from_hf
from models.registry import CHECKPOINTS
from models.vlm import ItemError
from tests.models.media.clips import numbers, write

QWEN = Sampling(least=4, multiple=2)


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def kimi():
    return load("kamera-tiny-mla")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """8 seconds, 12 frames a second, of 56 x 84 pixels: 6 tokens for two frames."""
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", 96, 12, size=(56, 84))


def test_a_path_is_the_video_that_the_model_takes_of_it(vlm, clip):
    video = read_video(clip, QWEN)
    assert numbers(video) == list(range(0, 96, 6))
    by_hand = vlm.prepare(video)
    for item in (clip, [clip], VideoFile(clip), pickle.loads(pickle.dumps(vlm.preprocess))(clip)):
        segment = vlm.prepare(item)
        assert segment.content == by_hand.content
        jax.tree.map(np.testing.assert_array_equal, segment.inputs, by_hand.inputs)
        np.testing.assert_array_equal(segment.positions, by_hand.positions)
    assert kj.encode(vlm, clip).key == kj.encode(vlm, video).key
    pair = vlm.prepare(["look:", clip])
    assert int(pair.length) > int(by_hand.length)
    with pytest.raises(VideoFormatError, match=r"part 2 of 2: .*text.mp4 is no video"):
        text = clip.parent / "text.mp4"
        text.write_text("no video")
        vlm.prepare(["look:", text])


def test_a_caller_states_which_frames(vlm, clip):
    for file, taken in ((VideoFile(clip, fps=1), range(0, 96, 12)), (VideoFile(clip, frames=4), range(0, 96, 24))):
        (video,) = vlm.segments(file, seconds=100)
        assert numbers(video) == list(taken)
        assert vlm.prepare(file).content == vlm.prepare(video).content
    with pytest.raises(ValueError, match="both fps=1 and frames=2"):
        vlm.prepare(VideoFile(clip, fps=1, frames=2))


def test_segments_are_chunks(vlm, clip):
    videos = list(vlm.segments(clip, seconds=3))
    assert [numbers(each) for each in videos] == [
        [0, 6, 12, 18, 24, 30],
        [36, 42, 48, 54, 60, 66],
        [72, 78, 84, 90],
    ]
    chunks = kj.encode_all(vlm, clip, segment=3)
    assert [chunk.key for chunk in chunks] == [kj.encode(vlm, each).key for each in videos]
    names = [segment.name for segment in vlm.preprocess.file_segments(clip, seconds=3)]
    assert names == ["clip.mp4, 0:00–0:03", "clip.mp4, 0:03–0:06", "clip.mp4, 0:06–0:08"]
    # A segment is cut again where tokens are asked for, and a file without segments by tokens alone.
    assert [len(part.frames) for part in vlm.cut(clip, tokens=12)] == [4, 4, 4, 4]
    assert [chunk.length for chunk in kj.encode_all(vlm, clip, segment=3, tokens=12)] == [14, 8, 14, 8, 14]
    assert [chunk.key for chunk in kj.encode_all(vlm, clip)] == [kj.encode(vlm, clip).key]
    frames = kj.Video(np.concatenate([each.frames for each in videos]), np.concatenate([each.times for each in videos]))
    assert [part.times.tolist() for part in vlm.segments(frames, seconds=3)] == [each.times.tolist() for each in videos]
    assert list(vlm.segments("a red star.", seconds=3)) == ["a red star."]
    assert len(kj.encode_all(vlm, "a red star.", segment=3)) == 1
    for wrong in (0, -1.0):
        with pytest.raises(ValueError, match="segment is .* expected a number above 0"):
            kj.encode_all(vlm, clip, segment=wrong)


def test_hours_from_the_begin_positions_are_the_same(vlm, clip):
    first, second, _ = vlm.segments(clip, seconds=3)
    late = kj.Video(first.frames, first.times.astype(np.float64) + 35_999.3)
    np.testing.assert_array_equal(vlm.prepare(late).positions, vlm.prepare(first).positions)
    np.testing.assert_array_equal(vlm.prepare(second).positions, vlm.prepare(first).positions)


def test_a_session_takes_a_long_video_segment_by_segment(vlm, clip):
    expected = [chunk.key for chunk in kj.encode_all(vlm, clip, segment=1)]
    session = kj.Session(vlm, capacity=128)
    keys = session.add_all(clip, segment=1)
    assert list(keys) == expected and len(keys) == 8
    assert session.keys == keys[-len(session.keys) :] and len(session.keys) < 8  # the window slid
    assert session.stats.evicted == 8 - len(session.keys)
    session.recall(keys[0])
    assert session.keys[-1] == keys[0]
    assert session.add_all("a red star.") == (session.keys[-1],)


def test_adding_a_video_with_segments_is_adding_each(vlm, clip):
    """The keys are a tuple where segments are asked for, whatever the item is; without them a video is one chunk."""
    of_file = tuple(chunk.key for chunk in kj.encode_all(vlm, clip, segment=1))
    frames = next(iter(vlm.segments(clip, seconds=100)))
    of_frames = tuple(chunk.key for chunk in kj.encode_all(vlm, frames, segment=1))
    for item, expected in ((clip, of_file), (VideoFile(clip), of_file), ([clip], of_file), (frames, of_frames)):
        session = kj.Session(vlm, capacity=128)
        assert session.add(item, segment=1) == expected and len(expected) == 8
        assert session.keys == expected[-len(session.keys) :] and session.stats.encoded == 8
        assert [each.key for each in session.last] == [expected[-1]]
        assert [each.key for each in session.log] == list(expected)

    roomy = kj.Session(vlm, capacity=512)
    short = roomy.add(frames)
    assert short == kj.encode(vlm, frames).key and roomy.keys == (short,)
    assert roomy.add(frames, segment=100) == (short,) and roomy.stats.encoded == 1
    assert roomy.add("a red star.", segment=4) == (roomy.keys[-1],)
    chunk = kj.encode(vlm, "a green moon.")
    assert roomy.add(chunk, segment=4) == roomy.add_all(chunk) == (chunk.key,)
    pinned = roomy.add(frames, segment=4, pin=True)
    assert roomy._kept.pinned == set(pinned) and len(pinned) == 2


def test_a_video_that_cannot_be_added_says_how(vlm, clip):
    session = kj.Session(vlm, capacity=64)
    with pytest.raises(WindowFullError, match=r"do not fit a window of 64 slots.*add\(item, segment=4.0\)"):
        session.add(clip)
    assert session.keys == ()
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="segment"):
            session.add(clip, segment=wrong)
    with pytest.raises(ValueError, match=r"both key and segment=4 are given"):
        session.add(clip, kj.encode(vlm, clip).key, segment=4)
    assert session.keys == () and session.stats.encoded == 0


def test_segments_before_a_damage_are_in_the_session(vlm, clip, tmp_path):
    path = write(tmp_path / "a.mp4", 60, 10, codec="mjpeg", size=(56, 84))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 9000] = bytes(9000)
    path.write_bytes(content)
    session = kj.Session(vlm, capacity=512)
    with pytest.raises(DamagedVideoError, match="a.mp4"):
        session.add_all(path, segment=1)
    assert 1 <= len(session.keys) < 6


def test_frames_as_images(kimi, clip):
    """Kimi-VL reads the frames of a video as the images of one message."""
    (video,) = kimi.segments(clip, seconds=100)
    images = [*video.frames]
    assert len(images) == 16
    for item in (clip, video):
        assert kimi.prepare(item).content == kimi.prepare(images).content
    each = int(kimi.prepare(images[:2]).length) - int(kimi.prepare(images[:1]).length)
    parts = kimi.cut(clip, tokens=3 * each)
    assert {len(part.frames) for part in parts[:-1]} <= {3, 4}
    assert np.array_equal(np.concatenate([part.frames for part in parts]), video.frames)
    assert len(kimi.prepare(["look:", clip]).inputs["tokens"]) >= 16


def test_others_say_what_they_read(clip):
    mha = load("kamera-tiny-mha")
    for given in (clip, VideoFile(clip)):
        with pytest.raises(ItemError, match=r"clip.mp4 is a video; this model reads text"):
            mha.prepare(given)
    with pytest.raises(ItemError, match="is a video"):
        kj.encode_all(mha, clip, segment=1)


def test_sampling_is_the_checkpoint_s(vlm, tmp_path):
    assert sampling_from_hf({}, 2) == QWEN
    assert sampling_from_hf({"fps": None, "do_sample_frames": False}, 2) == QWEN
    assert sampling_from_hf({"fps": 1, "min_frames": 2, "max_frames": 8}, 2) == Sampling(1.0, None, 2, 8, 2)
    assert sampling_from_hf({"num_frames": 6}, 2).frames == 6
    for wrong in ({"fps": 0}, {"fps": "2"}, {"num_frames": 0}, {"min_frames": 1.5}, {"fps": 2, "num_frames": 4}):
        with pytest.raises(UnsupportedConfigError):
            sampling_from_hf(wrong, 2)
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (CHECKPOINTS / "kamera-tiny-gqa").iterdir():
        (folder / path.name).symlink_to(path)
    images = json.loads((folder / "preprocessor_config.json").read_text())
    videos = {name: each for name, each in images.items() if name not in ("image_processor_type", "size")}
    videos |= {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 1.0, "max_frames": 6}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    clip = write(tmp_path / "a.mp4", 100, 10, size=(56, 84))
    (video,) = load(folder).segments(clip, seconds=100)
    assert numbers(video) == [0, 16, 33, 50, 66, 83]


def test_a_backbone_that_says_nothing_cuts_videos_by_their_times():
    video = kj.Video.at_rate(np.zeros((10, 4, 4, 3), np.uint8), 2)
    parts = list(BackboneBase.segments(object(), video, seconds=2))
    assert [len(part.frames) for part in parts] == [4, 4, 2]
    assert list(BackboneBase.segments(object(), "text", seconds=2)) == ["text"]
    gap = kj.Video(np.zeros((3, 4, 4, 3), np.uint8), [1, 1.5, 9])
    assert [part.times.tolist() for part in gap.segments(2)] == [[1, 1.5], [9]]
    with pytest.raises(ValueError, match="expected a number above 0"):
        list(gap.segments(0))
