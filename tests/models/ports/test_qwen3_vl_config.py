"""Configurations of Qwen3-VL as the published checkpoints spell them, and what the port refuses."""

import copy

import pytest

from kamera_jax.rope import UnsupportedRopeError, inverse_frequencies
from models.blocks.attention import GroupedQuery
from models.blocks.moe import Experts
from models.hub.fields import MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.registry import ARCHITECTURES

DENSE = {  # the 4B checkpoint
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
WITH_EXPERTS = {  # the 30B-A3B checkpoint
    **DENSE,
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": {
        **{name: value for name, value in DENSE["text_config"].items() if name != "tie_word_embeddings"},
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        **DENSE["vision_config"],
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl_moe",
        "out_hidden_size": 2048,
    },
}
PUBLISHED = {"qwen3_vl": DENSE, "qwen3_vl_moe": WITH_EXPERTS}


def read(mapping):
    return ARCHITECTURES[mapping["model_type"]].config_from_hf(mapping)


def changed(kind, **values):
    """A published configuration with fields set by their paths (``text_config__rope_theta``), or removed by ``...``."""
    mapping = copy.deepcopy(PUBLISHED[kind])
    for path, value in values.items():
        *sections, name = path.split("__")
        section = mapping
        for each in sections:
            section = section[each]
        if value is ...:
            del section[name]
        else:
            section[name] = value
    return mapping


def test_dense():
    config = read(DENSE)
    text = config.text
    assert text.attention == GroupedQuery(heads=32, kv_heads=8, head_dim=128, norm_eps=1e-6)
    assert (text.hidden_size, text.intermediate_size, text.max_positions) == (2560, 9728, 262144)
    assert text.rope.inv_freq == tuple(inverse_frequencies(128, 5e6).tolist())
    assert (text.rope.sections, text.rope.section_layout) == ((24, 20, 20), "interleaved")
    assert text.tie_word_embeddings and text.experts is None and text.stacks == {"layers": range(36)}
    assert (config.image_token_id, config.placeholders["video"]) == (151655, 151656)
    assert config.media == {"video": (151652, 151653)}
    vision = config.vision
    assert (vision.depth, vision.side, vision.deepstack_visual_indexes) == (24, 48, (5, 11, 17))
    assert (vision.pixels, vision.merged, vision.head_dim) == (3 * 2 * 16**2, 4096, 64)


def test_with_experts():
    config = read(WITH_EXPERTS)
    assert config.text.experts == Experts(128, 8, 768, scoring="softmax")
    assert config.text.stacks == {"moe_layers": range(48)} and not config.text.tie_word_embeddings
    assert config.vision.deepstack_visual_indexes == (8, 16, 24)


def test_dense_layers_come_first():
    both = changed("qwen3_vl_moe", text_config__mlp_only_layers=[1, 0])
    assert read(both).text.stacks == {"layers": range(2), "moe_layers": range(2, 48)}
    all_dense = changed("qwen3_vl_moe", text_config__decoder_sparse_step=49)
    assert read(all_dense).text.experts is None and read(all_dense).text.stacks == {"layers": range(48)}
    renamed = changed("qwen3_vl_moe", text_config__num_experts=..., text_config__num_local_experts=9)
    assert read(renamed).text.experts.count == 9


@pytest.mark.parametrize("kind", PUBLISHED)
def test_as_transformers_5_writes_it(kind):
    scaling = PUBLISHED[kind]["text_config"]["rope_scaling"]
    rope = {**scaling, "rope_theta": 5000000}
    mapping = changed(
        kind,
        text_config__rope_scaling=...,
        text_config__rope_theta=...,
        text_config__rope_parameters=rope,
        vision_config__rope_parameters={"rope_theta": 10000.0, "rope_type": "axial"},
        vision_config__model_type=f"{kind}_vision",
    )
    assert read(mapping) == read(PUBLISHED[kind])


def test_yarn_keeps_the_sections():
    scaling = {**DENSE["text_config"]["rope_scaling"], "rope_type": "yarn", "factor": 3.0}
    text = read(changed("qwen3_vl", text_config__rope_scaling=scaling)).text
    assert text.rope.sections == (24, 20, 20) and text.rope.scale > 1 and text.max_positions == 3 * 262144


