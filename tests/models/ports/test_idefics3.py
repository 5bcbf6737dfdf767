"""Idefics3 and SmolVLM2 on a tiny model: published configurations, tiles as spans, refusals, and the operator."""

import copy

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY
from models import load
from models.blocks.attention import GroupedQuery
from models.errors import ItemError
from models.hub.control_tokens import TokenizerError
from models.hub.fields import ConfigError, UnknownConfigFieldError, UnsupportedConfigError
from models.media.sampling import TrimmedSampling
from models.ports.idefics3.images import ImageConfig
from models.ports.idefics3.port import VIDEOS as FRAMES
from models.ports.idefics3.video import in_words, video_config_from_hf
from models.registry import ARCHITECTURES
from tests.idefics3_files import PREPROCESSING
from tests.models import tiny_idefics3
from tests.pictures import picture

CONTEXT = VOCABULARY.index("<|image_pad|>")
FENCE = VOCABULARY.index("<|vision_start|>")
WHOLE = VOCABULARY.index("<|vision_end|>")
CAPACITY = 192
QUESTION = "which colour is the cell on the page?"

PUBLISHED = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_seq_len": 81,
    "image_token_id": 49153,
    "model_type": "idefics3",
    "scale_factor": 3,
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "num_key_value_heads": 32,
        "pad_token_id": 2,
        "perceiver_config": {"resampler_n_latents": 64},
        "pixel_shuffle_factor": 3,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 273768.0,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "use_resampler": False,
        "vocab_size": 49155,
    },
    "tie_word_embeddings": False,
    "use_reentrant_checkpointing": False,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "max_image_size": {"longest_edge": 384},
        "model_type": "idefics3",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "size": {"longest_edge": 1920},
        "tie_word_embeddings": False,
        "use_base_siglip": False,
    },
    "vocab_size": 49155,
}
"""SmolVLM of 2.2B parameters, as its config.json has it."""


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
    config = ARCHITECTURES["idefics3"].config_from_hf(PUBLISHED)
    assert config.text.attention == GroupedQuery(32, 32, 64) and config.text.max_positions == 16384
    assert (config.vision.side, config.vision.merge, config.vision.tokens) == (27, 3, 81)
    assert config.image_token_id == 49153
    own = ImageConfig.from_hf(PREPROCESSING, patch_size=16)
    assert own == ImageConfig(patch_size=16, longest_edge=2048, tile=512)
    assert ImageConfig.from_hf({}, patch_size=14).tile == 364


@pytest.mark.parametrize(
    ("path", "value", "error", "named"),
    [
        ("text_config/qk_layer_norms", True, UnsupportedConfigError, "qk_layer_norms"),
        ("text_config/use_resampler", True, UnsupportedConfigError, "use_resampler"),
        ("text_config/model_type", "qwen2", UnsupportedConfigError, "model_type"),
        ("text_config/sharpness", 2, UnknownConfigFieldError, "sharpness"),
        ("vision_config/model_type", "clip_vision_model", UnsupportedConfigError, "model_type"),
        ("vision_config/temporal_patch_size", 2, UnknownConfigFieldError, "temporal_patch_size"),
        ("vision_config/image_size", 8, UnsupportedConfigError, "0 x 0 patches"),
        ("scale_factor", 2, UnsupportedConfigError, "27 x 27 patches.*scale_factor merges 2 x 2"),
        ("scale_factor", 0, UnsupportedConfigError, "scale_factor"),
        ("vocab_size", 49152, UnsupportedConfigError, "vocab_size"),
        ("image_token_id", -1, UnsupportedConfigError, "image_token_id"),
        ("quantization_config", {"bits": 4}, UnsupportedConfigError, "quantization_config"),
    ],
)
def test_what_is_not_served_is_named(path, value, error, named):
    with pytest.raises(error, match=named):
        ARCHITECTURES["idefics3"].config_from_hf(changed(path, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resample", 3),
        ("do_pad", False),
        ("size", {"height": 512, "width": 512}),
        ("max_image_size", {"longest_edge": 16}),
        ("image_processor_type", "CLIPImageProcessor"),
        ("do_image_splitting", "yes"),
        ("do_sharpen", True),
    ],
)
def test_other_preprocessing_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ImageConfig.from_hf({**PREPROCESSING, field: value})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_idefics3.write(tmp_path_factory.mktemp("hub") / "smolvlm")


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


def ids(segment):
    return np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()


@pytest.mark.parametrize(
    ("size", "grid"), [((24, 24), (3, 3)), ((7, 30), (3, 1)), ((48, 10), (1, 3)), ((1, 1), (3, 3))]
)
def test_an_image_is_its_tiles_behind_their_places(vlm, size, grid):
    segment = vlm.prepare(picture(*size))
    rows, columns = grid
    places = [vlm._chat.token(f"<row_{r + 1}_col_{c + 1}>") for r in range(rows) for c in range(columns)]
    tiles = [number for place in [*places, WHOLE] for number in (FENCE, place, CONTEXT)]
    assert ids(segment) == [*tiles, FENCE]  # to this tokenizer a line break is nothing
    np.testing.assert_array_equal(np.flatnonzero(segment.inputs["is_media"]), np.arange(2, len(tiles), 3))
    assert segment.advance == len(tiles) + 1


def test_an_image_that_is_not_split_is_one_tile(folder, tmp_path):
    whole = load(tiny_idefics3.write(tmp_path / "whole", images={"do_image_splitting": False}))
    assert ids(whole.prepare(picture(48, 10))) == [FENCE, WHOLE, CONTEXT, FENCE]


