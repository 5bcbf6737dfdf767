"""The embedded model as a Hugging Face folder: configuration, tokenizer, preprocessing, weights."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from eval.tiny import pages
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer, image_processor_config
from models.params import Params
from models.qwen2_5_vl.config import Config, config_from_hf
from models.qwen2_5_vl.weights import weight_table
from models.weights import save_params

WIDTH, LAYERS, HEADS, KV_HEADS = 128, 5, 4, 2


def hf_config() -> dict[str, Any]:
    """The ``config.json`` of the embedded model: Qwen2.5-VL at a tiny size.

    Windows of the vision tower are one merged token wide and no block sees the whole image, so a cell's embedding does
    not depend on its neighbours.
    """
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "float32",
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
        "image_token_id": VOCABULARY.index("<|image_pad|>"),
        "video_token_id": VOCABULARY.index("<|video_pad|>"),
        "vision_start_token_id": VOCABULARY.index("<|vision_start|>"),
        "vision_end_token_id": VOCABULARY.index("<|vision_end|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": pages.CELL // 2,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": pages.CELL,
            "fullatt_block_indexes": [],
            "out_hidden_size": WIDTH,
            "hidden_act": "silu",
        },
    }


def config() -> Config:
    """The same, as the port reads it."""
    return config_from_hf(hf_config())


def write(folder: Path, params: Params) -> None:
    """Write the folder that `models.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", hf_config()), ("preprocessor_config.json", image_processor_config())):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    build_tokenizer(folder)
    save_params(folder, params, weight_table(config()), jnp.float32)