def test_what_is_left_out_has_the_default_of_transformers():
    bare = {"model_type": "qwen3_vl", "text_config": {}, "vision_config": {"out_hidden_size": 4096}}
    bare["text_config"]["rope_scaling"] = {"mrope_section": [24, 20, 20]}
    text = read(bare).text
    assert text.attention == GroupedQuery(heads=32, kv_heads=32, head_dim=128, norm_eps=1e-6)
    assert text.rope.inv_freq == tuple(inverse_frequencies(128, 5e5).tolist()) and text.max_positions == 128000
    heads = {**bare, "text_config": {**bare["text_config"], "num_attention_heads": 8, "num_key_value_heads": None}}
    assert read(heads).text.attention.kv_heads == 8


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("section", ["", "text_config__", "vision_config__"])
def test_an_unknown_field_is_refused(kind, section):
    with pytest.raises(UnknownConfigFieldError, match="mystery"):
        read(changed(kind, **{f"{section}mystery": 1}))


MROPE = {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}
REFUSED = [
    ("qwen3_vl", "text_config", ..., MissingConfigFieldError, "text_config"),
    ("qwen3_vl", "vision_config", ..., MissingConfigFieldError, "vision_config"),
    ("qwen3_vl", "text_config__rope_scaling", {"rope_type": "default"}, MissingConfigFieldError, "mrope_section"),
    ("qwen3_vl", "text_config__rope_scaling", {**MROPE, "rope_type": "spiral"}, UnsupportedRopeError, "'spiral'"),
    (
        "qwen3_vl",
        "text_config__rope_scaling",
        {**MROPE, "mrope_interleaved": False},
        UnsupportedRopeError,
        "mrope_interleaved does not match",
    ),
    ("qwen3_vl", "text_config__rope_scaling", {**MROPE, "mrope_section": [24, 40]}, UnsupportedConfigError, "3 integ"),
    ("qwen3_vl", "text_config__rope_scaling", {**MROPE, "mrope_section": [8, 8, 8]}, ValueError, "sum to 24"),
    ("qwen3_vl", "text_config__num_key_value_heads", 5, UnsupportedConfigError, "5 KV heads"),
    ("qwen3_vl", "text_config__model_type", "qwen3", UnsupportedConfigError, "model_type is 'qwen3'"),
    ("qwen3_vl", "text_config__hidden_act", "gelu", UnsupportedConfigError, "hidden_act is 'gelu'"),
    ("qwen3_vl", "text_config__num_hidden_layers", 2, UnsupportedConfigError, "names 3 blocks.*model has 2"),
    ("qwen3_vl", "vision_config__out_hidden_size", 2048, UnsupportedConfigError, "expected the text width, 2560"),
    ("qwen3_vl", "vision_config__num_heads", 512, UnsupportedConfigError, "multiple of 4"),
    ("qwen3_vl", "vision_config__num_heads", 15, UnsupportedConfigError, "15 heads of width 1024"),
    ("qwen3_vl", "vision_config__patch_size", [16, 16], UnsupportedConfigError, "patch_size is"),
    ("qwen3_vl", "vision_config__num_position_embeddings", 2303, UnsupportedConfigError, "a square number"),
    ("qwen3_vl", "vision_config__deepstack_visual_indexes", [11, 5], UnsupportedConfigError, "in rising order"),
    ("qwen3_vl", "vision_config__deepstack_visual_indexes", [5, 5], UnsupportedConfigError, "each once"),
    ("qwen3_vl", "vision_config__deepstack_visual_indexes", [5, 24], UnsupportedConfigError, "blocks below 24"),
    ("qwen3_vl", "vision_config__deepstack_visual_indexes", [-1], UnsupportedConfigError, "deepstack_visual_indexes"),
    ("qwen3_vl", "vision_config__hidden_act", "relu", UnsupportedConfigError, "hidden_act is 'relu'"),
    ("qwen3_vl", "vision_config__rope_parameters", {"rope_theta": 1.0}, UnsupportedConfigError, "rope_parameters"),
    ("qwen3_vl", "quantization_config", {"bits": 4}, UnsupportedConfigError, "quantization_config"),
    ("qwen3_vl_moe", "text_config__mlp_only_layers", [1], UnsupportedConfigError, r"makes layers \[1\] of 48 dense"),
    ("qwen3_vl_moe", "text_config__decoder_sparse_step", 2, UnsupportedConfigError, "decoder_sparse_step 2"),
    ("qwen3_vl_moe", "text_config__num_experts_per_tok", 129, UnsupportedConfigError, "at most the 128 experts"),
    ("qwen3_vl_moe", "text_config__norm_topk_prob", False, UnsupportedConfigError, "norm_topk_prob is False"),
    ("qwen3_vl_moe", "text_config__sliding_window", 4096, UnsupportedConfigError, "sliding_window is 4096"),
]


@pytest.mark.parametrize(("kind", "path", "value", "error", "named"), REFUSED)
def test_what_would_change_the_computation_is_refused(kind, path, value, error, named):
    with pytest.raises(error, match=named):
        read(changed(kind, **{path: value}))
