"""LLaVA-OneVision on a tiny model: published configurations, tiles that are packed, refusals, and the operator."""

import copy

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY
from kamera_jax.errors import SharedRowsError
from models import load
from models.blocks.attention import GroupedQuery
from models.hub.fields import ConfigError, UnknownConfigFieldError, UnsupportedConfigError
from models.media.sampling import UniformSampling
from models.ports.llava_onevision.images import PINPOINTS, ImageConfig
from models.ports.llava_onevision.media import sampling_from_hf, video_config_from_hf
from models.registry import ARCHITECTURES
from tests.models import tiny_llava_onevision as tiny
from tests.pictures import picture

PAD = VOCABULARY.index("<|image_pad|>")
FRAME = VOCABULARY.index("<|video_pad|>")
CAPACITY = 192
QUESTION = "which colour is the cell on the page?"
TILE = tiny.SIDE

PUBLISHED = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "ignore_index": -100,
    "image_grid_pinpoints": PINPOINTS,
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 152000,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
"""Of 0.5B parameters, in the fields that the hub's files have."""


def changed(path, value):
    """`PUBLISHED` with another value; sections are parted by slashes."""
    mapping = copy.deepcopy(PUBLISHED)
    *sections, name = path.split("/")
    inner = mapping
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return mapping


def test_a_published_configuration():
    config = ARCHITECTURES["llava_onevision"].config_from_hf(PUBLISHED)
    assert config.text.attention == GroupedQuery(14, 2, 64, bias=True) and config.text.max_positions == 32768
    assert config.text.tie_word_embeddings  # as either section says
    assert (config.vision.side, config.vision.tokens, config.vision.depth) == (27, 196, 26)
    assert config.placeholders == {"image": 151646, "video": 151647}
    layout = config.media["image"]
    assert len(layout.pinpoints) == 36 and layout.pinpoints[7] == (768, 768) and layout.most == 9
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = ImageConfig.from_hf({"image_processor_type": "LlavaOnevisionImageProcessor", **mean}, patch_size=14)
    assert (images.tile, images.pinpoints) == (384, layout.pinpoints)


@pytest.mark.parametrize(
    ("path", "value", "error", "named"),
    [
        ("text_config/model_type", "llama", UnsupportedConfigError, "model_type"),
        ("text_config/sharpness", 2, UnknownConfigFieldError, "sharpness"),
        ("text_config/tie_word_embeddings", "yes", ConfigError, "tie_word_embeddings"),
        ("text_config", [], ConfigError, "text_config"),
        ("vision_config/model_type", "clip_vision_model", UnsupportedConfigError, "model_type"),
        ("vision_config/image_size", 13, UnsupportedConfigError, "image_size is 13; expected patch_size, 14"),
        ("vision_config/image_size", 392, UnsupportedConfigError, "image_grid_pinpoints .* a multiple of 392 pixels"),
        ("vision_feature_select_strategy", "default", UnsupportedConfigError, "vision_feature_select_strategy"),
        ("vision_feature_layer", [-1, -2], ConfigError, "vision_feature_layer"),
        ("vision_feature_layer", 27, UnsupportedConfigError, "vision_feature_layer is 27; expected 1 to 26"),
        ("vision_aspect_ratio", "anyres", UnsupportedConfigError, "vision_aspect_ratio is 'anyres'; .*'anyres_max_9'"),
        ("vision_aspect_ratio", "anyres_max_0", UnsupportedConfigError, "vision_aspect_ratio"),
        ("use_image_newline_parameter", False, UnsupportedConfigError, "use_image_newline_parameter"),
        ("image_grid_pinpoints", [], UnsupportedConfigError, "image_grid_pinpoints"),
        ("image_grid_pinpoints", [[384, 384], [384, 400]], UnsupportedConfigError, "image_grid_pinpoints"),
        ("image_grid_pinpoints", [[384]], UnsupportedConfigError, "image_grid_pinpoints"),
        ("image_grid_pinpoints", [[384 * 33, 384 * 32]], UnsupportedConfigError, "of 1024 tiles of 384 x 384 at most"),
        ("image_grid_pinpoints", [[384, True]], ConfigError, "image_grid_pinpoints"),
        ("image_grid_pinpoints", [384], ConfigError, "image_grid_pinpoints"),
    ],
)
def test_what_is_not_served_is_named(path, value, error, named):
    with pytest.raises(error, match=named):
        ARCHITECTURES["llava_onevision"].config_from_hf(changed(path, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resample", 2),
        ("do_center_crop", True),
        ("size", {"shortest_edge": 384}),
        ("crop_size", {"height": 20, "width": 20}),
        ("image_grid_pinpoints", [[TILE, 15]]),
        ("image_processor_type", "LlavaNextImageProcessor"),
        ("do_sharpen", True),
    ],
)
def test_other_preprocessing_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ImageConfig.from_hf({**tiny.PREPROCESSING, field: value})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("hub") / "onevision")


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


