import copy

import pytest

from kamera_jax.rope import UnsupportedRopeError, inverse_frequencies
from models.architecture import Config
from models.blocks.attention import GroupedQuery
from models.hub.fields import ConfigError, MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.ports.qwen2_5_vl.config import config_from_hf

HUB = {  # the flat spelling of the 7B checkpoint
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}

TOP = (
    "architectures",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "tie_word_embeddings",
)


def nested():
    """What transformers 5 writes."""
    text = {
        name: value
        for name, value in HUB.items()
        if name
        not in {*TOP, "model_type", "vision_config", "vision_token_id", "rope_scaling", "rope_theta", "torch_dtype"}
    }
    text |= {
        "model_type": "qwen2_5_vl_text",
        "layer_types": ["full_attention"] * 28,
        "sliding_window": None,
        "pad_token_id": None,
        "dtype": "bfloat16",
        "rope_parameters": {"mrope_section": [16, 24, 24], "rope_theta": 1000000.0, "rope_type": "default"},
    }
    text.pop("transformers_version")
    vision = {
        name: value for name, value in HUB["vision_config"].items() if name not in ("in_chans", "spatial_patch_size")
    }
    vision |= {
        "model_type": "qwen2_5_vl_vision",
        "in_channels": 3,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    }
    return {
        **{name: HUB[name] for name in TOP},
        "model_type": "qwen2_5_vl",
        "dtype": "bfloat16",
        "transformers_version": "5.23.0",
        "text_config": text,
        "vision_config": vision,
    }


def twice():
    """What transformers 4.5x writes: everything, at the top level and again in text_config."""
    text = {**nested()["text_config"], "image_token_id": None, "vision_end_token_id": 151653, "vision_token_id": 151654}
    text |= {
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    }
    text.pop("rope_parameters")
    vision = {**HUB["vision_config"], "in_channels": 3, "model_type": "qwen2_5_vl", "torch_dtype": "float32"}
    return {**HUB, "text_config": text, "vision_config": vision, "rope_scaling": dict(text["rope_scaling"])}


def changed(base, path, value):
    config = copy.deepcopy(base)
    section = config
    *sections, name = path.split("/")
    for each in sections:
        section = section[each]
    section[name] = value
    return config


def test_reads_the_hub_spelling():
    config = config_from_hf(HUB)
    assert isinstance(config, Config)
    assert config.text.attention == GroupedQuery(heads=28, kv_heads=4, head_dim=128, bias=True)
    assert config.text.rms_norm_eps == 1e-6
    assert config.text.rope.sections == (16, 24, 24) and config.text.rope.section_layout == "contiguous"
    assert config.text.rope.inv_freq == tuple(inverse_frequencies(128, 1e6).tolist())
    assert config.vision.fullatt_block_indexes == (7, 15, 23, 31) and config.vision.out_hidden_size == 3584
    assert config.image_token_id == 151655
    assert hash(config) == hash(config_from_hf(HUB))


def test_one_rope_in_two_spellings_is_one_value():
    assert config_from_hf({**twice(), "rope_scaling": HUB["rope_scaling"]}) == config_from_hf(HUB)


@pytest.mark.parametrize("spelling", [nested, twice])
def test_every_spelling_says_the_same(spelling):
    assert config_from_hf(spelling()) == config_from_hf(HUB)


def test_what_a_file_leaves_out_has_the_default_of_transformers():
    short = {
        name: HUB["vision_config"][name]
        for name in ("hidden_size", "in_chans", "tokens_per_second", "spatial_patch_size")
    }
    assert config_from_hf({**HUB, "vision_config": short}) == config_from_hf(HUB)


@pytest.mark.parametrize(
    "base, section", [(HUB, ""), (nested(), ""), (nested(), "text_config/"), (HUB, "vision_config/")]
)
def test_unknown_fields_are_named(base, section):
    with pytest.raises(UnknownConfigFieldError, match="attention_sinks"):
        config_from_hf(changed(base, f"{section}attention_sinks", 4))


@pytest.mark.parametrize(
    "path, value",
    [
        ("model_type", "qwen2_vl"),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("attention_bias", False),
        ("layer_types", ["sliding_attention"] * 28),
        ("head_dim", 64),
        ("num_attention_heads", 27),
        ("num_key_value_heads", 3),
        ("hidden_size", "3584"),
        ("num_hidden_layers", 0),
        ("quantization_config", {"quant_method": "awq"}),
        ("tie_word_embeddings", "yes"),
        ("vision_config/hidden_act", "gelu"),
        ("vision_config/spatial_patch_size", 16),
        ("vision_config/in_chans", "3"),
        ("vision_config/out_hidden_size", 2048),
        ("vision_config/window_size", 27),
        ("vision_config/fullatt_block_indexes", [32]),
        ("vision_config/rope_parameters", {"rope_theta": 5000.0, "rope_type": "axial"}),
    ],
)
def test_other_computations_are_refused_by_name(path, value):
    name = {"num_attention_heads": "query heads", "num_key_value_heads": "KV heads"}.get(path, path.split("/")[-1])
    with pytest.raises(UnsupportedConfigError, match=name):
        config_from_hf(changed(HUB, path, value))


def test_two_values_for_one_field_are_refused():
    with pytest.raises(UnsupportedConfigError, match="vocab_size twice"):
        config_from_hf(changed(twice(), "text_config/vocab_size", 5))


@pytest.mark.parametrize("spelling", [lambda: dict(HUB), nested])
def test_either_section_ties_the_head(spelling):
    config = spelling()
    assert not config_from_hf(config).text.tie_word_embeddings
    assert config_from_hf({**config, "tie_word_embeddings": True}).text.tie_word_embeddings
    inside = changed(nested(), "text_config/tie_word_embeddings", True)
    assert config_from_hf(inside).text.tie_word_embeddings


def test_yarn_dynamic_and_what_is_not_known():
    yarn = {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4, "original_max_position_embeddings": 32768}
    spec = config_from_hf({**HUB, "rope_scaling": yarn}).text.rope
    assert spec.scale > 1 and spec.sections == (16, 24, 24)
    assert config_from_hf({**HUB, "rope_scaling": yarn}).text.max_positions == 131072
    dynamic = config_from_hf({**HUB, "rope_scaling": {**yarn, "type": "dynamic"}}).text
    assert dynamic.rope == config_from_hf(HUB).text.rope and dynamic.max_positions == 128000
    with pytest.raises(UnsupportedRopeError, match="wobble"):
        config_from_hf({**HUB, "rope_scaling": {**yarn, "wobble": 1}})


@pytest.mark.parametrize("missing", ["vision_config", "model_type", "rope_scaling"])
def test_what_must_be_there(missing):
    config = {name: value for name, value in HUB.items() if name != missing}
    with pytest.raises(MissingConfigFieldError, match=missing.replace("rope_scaling", "mrope_section")):
        config_from_hf(config)


def test_every_refusal_is_a_value_error():
    errors = (MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError)
    assert all(issubclass(error, ConfigError) for error in errors) and issubclass(ConfigError, ValueError)
