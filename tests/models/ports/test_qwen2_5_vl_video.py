"""Videos of Qwen2.5-VL on the embedded model: settings, spans, positions, names."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from eval.tiny.vocabulary import VOCABULARY
from models import load
from models.hub.fields import UnknownConfigFieldError, UnsupportedConfigError
from models.ports.qwen2_5_vl.images import ImageConfig
from models.ports.qwen2_5_vl.port import ARCHITECTURE
from models.ports.qwen2_5_vl.video import video_config_from_hf
from models.registry import CHECKPOINTS
from models.vlm import ItemError

PAD = VOCABULARY.index("<|video_pad|>")
TPS = 4  # transformers' default, which the embedded model's configuration leaves as it is


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


def video(count, rows, columns, times, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 28 * rows, 28 * columns, 3), np.uint8)
    return kj.Video(frames, times)


def block(segment):
    """Positions of the video's tokens, counted from where it begins."""
    at = np.asarray(segment.inputs["tokens"])[: int(segment.length)] == PAD
    positions = np.asarray(segment.positions)[:, : int(segment.length)]
    return positions[:, at] - np.flatnonzero(at)[0], positions, at


@pytest.mark.parametrize(
    ("times", "at"),
    [
        ([0, 1, 2, 3], [0, 8]),
        ([5, 6, 7, 8], [0, 8]),  # a chunk counts from its own start
        ([0, 0.1, 0.2, 0.3], [0, 0]),  # 0.8 of a position is none
        ([0, 0.125, 0.25, 0.375], [0, 1]),
        ([0, 1, 5, 6, 7.3], [0, 20, 29]),  # frames at times of their own; the last one alone
        ([0], [0]),
        (np.arange(60) / np.float32(30), (np.arange(30) * 4 / 15 + 1e-9).astype(int)),
    ],
)
def test_a_temporal_patch_stands_at_its_time(vlm, times, at):
    segment = vlm.prepare(video(len(times), 2, 3, times))
    positions, whole, tokens = block(segment)
    expected = [[time, row, column] for time in at for row in range(2) for column in range(3)]
    np.testing.assert_array_equal(positions, np.transpose(expected))
    assert tokens.sum() == 6 * len(at)
    # One token after it, behind the largest position on any axis.
    np.testing.assert_array_equal(whole[:, -1], [1 + max(at[-1] + 1, 2, 3)] * 3)
    assert segment.advance == whole[0, -1] + 1


def test_a_still_pair_is_the_image(vlm):
    """Both frames of the pair are the image, as HF repeats a still one: the tower gives the same features."""
    frame = video(1, 2, 3, [0]).frames[0]
    image = vlm.prepare(frame)
    still = vlm.prepare(kj.Video(np.stack([frame, frame]), [0, 1]))
    for name in ("media", "is_media"):
        np.testing.assert_array_equal(still.inputs[name], image.inputs[name])
    np.testing.assert_array_equal(vlm.prepare(kj.Video(frame[None], [0])).inputs["media"], still.inputs["media"])
    np.testing.assert_array_equal(still.positions, image.positions)
    assert still.content != image.content


def test_pairs_do_not_see_each_other(vlm):
    whole = video(4, 2, 2, [0, 1, 2, 3])
    features = np.asarray(vlm.prepare(whole).inputs["media"])
    second = vlm.prepare(kj.Video(whole.frames[2:], whole.times[2:]))
    np.testing.assert_array_equal(features[5:9], np.asarray(second.inputs["media"])[1:5])


@pytest.mark.parametrize(
    ("tokens", "frames"), [(1, [2, 2, 2, 1]), (6, [2, 2, 2, 1]), (12, [4, 3]), (17, [4, 3]), (99, [7])]
)
def test_a_long_video_is_cut_between_temporal_patches(vlm, tokens, frames):
    whole = video(7, 2, 3, np.arange(7) + 0.5)
    parts = vlm.cut(whole, tokens=tokens)
    assert [len(part.frames) for part in parts] == frames
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([part.times for part in parts]), whole.times)
    segments = [vlm.prepare(part) for part in parts]
    media = [np.asarray(each.inputs["media"])[np.asarray(each.inputs["is_media"])] for each in segments]
    one = vlm.prepare(whole)
    np.testing.assert_array_equal(
        np.concatenate(media), np.asarray(one.inputs["media"])[np.asarray(one.inputs["is_media"])]
    )
    assert all(each.positions[:, 1].tolist() == [1, 1, 1] for each in segments)


def test_what_is_not_cut_stays_whole(vlm):
    image = video(1, 4, 4, [0]).frames[0]
    for item, tokens in (("a red star.", 99), ([image, video(4, 1, 1, [0, 1, 2, 3])], 1), (["a", "b", "c"], 1)):
        (part,) = vlm.cut(item, tokens=tokens)
        assert part is item
    assert [vlm.prepare(part).content for part in vlm.cut(image, tokens=1)] == [vlm.prepare(image).content]
    with pytest.raises(ValueError, match="at least 1 token; got tokens=0"):
        vlm.cut(image, tokens=0)