@pytest.fixture(scope="module")
def padding(tmp_path_factory):
    """The same, by which every image is one tile."""
    return load(tiny.write(tmp_path_factory.mktemp("hub") / "pad", vision_aspect_ratio="pad"))


def rows(segment):
    """What the towers made of a chunk's tokens."""
    return np.asarray(segment.inputs["media"])[np.asarray(segment.inputs["is_media"])]


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((TILE, TILE), 4 + 2 * 3),
        ((2 * TILE, TILE), 4 + 2 * 5),
        ((TILE, 2 * TILE), 4 + 4 * 3),
        ((2 * TILE, 2 * TILE), 4 + 4 * 5),
        ((40, 5), 4),  # half a feature high: none of them shows more of it than of the padding
    ],
)
def test_an_image_is_the_whole_of_it_and_its_tiles_row_by_row(vlm, size, tokens):
    segment = vlm.prepare(picture(*size))
    ids = np.asarray(segment.inputs["tokens"])[: int(segment.length)]
    assert (ids == PAD).sum() == len(rows(segment)) == tokens and segment.advance == len(ids)


def test_tiles_are_stitched_and_a_newline_ends_each_row(vlm):
    image = np.asarray(picture(2 * TILE, 2 * TILE))
    other = image.copy()
    other[TILE:, :TILE] ^= 0xFF  # the lower left tile
    first, second = (rows(vlm.prepare(each)) for each in (image, other))
    differ = (first != second).any(-1)
    assert np.flatnonzero(differ[4:]).tolist() == [10, 11, 15, 16] and differ[:4].all()
    newline = np.asarray(vlm.params["vision"]["newline"])
    np.testing.assert_array_equal(first[8::5], [newline] * 4)


def test_pixels_past_the_last_patch_are_not_read(vlm):
    image = np.asarray(picture(TILE, TILE))
    other = image.copy()
    other[:, 8:] ^= 0xFF
    np.testing.assert_array_equal(*(rows(vlm.prepare(each)) for each in (image, other)))


def test_an_image_has_the_same_tokens_however_many_there_are(vlm):
    images = [picture(2 * TILE, TILE), picture(7, 30)]
    together = rows(vlm.prepare(images))
    np.testing.assert_array_equal(together, np.concatenate([rows(vlm.prepare(each)) for each in images]))


def test_one_tile_padded_to_a_square_is_a_mode_of_its_own(vlm, padding):
    """It is in the key, as all of config.json is."""
    image = picture(30, 12)
    segment = padding.prepare(image)
    assert len(rows(segment)) == 4 + 1
    np.testing.assert_array_equal(rows(segment)[-1], np.asarray(padding.params["vision"]["newline"]))
    square = np.full((30, 30, 3), 127, np.uint8)
    square[9:21] = np.asarray(image)
    np.testing.assert_array_equal(rows(segment), rows(padding.prepare(square)))
    assert kj.encode(vlm, image).key != kj.encode(padding, image).key


def test_the_colour_of_padding_is_checked_where_it_is_painted(tmp_path):
    mean = {"image_mean": [0.5, 0.5, 1.5]}
    load(tiny.write(tmp_path / "tiles", images=mean))
    with pytest.raises(UnsupportedConfigError, match="image_mean.*colour"):
        load(tiny.write(tmp_path / "padded", images=mean, vision_aspect_ratio="pad"))


