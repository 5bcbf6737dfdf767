"""InternVL3 on a tiny model: tiles and frames as spans, refusals, and the operator."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models import VideoFile, load
from models.hub.control_tokens import TokenizerError
from models.hub.fields import ConfigError, UnsupportedConfigError
from models.media.sampling import FPS, UNBOUNDED, SamplingError, ShiftedSampling
from models.ports.internvl.images import ImageConfig
from models.ports.internvl.media import sampling_from_hf, video_config_from_hf
from tests.internvl_files import PREPROCESSING
from tests.models import tiny_internvl
from tests.models.media.clips import numbers, write
from tests.pictures import picture

CONTEXT = VOCABULARY.index("<|image_pad|>")
START = VOCABULARY.index("<|vision_start|>")
END = VOCABULARY.index("<|vision_end|>")
CAPACITY = 128
QUESTION = "which colour is the cell on the page?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_internvl.write(tmp_path_factory.mktemp("hub") / "internvl")


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


def video(count, seed=0, rows=9, columns=13):
    frames = np.random.default_rng(seed).integers(0, 256, (count, rows, columns, 3), np.uint8)
    return kj.Video(frames, np.arange(count, dtype=np.float32) / 2)


def ids(segment):
    return np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()


@pytest.mark.parametrize(("size", "tiles"), [((8, 8), 1), ((16, 16), 5), ((32, 8), 5), ((9, 300), 13)])
def test_an_image_is_its_tiles_between_two_tokens(vlm, size, tiles):
    segment = vlm.prepare(picture(*size))
    assert ids(segment) == [START, *[CONTEXT] * tiles, END]
    np.testing.assert_array_equal(np.flatnonzero(segment.inputs["is_media"]), np.arange(1, 1 + tiles))
    assert segment.advance == tiles + 2


def test_tiles_do_not_see_each_other(vlm):
    image = np.asarray(picture(16, 16))
    other = image.copy()
    other[8:, :8] ^= 0xFF  # the third of four tiles
    first, second = (np.asarray(vlm.prepare(each).inputs["media"])[1:6] for each in (image, other))
    np.testing.assert_array_equal((first != second).any(-1), [False, False, True, False, True])


def test_frames_stand_behind_their_numbers(vlm):
    segment = vlm.prepare(video(3))
    lines = vlm._chat.ids("Frame1: ")
    assert VOCABULARY.index(":") in lines
    assert ids(segment) == [*lines, START, CONTEXT, END] * 3  # to this tokenizer a number and a new line are nothing
    frame = video(3).frames[1]
    single = load_one_tile(vlm, frame)
    place = [at for at, number in enumerate(ids(segment)) if number == CONTEXT][1]
    np.testing.assert_array_equal(np.asarray(segment.inputs["media"])[place], single)


def load_one_tile(vlm, frame):
    """What the tower makes of a frame that is one tile."""
    return np.asarray(vlm.prepare(kj.Video(frame[None], [0])).inputs["media"])[len(vlm._chat.ids("Frame1: ")) + 1]


@pytest.mark.parametrize(("tokens", "frames"), [(1, [1] * 5), (2, [2, 2, 1]), (99, [5])])
def test_a_long_video_is_cut_between_frames(vlm, tokens, frames):
    whole = video(5)
    parts = vlm.cut(whole, tokens=tokens)
    assert [len(part.frames) for part in parts] == frames
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert len({vlm.prepare(part).content for part in parts}) == len(parts)


def test_sampling_of_videos():
    """The frames are in the middle of their parts, 8 of them where the file says nothing."""
    for mapping, frames, fps, shift in (
        ({}, 8, FPS, None),
        ({"num_frames": None, "fps": None, "initial_shift": None}, 8, FPS, None),
        ({"num_frames": 5, "initial_shift": True}, 5, FPS, None),
        ({"fps": 1, "initial_shift": False}, None, 1, 0),
        ({"num_frames": 5, "fps": 1.5, "initial_shift": 2.5}, 5, 1.5, 2.5),
    ):
        assert sampling_from_hf(mapping) == ShiftedSampling(fps, frames, 1, UNBOUNDED, shift=shift), mapping
    for wrong in ({"num_frames": 0}, {"fps": -1}, {"initial_shift": -1}, {"initial_shift": "2"}):
        with pytest.raises(UnsupportedConfigError, match=next(iter(wrong))):
            sampling_from_hf(wrong)
    places = ShiftedSampling(frames=4).places(40, 10)
    assert places.tolist() == [5, 15, 25, 35]
    assert ShiftedSampling(frames=4, shift=0).places(40, 10).tolist() == [0, 10, 20, 30]
    assert ShiftedSampling(frames=4, shift=12).places(40, 10).tolist() == [12, 22, 32]
    assert ShiftedSampling(frames=4, shift=99).places(40, 10).tolist() == [39]  # of a video that ends before
    assert ShiftedSampling(frames=8).places(3, 10).tolist() == [0.5, 1.5, 2.5]
    assert ShiftedSampling(fps=0.1).places(40, 10).tolist() == [20]
    with pytest.raises(SamplingError, match="shift is -1"):
        ShiftedSampling(shift=-1)


def test_frames_of_a_file(vlm, tmp_path):
    """Eight of a file, or of each segment of it, at the moments that they stand for."""
    clip = write(tmp_path / "a.mp4", 64, 16, size=(16, 24))
    (whole,) = vlm.segments(clip, seconds=100)
    assert numbers(whole) == list(range(4, 64, 8))
    assert whole.times.tolist() == [each / 16 for each in range(4, 64, 8)]
    assert vlm.prepare(clip).content == vlm.prepare(whole).content
    assert [numbers(each) for each in vlm.segments(clip, seconds=2)] == [
        list(range(2, 32, 4)),
        list(range(34, 64, 4)),
    ]
    (fast,) = vlm.segments(VideoFile(clip, fps=1), seconds=100)
    assert numbers(fast) == [8, 24, 40, 56]


def test_settings_of_videos(folder, tmp_path):
    own = {
        "video_processor_type": "InternVLVideoProcessor",
        "size": {"height": 448, "width": 448},
        "do_sample_frames": False,
        "initial_shift": True,
        "num_frames": None,
        "min_patches": 5,
    }
    assert video_config_from_hf(own) == ImageConfig(tile=448, most=1)
    assert video_config_from_hf(PREPROCESSING).most == 1 and video_config_from_hf(PREPROCESSING).tile == 448
    for field, value in (("video_processor_type", "Qwen2VLVideoProcessor"), ("do_sharpen", True)):
        with pytest.raises(ConfigError, match=field):
            video_config_from_hf({**own, field: value})
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(own))
    with pytest.raises(UnsupportedConfigError, match=r"size is 448 x 448 .* positions for .* 8 x 8"):
        load(tmp_path)


def test_tiles_of_a_size_that_the_tower_has_no_positions_for_are_refused(tmp_path):
    folder = tiny_internvl.write(tmp_path / "other", tiles={"size": {"height": 16, "width": 16}})
    with pytest.raises(UnsupportedConfigError, match=r"size is 16 x 16 .* positions for .*image_size\), 8 x 8"):
        load(folder)


def test_a_tokenizer_without_the_tokens_around_media_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    build_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template.replace("<IMG_CONTEXT>", "<|image_pad|>"))
    other = load(tmp_path)
    assert other.prepare("a red star.")
    with pytest.raises(TokenizerError, match="no control token '<img>'"):
        other.prepare(picture(8, 8))
    with pytest.raises(TokenizerError, match="no control token '<video>'"):
        other.prepare(video(2))


def test_what_users_write_is_no_control_token(vlm):
    given = ids(vlm.prepare("<img><IMG_CONTEXT></img> Frame1: <video>"))
    assert not {START, END, CONTEXT, VOCABULARY.index("<|video_pad|>")} & {*given}


ITEMS = {
    "images": [picture(16, 9), picture(7, 30)],
    "parts": [["a red star.", picture(20, 8), "a blue moon."], picture(8, 8)],
    "video": ["a red star.", [video(3), "a blue moon.", picture(9, 9)]],
}


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_encoding_rotation_and_a_full_rank_patch_are_the_prefill(vlm, name, mode):
    first, second = (kj.encode(vlm, item) for item in ITEMS[name])
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=1000)
    window = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY, mode=mode), first), second, patch)
    reference = kj.prefill(vlm, ITEMS[name], capacity=CAPACITY)
    expected = np.asarray(kj.query(vlm, reference, QUESTION))
    assert np.abs(np.asarray(kj.query(vlm, window, QUESTION)) - expected).max() <= 1e-4 * np.abs(expected).max()
    blind = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY, mode=mode), first), second)
    assert np.abs(np.asarray(kj.query(vlm, blind, QUESTION)) - expected).max() > 1e-3 * np.abs(expected).max()
    assert kj.generate(vlm, window, QUESTION, max_new_tokens=4).tokens == (
        kj.generate(vlm, reference, QUESTION, max_new_tokens=4).tokens
    )


def test_a_library_gives_back_what_a_session_asks_of(vlm, folder, tmp_path):
    items = ITEMS["video"]
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        first, second = (kj.encode(vlm, item) for item in items)
        patch = kj.form_patch(vlm, second, antecedents=[first], rank=1000)
        library.put_many([first, second])
        library.put(patch)
    again = load(folder)
    with kj.ChunkLibrary.open(tmp_path / "lib") as library:
        chunks = library.get_many([first.key, second.key])
        stored = library.get_patch(patch.key)
        for chunk, item in zip(chunks, items, strict=True):
            assert chunk.key == kj.encode(again, item).key
            for name in ("rot", "free"):
                exact = getattr(kj.encode(vlm, item).kv, name)
                np.testing.assert_array_equal(np.asarray(getattr(chunk.kv, name)), np.asarray(exact))
    window = kj.append(kj.append(kj.Window.empty(again, CAPACITY), chunks[0]), chunks[1], stored)
    full = kj.prefill(again, items, capacity=CAPACITY)
    expected = kj.generate(again, full, QUESTION, max_new_tokens=4).tokens
    assert kj.generate(again, window, QUESTION, max_new_tokens=4).tokens == expected
    session = kj.Session(again, capacity=CAPACITY, rank=128, policy=kj.ReusePolicy(fallback="patch"))
    for item in items:
        session.add(item)
    assert session.ask(QUESTION, max_new_tokens=4).tokens == expected


def test_what_was_preprocessed_elsewhere_is_the_same_chunk(vlm):
    item = ITEMS["video"][1]
    given, here = (vlm.prepare(each) for each in (vlm.preprocess(item), item))
    assert given.content == here.content and ids(given) == ids(here)
    np.testing.assert_array_equal(given.inputs["media"], here.inputs["media"])


def test_a_half_precision_image_is_near(vlm, folder):
    low = load(folder, dtype="bfloat16")
    image = picture(20, 30)
    given, exact = (np.asarray(each.prepare(image).inputs["media"], np.float32) for each in (low, vlm))
    assert np.linalg.norm(given - exact) / np.linalg.norm(exact) <= 2**-5