def test_a_video_s_content_is_its_frames_and_times(vlm):
    first = video(4, 2, 2, [0, 1, 2, 3])
    changed = first.frames.copy()
    changed[3, 5, 5, 1] ^= 1
    videos = [first, kj.Video(first.frames, [0, 1, 2, 4]), kj.Video(changed, first.times)]
    videos += [kj.Video(first.frames[::-1], first.times), kj.Video(first.frames[:3], first.times[:3])]
    contents = [vlm.prepare(each).content for each in videos]
    assert len(set(contents)) == len(videos)
    assert vlm.prepare(kj.Video(first.frames.copy(), first.times.copy())).content == contents[0]
    assert vlm.prepare([first]).content == contents[0]


def test_a_video_among_texts_and_images_is_prefilled_and_reused(vlm):
    image = video(1, 1, 3, [0], seed=1).frames[0]
    items = [[image, "a red star.", video(3, 2, 2, [0, 1, 2])], "a blue moon."]
    reference = kj.prefill(vlm, items, capacity=128)
    first, second = (kj.encode(vlm, item) for item in items)
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=1000)
    window = kj.append(kj.append(kj.Window.empty(vlm, 128), first), second, patch)
    valid = np.asarray(reference.state.valid)
    for name in ("rot", "free"):
        ours, theirs = (np.asarray(getattr(each.state, name))[:, valid] for each in (window, reference))
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_models_without_videos_say_what_they_read():
    with pytest.raises(ItemError, match=r"of type Video; this model reads text \(str.*images \(a file"):
        load("kamera-tiny-mha").prepare(video(2, 1, 1, [0, 1]))


IMAGES = BACKBONES["gqa"].preprocessing
VIDEOS = {
    **{
        name: value
        for name, value in IMAGES.items()
        if name not in ("image_processor_type", "min_pixels", "max_pixels")
    },
    "video_processor_type": "Qwen2VLVideoProcessor",
    "do_sample_frames": True,
    "fps": 2.0,
    "min_frames": 4,
    "max_frames": 768,
    "max_video_tokens": 128000,
    "cap_pixels_per_frame": None,
    "return_metadata": False,
}


def test_settings_of_videos():
    """Without a file of their own frames are preprocessed as images; one of their own has bounds of its own."""
    assert video_config_from_hf(IMAGES) == ImageConfig.from_hf(IMAGES)
    own = video_config_from_hf(VIDEOS)
    assert (own.min_pixels, own.max_pixels) == (128 * 28 * 28, 768 * 28 * 28)
    assert (own.patch_size, own.mean) == (14, (0.5, 0.5, 0.5))
    size = {"shortest_edge": 784, "longest_edge": 7840}
    assert video_config_from_hf({**VIDEOS, "size": size}).max_pixels == 7840
    with pytest.raises(UnsupportedConfigError, match="cap_pixels_per_frame"):
        video_config_from_hf({**VIDEOS, "cap_pixels_per_frame": True})
    with pytest.raises(UnsupportedConfigError, match="video_processor_type"):
        video_config_from_hf({**VIDEOS, "video_processor_type": "Qwen3VLVideoProcessor"})
    with pytest.raises(UnknownConfigFieldError, match="do_sharpen"):
        video_config_from_hf({**VIDEOS, "do_sharpen": True})


@pytest.mark.parametrize("where", ["file", "section"])
def test_settings_of_their_own_change_videos_alone(vlm, tmp_path, where):
    for path in (CHECKPOINTS / "kamera-tiny-gqa").iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = {**VIDEOS, "size": {"shortest_edge": 784, "longest_edge": 784 * 2}}
    if where == "file":
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    else:
        (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": settings}))
    other = load(tmp_path)
    assert other.fingerprint == vlm.fingerprint
    shown = video(2, 2, 2, [0, 1])
    assert other.prepare(shown).content != vlm.prepare(shown).content
    assert other.prepare(shown.frames[0]).content == vlm.prepare(shown.frames[0]).content
    assert [int(each.prepare(shown).length) for each in (vlm, other)] == [4 + 2, 1 + 2]


def test_what_config_json_says_of_videos():
    mapping = json.loads((CHECKPOINTS / "kamera-tiny-gqa/config.json").read_text())
    read = ARCHITECTURE.config_from_hf(mapping)
    assert read.placeholders == {"video": PAD, "image": VOCABULARY.index("<|image_pad|>")}
    assert read.media == {"video": TPS} and read.towers == {"vision": read.vision}
    published = {**mapping, "vision_config": {**mapping["vision_config"], "tokens_per_second": 2}}
    assert ARCHITECTURE.config_from_hf(published).media == {"video": 2}
    bare = {name: value for name, value in mapping.items() if name != "video_token_id"}
    assert ARCHITECTURE.config_from_hf(bare).placeholders["video"] == 151656
    for wrong in (0, -1, "two"):
        with pytest.raises(ValueError, match="tokens_per_second"):
            ARCHITECTURE.config_from_hf(
                {**mapping, "vision_config": {**mapping["vision_config"], "tokens_per_second": wrong}}
            )


def test_a_long_video_is_several_chunks(vlm):
    whole = video(6, 2, 3, np.arange(6.0))
    parts = vlm.cut(whole, tokens=1)
    chunks = kj.encode_all(vlm, whole, tokens=1)
    assert len(chunks) == 3 and [chunk.key for chunk in chunks] == [kj.encode(vlm, part).key for part in parts]
    assert [chunk.key for chunk in kj.encode_all(vlm, whole)] == [kj.encode(vlm, whole).key]
    assert len(kj.encode_all(vlm, "a text", tokens=9)) == 1
    with pytest.raises(ValueError, match="tokens is 0; expected at least 1"):
        kj.encode_all(vlm, whole, tokens=0)