def test_tiles_do_not_see_each_other(vlm):
    image = np.asarray(picture(24, 24))
    other = image.copy()
    other[:8, 8:16] ^= 0xFF  # the second tile
    first, second = (np.asarray(vlm.prepare(each).inputs["media"]) for each in (image, other))
    differ = (first != second).any(-1)
    assert np.flatnonzero(differ).tolist() == [5, 29]  # and the whole image


def test_places_without_a_token_are_refused(folder, tmp_path):
    """The tokenizer has tokens for three rows and columns."""
    four = tiny_idefics3.write(tmp_path / "four", images={"size": {"longest_edge": 32}})
    with pytest.raises(TokenizerError, match="no control token '<row_1_col_4>'"):
        load(four).prepare(picture(32, 32))


def test_tiles_of_a_size_that_the_tower_has_no_positions_for_are_refused(tmp_path):
    other = tiny_idefics3.write(tmp_path / "other", images={"max_image_size": {"longest_edge": 16}})
    with pytest.raises(UnsupportedConfigError, match=r"size is 16 x 16 .* positions for .*image_size\), 8 x 8"):
        load(other)


# Videos ---------------------------------------------------------------------------------------------------------------


def video(times, rows=9, columns=13, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (len(times), rows, columns, 3), np.uint8)
    return kj.Video(frames, np.asarray(times, np.float32))


def test_frames_stand_behind_their_times(vlm):
    item = video([0, 1.5, 75])
    segment = vlm.prepare(item)
    said = vlm._chat.ids("You are provided the following series of three frames from a 0:01:15 [H:MM:SS] video.")
    lines = [vlm._chat.ids(f"Frame from {at}:") for at in ("00:00", "00:01", "01:15")]
    frames = [[*line, FENCE, WHOLE, CONTEXT, FENCE] for line in lines]
    assert ids(segment) == [*said, *(number for frame in frames for number in frame)]
    assert int(segment.inputs["is_media"].sum()) == 3
    # A frame is one tile, as an image that is not split.
    places = np.flatnonzero(segment.inputs["is_media"])
    alone = vlm.prepare(kj.Video(item.frames[1:2], [0.0]))
    (place,) = np.flatnonzero(alone.inputs["is_media"])
    np.testing.assert_array_equal(segment.inputs["media"][places[1]], alone.inputs["media"][place])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (121, "one hundred and twenty-one"),
        (999, "nine hundred and ninety-nine"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (1100, "one thousand, one hundred"),
        (123456, "one hundred and twenty-three thousand, four hundred and fifty-six"),
    ],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words


@pytest.mark.parametrize(("tokens", "frames"), [(1, [1] * 5), (2, [2, 2, 1]), (99, [5])])
def test_a_long_video_is_cut_between_frames(vlm, tokens, frames):
    whole = video(range(5))
    parts = vlm.cut(whole, tokens=tokens)
    assert [len(part.frames) for part in parts] == frames
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert len({vlm.prepare(part).content for part in parts}) == len(parts)


def test_settings_of_videos(vlm, tmp_path):
    stated = {"fps": 2, "max_frames": 12, "video_size": {"longest_edge": 40}}
    own = {**tiny_idefics3.IMAGES, "video_sampling": stated}
    assert video_config_from_hf(own) == ImageConfig(longest_edge=40, tile=8, split=False)
    apart = {**own, "video_processor_type": "SmolVLMVideoProcessor", "do_sample_frames": True}
    apart.pop("image_processor_type")
    assert video_config_from_hf(apart) == video_config_from_hf(own)
    assert video_config_from_hf(tiny_idefics3.IMAGES).longest_edge == 24
    with pytest.raises(UnknownConfigFieldError, match="video_sampling.*sharpness"):
        video_config_from_hf({**own, "video_sampling": {**stated, "sharpness": 1}})
    with pytest.raises(UnsupportedConfigError, match="video_sampling"):
        video_config_from_hf({**own, "video_sampling": 5})
    with pytest.raises(UnsupportedConfigError, match="video_processor_type"):
        video_config_from_hf({**own, "video_processor_type": "InternVLVideoProcessor"})
    sampling = FRAMES.sampling(own, vlm.config)
    assert (sampling.fps, sampling.most) == (2, 12)
    assert FRAMES.sampling({}, vlm.config) == TrimmedSampling(1.0, most=64)
    other = tiny_idefics3.write(tmp_path / "other", images={"video_sampling": {"fps": 0}})
    with pytest.raises(UnsupportedConfigError, match="fps"):
        load(other)


def test_idefics3_reads_no_videos(tmp_path):
    other = load(tiny_idefics3.write(tmp_path / "idefics3", model_type="idefics3"))
    with pytest.raises(ItemError, match="of type Video; this model reads text.*images"):
        other.prepare(video([0, 1]))


def test_what_users_write_is_no_control_token(vlm):
    given = ids(vlm.prepare("<image> <fake_token_around_image><global-img> <row_1_col_1>"))
    assert not {FENCE, WHOLE, CONTEXT, vlm._chat.token("<row_1_col_1>")} & {*given}


ITEMS = {
    "images": [picture(16, 9), picture(7, 30)],
    "parts": [["a red star.", picture(20, 8), "a blue moon."], picture(8, 8)],
    "video": ["a red star.", [video([0, 1, 2]), "a blue moon.", picture(9, 9)]],
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
