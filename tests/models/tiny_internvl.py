"""A tiny random InternVL3 as a hub folder; without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.tiny.vocabulary import VOCABULARY
from models.hub.weights import save_params
from models.ports.internvl.port import ARCHITECTURE
from tests.internvl_files import PREPROCESSING, write_tokenizer
from tests.models.tiny_ports import binding_params

SIDE = 8
PATCH = 4
TOKENS = 1
"""Of a tile: 2 x 2 patches are one."""

CONFIG: dict[str, Any] = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_seq_length": TOKENS,
    "image_token_id": VOCABULARY.index("<|image_pad|>"),
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "qwen3",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
    },
    "vision_config": {
        "model_type": "internvl_vision",
        "attention_bias": True,
        "hidden_size": 32,
        "image_size": [SIDE, SIDE],
        "intermediate_size": 48,
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": [PATCH, PATCH],
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
}


def write(folder: Path, stored: Any = np.float32, *, tiles: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        stored: dtype of the tensors.
        tiles: what preprocessor_config.json says beside what the hub's does.
        config: what config.json says beside `CONFIG`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(mapping))
    settings = {**PREPROCESSING, "size": {"height": SIDE, "width": SIDE}, **(tiles or {})}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    write_tokenizer(folder)
    read = ARCHITECTURE.config_from_hf(mapping)
    params = binding_params(ARCHITECTURE.declaration(read), 29)
    save_params(folder, params, ARCHITECTURE.weight_table(read), stored)
    return folder
