"""Videos of Qwen3-VL: times as text, sizes, parts and settings."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from models import VideoFile, load
from models.hub.fields import UnsupportedConfigError
from models.media.images import AspectRatioError
from models.media.sampling import EndToEndSampling
from models.ports.qwen2_5_vl.images import ImageConfig
from models.ports.qwen2_5_vl.video import video_config_from_hf
from models.ports.qwen3_vl.video import DEFAULTS, TimedVideoMedium, stamps, video_size
from tests.models import tiny_qwen3_vl
from tests.models.media.clips import numbers, write
from tests.models.tiny_qwen3_vl import CELL, CONFIG, PREPROCESSING, VIDEOS

PAD = CONFIG["video_token_id"]
PROCESSORS = ("Qwen3VLVideoProcessor",)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load(tiny_qwen3_vl.write(tmp_path_factory.mktemp("hub")))


def video(count, rows, columns, times, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, CELL * rows, CELL * columns, 3), np.uint8)
    return kj.Video(frames, times)


def test_stamps_are_means_of_a_pair_to_a_tenth():
    assert stamps(np.float32([0, 0.5, 1, 1.5, 2]), 2) == ["<0.2 seconds>", "<1.2 seconds>", "<2.0 seconds>"]
    assert stamps(np.float32([0.05, 0.25]), 2) == ["<0.1 seconds>"]  # 0.15 in f64, and not what f32 makes of it
    assert stamps(np.float32([0.3]), 1) == stamps(np.float32([0.3]), 2) == ["<0.3 seconds>"]
    assert stamps(np.float32([3599.95, 3600.0]), 2) == [f"<{(3599.95 + 3600.0) / 2:.1f} seconds>"]


def test_positions_do_not_depend_on_times(vlm):
    """A temporal patch stands as an image does behind its stamp."""
    near, far = (vlm.prepare(video(4, 2, 3, times)) for times in ([0, 1, 2, 3], [0, 9, 18, 27]))
    tokens = np.asarray(near.inputs["tokens"])[: int(near.length)]
    at = np.asarray(near.positions)[:, : int(near.length)]
    starts = np.flatnonzero(tokens == CONFIG["vision_start_token_id"])
    assert (tokens == PAD).sum() == 12 and len(starts) == 2
    for start in starts:
        block = at[:, start + 1 : start + 7] - (at[0, start] + 1)
        np.testing.assert_array_equal(block, [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])
        np.testing.assert_array_equal(at[:, start + 7], [at[0, start] + 1 + 3] * 3)
    assert near.advance == at[0, -1] + 1
    assert far.content != near.content


def test_a_temporal_patch_is_the_image_of_its_pair(vlm):
    whole = video(3, 2, 2, [0, 1, 2])
    segment = vlm.prepare(whole)
    media, deep = (
        np.asarray(segment.inputs[name])[np.asarray(segment.inputs["is_media"])] for name in ("media", "deep")
    )
    still = vlm.prepare(whole.frames[2])
    at = np.asarray(still.inputs["is_media"])
    np.testing.assert_array_equal(media[4:], np.asarray(still.inputs["media"])[at])  # the odd last frame is repeated
    np.testing.assert_array_equal(deep[4:], np.asarray(still.inputs["deep"])[at])


@pytest.mark.parametrize(("tokens", "frames"), [(1, [2, 2, 2, 1]), (12, [4, 3]), (99, [7])])
def test_a_long_video_is_cut_between_temporal_patches(vlm, tokens, frames):
    """The parts in a row are the whole, with times of the whole; positions count from each part's own start."""
    whole = video(7, 2, 3, np.arange(7) + 0.5)
    parts = vlm.cut(whole, tokens=tokens)
    assert [len(part.frames) for part in parts] == frames
    segments = [vlm.prepare(part) for part in parts]
    one = vlm.prepare(whole)
    for name in ("tokens", "media", "deep"):
        rows = [np.asarray(each.inputs[name])[: int(each.length)] for each in segments]
        np.testing.assert_array_equal(np.concatenate(rows), np.asarray(one.inputs[name])[: int(one.length)])
    assert sum(each.advance for each in segments) == one.advance


