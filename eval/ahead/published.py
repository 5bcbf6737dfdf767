"""Configurations of published checkpoints by name: the numbers of their config.json that say how large they are.

None of them holds a weight. What a file leaves out has its port's default, as it has in the hub's own files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.hub.fields import read_json


class UnknownConfigurationError(ValueError):
    """A model whose configuration is neither known by name nor lies in a folder."""


def _qwen2_5_vl(text: dict[str, Any]) -> dict[str, Any]:
    vision = {"out_hidden_size": text["hidden_size"]}
    if text["hidden_size"] == 2048:
        vision |= {"hidden_size": 1280, "intermediate_size": 3420}
    return {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        **text,
        "vision_config": {
            **{"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
            **{"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112},
            **{"fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2},
            **vision,
        },
    }


def _qwen3_vl(text: dict[str, Any], vision: dict[str, Any], *, experts: bool = False) -> dict[str, Any]:
    kind = "qwen3_vl_moe" if experts else "qwen3_vl"
    ties = text.pop("tie_word_embeddings")
    return {
        "model_type": kind,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": ties,
        "text_config": {
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "model_type": f"{kind}_text",
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "vocab_size": 151936,
            **text,
        },
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "model_type": kind,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }


_WIDE_TOWER = {
    **{"deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_size": 1152, "intermediate_size": 4304},
}
_NARROW_TOWER = {
    **{"deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_size": 1024, "intermediate_size": 4096},
}

_INTERNVL_TOWER = {
    "attention_bias": True,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": [448, 448],
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "model_type": "internvl_vision",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": [14, 14],
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}

CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-vl-3b": _qwen2_5_vl(
        {
            **{"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_hidden_layers": 36},
            **{"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936},
        }
    ),
    "qwen2.5-vl-7b": _qwen2_5_vl(
        {
            **{"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28},
            **{"num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064},
        }
    ),
    "qwen3-vl-4b": _qwen3_vl(
        {
            **{"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36},
            **{"num_key_value_heads": 8, "tie_word_embeddings": True},
        },
        _NARROW_TOWER,
    ),
    "qwen3-vl-8b": _qwen3_vl(
        {
            **{"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36},
            **{"num_key_value_heads": 8, "tie_word_embeddings": False},
        },
        _WIDE_TOWER,
    ),
    "qwen3-vl-30b-a3b": _qwen3_vl(
        {
            **{"decoder_sparse_step": 1, "hidden_size": 2048, "intermediate_size": 6144, "mlp_only_layers": []},
            **{"moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8},
            **{"num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4},
            "tie_word_embeddings": False,
        },
        _WIDE_TOWER,
        experts=True,
    ),
    "kimi-vl-a3b": {
        "model_type": "kimi_vl",
        "media_placeholder_token_id": 163605,
        "text_config": {
            **{"first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11264},
            **{"kv_lora_rank": 512, "max_position_embeddings": 131072, "model_type": "deepseek_v3"},
            **{"moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64},
            **{"n_shared_experts": 2, "norm_topk_prob": True, "num_attention_heads": 16, "num_experts_per_tok": 6},
            **{"num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128},
            **{"qk_rope_head_dim": 64, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 800000.0},
            **{"routed_scaling_factor": 2.446, "scoring_func": "sigmoid", "tie_word_embeddings": False},
            **{"topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 163840},
        },
        "vision_config": {
            **{"hidden_size": 1152, "init_pos_emb_height": 64, "init_pos_emb_width": 64, "intermediate_size": 4304},
            **{"merge_kernel_size": [2, 2], "model_type": "moonvit", "num_attention_heads": 16},
            **{"num_hidden_layers": 27, "patch_size": 14},
        },
    },
    "deepseek-vl-7b": {
        "model_type": "deepseek_vl",
        "image_token_id": 100015,
        "text_config": {
            **{"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 16384},
            **{"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 30, "num_key_value_heads": 32},
            **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 102400},
        },
        "vision_config": {
            **{"hidden_act": "gelu", "hidden_size": 1024, "image_size": 384, "intermediate_size": 4096},
            **{"model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24},
            **{"patch_size": 16, "vision_use_head": False},
        },
    },
    "llava-1.5-7b": {
        "model_type": "llava",
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "text_config": {
            **{"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064},
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **{"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model"},
            **{"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "internvl3-8b": {
        "model_type": "internvl",
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": 151667,
        "projector_hidden_act": "gelu",
        "text_config": {
            **{"hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944, "model_type": "qwen2"},
            **{"max_position_embeddings": 32768, "num_attention_heads": 28, "num_hidden_layers": 28},
            **{"num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "vocab_size": 151674},
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        },
        "vision_config": _INTERNVL_TOWER,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_act": "silu",
        **{"hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9},
        **{"num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_theta": 100000},
        **{"tie_word_embeddings": True, "vocab_size": 49152},
    },
}
"""Of each model the config.json, as far as it says how large the model is."""


def configuration(name: str) -> Mapping[str, Any]:
    """The config.json of a model: one known by name, or that of a folder in hub format, or the file itself.

    Raises:
        UnknownConfigurationError: there is no such model, or no config.json.
    """
    known = CONFIGURATIONS.get(name.strip().lower())
    if known is not None and not Path(name).exists():
        return known
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UnknownConfigurationError(
            f"no configuration of {name!r:.200}; expected a folder with a config.json, or one of "
            f"{', '.join(CONFIGURATIONS)}"
        )
    return read_json(file)
