"""InternVL3: configurations of the hub, preprocessing, and what is refused of either."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from models import load
from models.blocks.attention import GroupedQuery
from models.hub.fields import ConfigError, MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.hub.refusals import UnknownModelError
from models.ports.internvl.images import ImageConfig, canvas, preprocess_image
from models.ports.internvl.port import ARCHITECTURE
from models.ports.internvl.vision import VisionConfig
from models.ports.internvl.weights import vision_ignored
from tests.internvl_files import PREPROCESSING
from tests.models.ports.test_port_configs import INTERNVL

LARGE = VisionConfig(
    depth=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    in_channels=3,
    patch_size=4,
    out_hidden_size=24,
    image_size=16,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    stored_depth=3,
    rms=True,
    qkv_bias=False,
    qk_norm=True,
    final_norm=False,
    merge=2,
    projector_act="gelu",
)
"""InternViT as of 6B parameters."""
SMALL = replace(LARGE, rms=False, qkv_bias=True, qk_norm=False, final_norm=True, stored_depth=2)
"""As of 300M, with a norm behind it."""

INTERNVL_35 = {
    **{name: value for name, value in INTERNVL.items() if name != "text_config"},
    "image_token_id": 151671,
    "torch_dtype": "bfloat16",
    "text_config": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "debug": False,
        "eos_token_id": 151645,
        "ep_size": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "micro_forward": False,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "skip_checkpoint": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_deepep": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
SIX_BILLION = {
    "attention_bias": False,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "use_qk_norm": True,
}


def changed(path, value, mapping=INTERNVL):
    mapping = copy.deepcopy(mapping)
    *sections, name = path.split("/")
    section = mapping
    for each in sections:
        section = section[each]
    section[name] = value
    return mapping


# Configurations


def test_internvl3():
    config = ARCHITECTURE.config_from_hf(INTERNVL)
    assert config.text.attention == GroupedQuery(heads=14, kv_heads=2, head_dim=64, bias=True)
    assert (config.text.max_positions, config.text.tie_word_embeddings) == (
        32768,
        False,
    )  # dynamic NTK, up to its length
    vision = config.vision
    assert (vision.side, vision.tokens, vision.depth, vision.out_hidden_size) == (32, 256, 24, 896)
    assert (vision.rms, vision.qk_norm, vision.qkv_bias, vision.final_norm) == (False, False, True, False)
    assert config.image_token_id == 151667 and config.placeholders == {"image": 151667}


def test_internvl35():
    config = ARCHITECTURE.config_from_hf(INTERNVL_35)
    assert config.text.attention == GroupedQuery(heads=32, kv_heads=8, head_dim=128, norm_eps=1e-6)
    assert config.image_token_id == 151671
    six = {**INTERNVL_35, "vision_config": {**INTERNVL["vision_config"], **SIX_BILLION}}
    vision = ARCHITECTURE.config_from_hf(six).vision
    assert (vision.rms, vision.qk_norm, vision.qkv_bias, vision.head_dim) == (True, True, False, 128)


def test_what_a_file_leaves_out_has_transformers_default():
    sizes = {name: INTERNVL["text_config"][name] for name in ("hidden_size", "num_attention_heads")}
    text = {**sizes, "num_key_value_heads": 2}
    config = ARCHITECTURE.config_from_hf({"model_type": "internvl", "text_config": text, "vision_config": {}})
    assert config.text.attention.bias and config.text.max_positions == 32768  # Qwen2's
    vision = config.vision
    assert (vision.hidden_size, vision.depth, vision.num_heads, vision.image_size) == (1024, 24, 16, 448)
    assert (vision.qkv_bias, vision.rms, vision.qk_norm, vision.merge) == (False, False, False, 2)
    assert vision.layer_norm_eps == 1e-6


@pytest.mark.parametrize(("layer", "depth"), [(-1, 24), (-2, 23), (-24, 1), (1, 1), (24, 24)])
@pytest.mark.parametrize("pooled", [True, False])
def test_the_norm_behind_the_tower_is_that_of_its_very_last_output(layer, depth, pooled):
    mapping = changed("vision_config/use_mean_pooling", pooled, changed("vision_feature_layer", layer))
    vision = ARCHITECTURE.config_from_hf(mapping).vision
    assert (vision.depth, vision.final_norm) == (depth, layer == -1 and not pooled)


@pytest.mark.parametrize(
    ("path", "value", "error", "named"),
    [
        ("text_config/model_type", "qwen3_moe", UnsupportedConfigError, "model_type is 'qwen3_moe'"),
        ("text_config/model_type", "gpt_oss", UnsupportedConfigError, "only 'qwen2' or 'qwen3' or 'llama'"),
        ("text_config/model_type", ["qwen2"], UnsupportedConfigError, "model_type"),
        ("text_config/num_key_value_heads", 5, UnsupportedConfigError, "text_config: width 896, 14 query heads, 5"),
        ("text_config/use_sliding_window", 1, UnsupportedConfigError, "use_sliding_window is 1"),
        ("vision_config/model_type", "intern_vit_6b", UnsupportedConfigError, "model_type is 'intern_vit_6b'"),
        ("vision_config/norm_type", "batch_norm", UnsupportedConfigError, "norm_type is 'batch_norm'"),
        ("vision_config/norm_type", True, UnsupportedConfigError, "norm_type is True"),
        ("vision_config/use_mask_token", True, UnsupportedConfigError, "use_mask_token is True"),
        ("vision_config/use_absolute_position_embeddings", False, UnsupportedConfigError, "use_absolute_position"),
        ("vision_config/use_qk_norm", 1, UnsupportedConfigError, "use_qk_norm is 1"),
        ("vision_config/image_size", [448, 224], UnsupportedConfigError, r"image_size is \[448, 224\]"),
        ("vision_config/image_size", [448], UnsupportedConfigError, "image_size"),
        ("vision_config/image_size", 450, UnsupportedConfigError, "image_size is 450; expected a multiple"),
        ("vision_config/image_size", [14 * 31] * 2, UnsupportedConfigError, "31 x 31 patches.*merges 2 x 2"),
        ("vision_config/patch_size", [14, 16], UnsupportedConfigError, "patch_size"),
        ("vision_config/patch_size", [0, 0], UnsupportedConfigError, "patch_size"),
        ("vision_config/num_attention_heads", 15, UnsupportedConfigError, "15 heads of width 1024"),
        ("vision_config/hidden_act", "relu", UnsupportedConfigError, "hidden_act is 'relu'"),
        ("downsample_ratio", 0.3, UnsupportedConfigError, "downsample_ratio is 0.3; expected 1, 0.5 or 0.25"),
        ("downsample_ratio", 2.0, UnsupportedConfigError, "downsample_ratio is 2.0"),
        ("downsample_ratio", -0.5, UnsupportedConfigError, "downsample_ratio is -0.5"),
        ("projector_hidden_act", "silu", UnsupportedConfigError, "projector_hidden_act is 'silu'"),
        ("vision_feature_select_strategy", "full", UnsupportedConfigError, "vision_feature_select_strategy"),
        ("vision_feature_layer", [-1, -2], UnsupportedConfigError, "vision_feature_layer"),
        ("vision_feature_layer", 0, UnsupportedConfigError, "vision_feature_layer is 0; expected 1 to 24"),
        ("vision_feature_layer", 25, UnsupportedConfigError, "vision_feature_layer is 25"),
        ("vision_config/drop_path", 0.1, UnknownConfigFieldError, "drop_path"),
        ("text_config/mystery", 1, UnknownConfigFieldError, "mystery"),
        ("vision_config", None, MissingConfigFieldError, "vision_config"),
        ("text_config", None, MissingConfigFieldError, "text_config"),
    ],
)
def test_what_would_change_the_computation_is_refused(path, value, error, named):
    with pytest.raises(error, match=named):
        ARCHITECTURE.config_from_hf(changed(path, value))


def test_the_format_with_code_of_its_own_is_refused_with_what_to_do(tmp_path):
    files = {"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2"}, "downsample_ratio": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(files))
    with pytest.raises(UnknownModelError, match="internvl_chat.*load the repository.*InternVL3-1B-hf"):
        load(tmp_path)


# Tiles


def settings(**said):
    return ImageConfig.from_hf({**PREPROCESSING, **said})


def test_preprocessing_as_the_hub_has_it():
    expected = ImageConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), tile=448, least=1, most=12)
    assert settings() == settings(size=448) == settings(crop_to_patches=True) == expected
    assert ImageConfig.from_hf({}) == ImageConfig()  # transformers' defaults


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"do_sharpen": True}, "do_sharpen"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": 2}, "resample"),
        ({"size": {"height": 448, "width": 224}}, "size is 224 x 448"),
        ({"size": {"shortest_edge": 448}}, "shortest_edge"),
        ({"min_patches": 0}, "min_patches"),
        ({"max_patches": 10**9}, "max_patches"),
        ({"min_patches": 3, "max_patches": 2}, "min_patches is 3; expected at most max_patches, 2"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"image_std": [1, 0, 1]}, "image_std"),
    ],
)
def test_other_preprocessing_is_refused_by_name(said, named):
    with pytest.raises(ConfigError, match=named):
        settings(**said)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (448, 448, (1, 1)),
        (900, 900, (2, 2)),  # a tie of squares: as many tiles as have less than twice the pixels
        (1344, 1344, (3, 3)),
        (10, 10, (1, 1)),
        (600, 300, (2, 1)),
        (900, 450, (2, 1)),
        (1800, 900, (4, 2)),
        (1000, 77, (12, 1)),
        (77, 1000, (1, 12)),
        (800, 600, (4, 3)),
    ],
)
def test_canvas_by_hand(width, height, grid):
    assert canvas(width, height, settings()) == grid


def test_tiles_are_the_picture_row_by_row_and_the_whole_of_it_last():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    config = ImageConfig(patch_size=2, mean=(0.0,) * 3, std=(1.0,) * 3, rescale=1.0, tile=4)
    given = preprocess_image(image, config)
    assert given.grid == (7, 2, 2) and given.patches.shape == (28, 12)  # 3 x 2 tiles, and the whole
    tiles = given.patches.reshape(7, 2, 2, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(7, 4, 4, 3)
    for number in range(6):
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(tiles[number], image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
    whole = preprocess_image(image, ImageConfig(2, (0.0,) * 3, (1.0,) * 3, 1.0, tile=4, most=1))
    np.testing.assert_array_equal(given.patches[24:], whole.patches)


def test_what_does_not_run_is_ignored():
    def ignored(config, name):
        return any(re.fullmatch(pattern, f"vision_tower.{name}") for pattern in vision_ignored(config))

    for name in ("lambda_2", "attention.q_norm.weight", "mlp.fc1.bias", "layernorm_after.weight"):
        assert [ignored(LARGE, f"encoder.layer.{n}.{name}") for n in range(4)] == [False, False, True, False]
        assert not any(ignored(SMALL, f"encoder.layer.{n}.{name}") for n in range(4))
    assert not ignored(LARGE, "encoder.layer.2.adapter.weight")
    assert ignored(LARGE, "layernorm.bias") and not ignored(SMALL, "layernorm.bias")
