"""Configurations as the published checkpoints spell them, and what each port refuses."""

import copy

import pytest

from kamera_jax.rope import UnsupportedRopeError, inverse_frequencies
from models.blocks.attention import GroupedQuery, Latent
from models.blocks.moe import Experts
from models.hub.fields import MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.registry import ARCHITECTURES

KIMI_VL = {
    "architectures": ["KimiVLForConditionalGeneration"],
    "auto_map": {"AutoConfig": "configuration_kimi_vl.KimiVLConfig"},
    "model_type": "kimi_vl",
    "ignore_index": -100,
    "media_placeholder_token_id": 163605,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.3",
    "vocab_size": 163840,
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": 163584,
        "eos_token_id": 163585,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 11264,
        "kv_lora_rank": 512,
        "max_position_embeddings": 131072,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "num_nextn_predict_layers": 0,
        "pad_token_id": 163838,
        "pretraining_tp": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 800000.0,
        "routed_scaling_factor": 2.446,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 163840,
    },
    "vision_config": {
        "hidden_size": 1152,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "intermediate_size": 4304,
        "merge_kernel_size": [2, 2],
        "model_type": "moonvit",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "torch_dtype": "bfloat16",
    },
}

DEEPSEEK_VL = {
    "architectures": ["DeepseekVLForConditionalGeneration"],
    "model_type": "deepseek_vl",
    "image_token_id": 100015,
    "torch_dtype": "float16",
    "transformers_version": "4.54.0.dev0",
    "text_config": {
        "attention_bias": False,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 16384,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 102400,
    },
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 384,
        "intermediate_size": 4096,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 16,
        "vision_use_head": False,
    },
}

LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}

INTERNVL = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 256,
    "image_token_id": 151667,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "use_bfloat16": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151674,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.0.dev0",
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 1024,
        "image_size": [448, 448],
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}

PUBLISHED = {"kimi_vl": KIMI_VL, "deepseek_vl": DEEPSEEK_VL, "llava": LLAVA, "internvl": INTERNVL}


def read(mapping):
    return ARCHITECTURES[mapping["model_type"]].config_from_hf(mapping)


def changed(kind, path, value):
    """A published configuration with one field set, or removed where the value is ``...``."""
    mapping = copy.deepcopy(PUBLISHED[kind])
    *sections, name = path.split("/")
    section = mapping
    for each in sections:
        section = section[each]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    return mapping


def test_kimi_vl():
    config = read(KIMI_VL)
    text = config.text
    assert text.attention == Latent(heads=16, latent_dim=512, nope_dim=128, rope_dim=64, value_dim=128)
    assert text.attention.kv_widths == (64, 512, 1) and text.attention.scale == 192**-0.5
    assert text.experts == Experts(64, 6, 1408, shared_size=2816, scale=2.446)
    assert text.stacks == {"layers": range(1), "moe_layers": range(1, 27)}
    assert text.rope.inv_freq == tuple(inverse_frequencies(64, 800000.0).tolist()) and text.rope.axes == 1
    assert config.vision.out_hidden_size == 2048 and config.image_token_id == 163605


def test_deepseek_vl():
    config = read(DEEPSEEK_VL)
    assert config.text.attention == GroupedQuery(heads=16, kv_heads=16, head_dim=128)
    assert config.text.experts is None and config.text.stacks == {"layers": range(24)}
    assert (config.vision.side, config.vision.hidden_act, config.image_token_id) == (24, "gelu", 100015)


def test_llava_takes_what_is_left_out_from_llama():
    config = read(LLAVA)
    assert config.text.attention == GroupedQuery(heads=32, kv_heads=32, head_dim=128)
    assert (config.text.hidden_size, config.text.intermediate_size, config.text.num_hidden_layers) == (4096, 11008, 32)
    assert (config.vision.depth, config.vision.stored_depth, config.image_token_id) == (23, 24, 32000)


def test_yarn_sharpens_the_scores():
    yarn = {
        "type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    text = read(changed("kimi_vl", "text_config/rope_scaling", yarn)).text
    assert text.attention.score_factor == pytest.approx(1.3465735902799727**2)  # 0.1 ln 32 + 1
    assert text.rope.scale == 1.0


def test_the_head_is_tied_by_either_section():
    assert not read(LLAVA).text.tie_word_embeddings
    assert read(changed("llava", "tie_word_embeddings", True)).text.tie_word_embeddings
    inner = changed("llava", "tie_word_embeddings", ...)
    inner["text_config"]["tie_word_embeddings"] = True
    assert read(inner).text.tie_word_embeddings


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("section", ["", "text_config/", "vision_config/"])
def test_an_unknown_field_is_refused(kind, section):
    with pytest.raises(UnknownConfigFieldError, match="mystery"):
        read(changed(kind, f"{section}mystery", 1))


@pytest.mark.parametrize(
    ("kind", "path", "value", "error", "named"),
    [
        ("kimi_vl", "text_config/kv_lora_rank", ..., MissingConfigFieldError, "kv_lora_rank"),
        ("kimi_vl", "text_config/scoring_func", "softmax", UnsupportedConfigError, "scoring_func is 'softmax'"),
        ("kimi_vl", "text_config/topk_method", "greedy", UnsupportedConfigError, "topk_method"),
        ("kimi_vl", "text_config/n_group", 5, UnsupportedConfigError, "64 experts in 5 groups"),
        ("kimi_vl", "text_config/n_group", 64, UnsupportedConfigError, "groups of one expert"),
        ("kimi_vl", "text_config/num_experts_per_tok", 65, UnsupportedConfigError, "num_experts_per_tok is 65"),
        ("kimi_vl", "text_config/first_k_dense_replace", 28, UnsupportedConfigError, "expected 0 to 27"),
        ("kimi_vl", "text_config/num_key_value_heads", 8, UnsupportedConfigError, "num_key_value_heads is 8"),
        ("kimi_vl", "text_config/rope_interleave", False, UnsupportedConfigError, "rope_interleave"),
        ("kimi_vl", "vocab_size", 7, UnsupportedConfigError, "vocab_size is 7"),
        ("kimi_vl", "quantization_config", {"bits": 4}, UnsupportedConfigError, "quantization_config"),
        ("deepseek_vl", "text_config/attention_bias", True, UnsupportedConfigError, "attention_bias is True"),
        ("deepseek_vl", "text_config/num_key_value_heads", 3, UnsupportedConfigError, "3 KV heads"),
        ("deepseek_vl", "text_config/rope_scaling", {"type": "mrope"}, UnsupportedRopeError, "'mrope'"),
        ("deepseek_vl", "text_config/rope_scaling", {"type": "dynamic"}, UnsupportedRopeError, "needs 'factor'"),
        ("llava", "text_config/model_type", "mistral", UnsupportedConfigError, "model_type is 'mistral'"),
        ("llava", "text_config", ..., MissingConfigFieldError, "text_config"),
        ("llava", "vision_config", ..., MissingConfigFieldError, "vision_config"),
    ],
)
def test_what_would_change_the_computation_is_refused(kind, path, value, error, named):
    with pytest.raises(error, match=named):
        read(changed(kind, path, value))


def test_a_model_without_experts_reads():
    text = read(changed("kimi_vl", "text_config/first_k_dense_replace", 27)).text
    assert text.experts is None and text.stacks == {"layers": range(27)}