def test_settings_that_do_not_fit_the_model_are_refused(tmp_path):
    fewer = tiny.write(tmp_path / "fewer", images={"image_grid_pinpoints": tiny.PINPOINTS[:2]})
    with pytest.raises(UnsupportedConfigError, match="image_grid_pinpoints of preprocessor_config.json are others"):
        load(fewer)
    sizes = {"size": {"height": 20, "width": 20}, "image_grid_pinpoints": [[20, 20]]}
    other = tiny.write(tmp_path / "other", images=sizes)
    with pytest.raises(UnsupportedConfigError, match=r"size is 20 x 20 .* positions for .*image_size\), 10 x 10"):
        load(other)


# Videos ---------------------------------------------------------------------------------------------------------------


def video(count, height=9, width=13):
    shown = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)
    return kj.Video.at_rate(shown, 2.0)


def test_a_video_is_its_frames_and_one_newline(vlm):
    whole = video(3)
    segment = vlm.prepare(whole)
    ids = np.asarray(segment.inputs["tokens"])[: int(segment.length)]
    made = rows(segment)
    assert (ids == FRAME).sum() == len(made) == 3 * vlm.config.vision.tokens + 1 == 4
    np.testing.assert_array_equal(made[-1], np.asarray(vlm.params["vision"]["newline"]))
    alone = [rows(vlm.prepare(each)) for each in whole.segments(0.5)]
    np.testing.assert_array_equal(made[:-1], [each[0] for each in alone])
    np.testing.assert_array_equal(made[-1], alone[0][-1])  # each part has a newline of its own


def test_frames_without_a_mark_between_them_share_no_rows(vlm):
    with pytest.raises(SharedRowsError, match="one temporal patch"):
        kj.share_rows(vlm, kj.encode(vlm, video(3)))


@pytest.mark.parametrize(("tokens", "frames"), [(1, [1] * 5), (3, [2, 2, 1]), (5, [4, 1]), (99, [5])])
def test_a_long_video_is_cut_between_frames(vlm, tokens, frames):
    whole = video(5)
    parts = vlm.cut(whole, tokens=tokens)
    assert [len(part.frames) for part in parts] == frames
    assert all(len(rows(vlm.prepare(part))) <= max(tokens, 2) for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)


def test_settings_of_videos(vlm):
    tower = vlm.config.vision
    own = {name: value for name, value in tiny.PREPROCESSING.items() if name != "image_processor_type"}
    own |= {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_sample_frames": False, "fps": 2}
    of_images = video_config_from_hf(tiny.PREPROCESSING, tower)
    assert video_config_from_hf(own, tower) == of_images and of_images.tile == TILE
    with pytest.raises(UnsupportedConfigError, match="video_processor_type"):
        video_config_from_hf({**own, "video_processor_type": "InternVLVideoProcessor"}, tower)
    with pytest.raises(UnknownConfigFieldError, match="sharpness"):
        video_config_from_hf({**own, "sharpness": 1}, tower)


def test_frames_that_are_taken_of_a_file():
    assert sampling_from_hf({}).frames == 8
    assert sampling_from_hf({"num_frames": 5, "fps": 2}).frames == 5
    assert (sampling_from_hf({"fps": 0.5}).frames, sampling_from_hf({"fps": 0.5}).fps) == (None, 0.5)
    assert UniformSampling(frames=4).places(10, 25.0).tolist() == [0, 2, 5, 7]
    for wrong in ({"fps": 0}, {"num_frames": 0}, {"num_frames": "8"}):
        with pytest.raises(ConfigError, match="fps|num_frames"):
            sampling_from_hf(wrong)


ITEMS = [picture(16, 9), [video(3), "a blue moon.", picture(7, 30)]]


def test_encoding_rotation_and_a_full_rank_patch_are_the_prefill(vlm):
    first, second = (kj.encode(vlm, item) for item in ITEMS)
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=1000)
    window = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY), first), second, patch)
    reference = kj.prefill(vlm, ITEMS, capacity=CAPACITY)
    expected = np.asarray(kj.query(vlm, reference, QUESTION))
    assert np.abs(np.asarray(kj.query(vlm, window, QUESTION)) - expected).max() <= 1e-4 * np.abs(expected).max()
    blind = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY), first), second)
    assert np.abs(np.asarray(kj.query(vlm, blind, QUESTION)) - expected).max() > 1e-3 * np.abs(expected).max()