def test_parts_are_resized_as_the_whole_is(tmp_path):
    folder = tiny_qwen3_vl.write(tmp_path)
    settings = {**VIDEOS, "size": {"shortest_edge": CELL**2, "longest_edge": 8 * 4 * CELL**2}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    vlm = load(folder)
    whole = video(8, 4, 4, np.arange(8.0))
    one = vlm.prepare(whole)
    assert np.asarray(one.inputs["is_media"]).sum() == 4 * 4  # shrunk to 2 x 2 tokens, for all frames together
    rows = [np.asarray(each.inputs["media"])[: int(each.length)] for each in map(vlm.prepare, vlm.cut(whole, tokens=4))]
    assert len(rows) == 4
    np.testing.assert_array_equal(np.concatenate(rows), np.asarray(one.inputs["media"])[: int(one.length)])


def test_a_long_video_is_several_chunks(vlm):
    whole = video(6, 2, 3, np.arange(6.0))
    chunks = kj.encode_all(vlm, whole, tokens=1)
    assert [chunk.key for chunk in chunks] == [kj.encode(vlm, part).key for part in vlm.cut(whole, tokens=1)]
    window = kj.Window.empty(vlm, 256)
    before = []
    for chunk in chunks:
        patch = kj.form_patch(vlm, chunk, antecedents=before, rank=1000) if before else None
        window = kj.append(window, chunk, patch)
        before = [*before, chunk]
    reference = kj.prefill(vlm, chunks, capacity=256)
    valid = np.asarray(reference.state.valid)
    for name in ("rot", "free"):
        ours, theirs = (np.asarray(getattr(each.state, name))[:, valid] for each in (window, reference))
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_settings_of_videos():
    own = video_config_from_hf(VIDEOS, 4, PROCESSORS, DEFAULTS)
    assert (own.mean, own.std, own.patch_size) == ((0.5,) * 3, (0.5,) * 3, 4)
    bare = video_config_from_hf({"video_processor_type": PROCESSORS[0]}, 16, PROCESSORS, DEFAULTS)
    assert (bare.min_pixels, bare.max_pixels, bare.patch_size) == (128 * 1024, 768 * 1024, 16)
    assert video_config_from_hf(PREPROCESSING, 4, PROCESSORS, DEFAULTS) == ImageConfig.from_hf(PREPROCESSING, 4)
    for name, value in (("cap_pixels_per_frame", True), ("video_processor_type", "Qwen2VLVideoProcessor")):
        with pytest.raises(UnsupportedConfigError, match=name):
            video_config_from_hf({**VIDEOS, name: value}, 4, PROCESSORS, DEFAULTS)


def test_one_frame_is_taken_twice_and_no_frame_is_too_thin():
    config = ImageConfig(min_pixels=4096, max_pixels=25165824, patch_size=16)
    assert video_size(1, 64, 96, config) == video_size(2, 64, 96, config) == (64, 96)
    assert video_size(2, 20, 30, config) == (32, 64)  # scaled up to a token first
    with pytest.raises(AspectRatioError):
        video_size(2, 40, 40 * 201, config)


def test_frames_of_a_file(vlm, tmp_path):
    """From the first frame to the last one, at the times of whole frames."""
    clip = write(tmp_path / "a.mp4", 61, 10, size=(16, 24))
    (whole,) = vlm.segments(clip, seconds=100)
    assert numbers(whole) == [0, 5, 11, 16, 22, 27, 33, 38, 44, 49, 55, 60]  # round(60 k / 11)
    np.testing.assert_allclose(whole.times, np.array(numbers(whole)) / 10, atol=1e-6)
    assert vlm.prepare(clip).content == vlm.prepare(whole).content
    assert numbers(next(iter(vlm.segments(VideoFile(clip, frames=3), seconds=100)))) == [0, 30, 60]
    few = write(tmp_path / "b.mp4", 9, 10, size=(16, 24))
    assert numbers(next(iter(vlm.segments(few, seconds=100)))) == [0, 3, 5, 8]  # 4 at least


def test_sampling_of_videos():
    sampling = TimedVideoMedium().sampling
    assert sampling({}, None) == EndToEndSampling(2.0, None, 4, 768)
    assert sampling({"fps": None, "min_frames": 2, "max_frames": 8}, None) == EndToEndSampling(2.0, None, 2, 8)
    assert sampling({"fps": 1}, None).fps == 1 and sampling({"num_frames": 7}, None).frames == 7
    for wrong in ({"fps": 0}, {"num_frames": 0}, {"fps": 2, "num_frames": 4}):
        with pytest.raises(UnsupportedConfigError, match=next(iter(wrong))):
            sampling(wrong, None)
