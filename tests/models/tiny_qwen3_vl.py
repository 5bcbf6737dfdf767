"""Tiny random Qwen3-VL models, dense and with experts, as hub folders; without torch."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models.blocks.params import is_info
from models.hub.weights import save_params
from models.registry import ARCHITECTURES

PATCH = 4
CELL = 2 * PATCH
"""Pixels along a side of a merged token."""

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": VOCABULARY.index("<|image_pad|>"),
    "video_token_id": VOCABULARY.index("<|video_pad|>"),
    "vision_start_token_id": VOCABULARY.index("<|vision_start|>"),
    "vision_end_token_id": VOCABULARY.index("<|vision_end|>"),
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default"},
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": 64,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
    },
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
PREPROCESSING = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "patch_size": PATCH,
    "size": {"shortest_edge": CELL**2, "longest_edge": 64 * CELL**2},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
VIDEOS = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "patch_size": PATCH,
    "size": {"shortest_edge": CELL**2, "longest_edge": 256 * CELL**2},
}


def config(experts: bool = False) -> dict[str, Any]:
    """What config.json says."""
    mapping = copy.deepcopy(CONFIG)
    if experts:
        mapping["model_type"] = "qwen3_vl_moe"
        mapping["text_config"] |= {**EXPERTS, "model_type": "qwen3_vl_moe_text"}
        mapping["vision_config"]["model_type"] = "qwen3_vl_moe"
    return mapping


def write(folder: Path, *, experts: bool = False, stored: Any = np.float32, scale: float = 1.0) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it."""
    mapping = config(experts)
    port = ARCHITECTURES[mapping["model_type"]]
    rng = np.random.default_rng(31)

    def leaf(info):
        size = {"fan_in": scale * info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.0, "embedding": 0.5}
        noise = size.get(info.init, 0.05) * rng.standard_normal(info.shape, np.float32)
        return np.float32(info.init == "ones") + noise

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(mapping))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(VIDEOS))
    build_tokenizer(folder)
    read = port.config_from_hf(mapping)
    params = jax.tree.map(leaf, port.declaration(read), is_leaf=is_info)
    save_params(folder, params, port.weight_table(read), stored)
    return folder
