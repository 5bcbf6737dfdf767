"""A tiny random SmolVLM2 as a hub folder; without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.tiny.vocabulary import VOCABULARY
from models.hub.weights import save_params
from models.registry import ARCHITECTURES
from tests.idefics3_files import PREPROCESSING, SIZE, write_tokenizer
from tests.models.tiny_ports import binding_params

SIDE = 8
PATCH = 4
TOKENS = 1
"""Of a tile: 2 x 2 patches are one."""

IMAGES: dict[str, Any] = {
    **PREPROCESSING,
    "max_image_size": {"longest_edge": SIDE},
    "size": {"longest_edge": 3 * SIDE},
}
CONFIG: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": VOCABULARY.index("<|image_pad|>"),
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "vocab_size": SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
    },
    "vision_config": {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "image_size": SIDE,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": PATCH,
    },
}


def write(folder: Path, stored: Any = np.float32, *, images: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        stored: dtype of the tensors.
        images: what preprocessor_config.json says beside `IMAGES`.
        config: what config.json says beside `CONFIG`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(mapping))
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGES, **(images or {})}))
    write_tokenizer(folder)
    port = ARCHITECTURES[mapping["model_type"]]
    read = port.config_from_hf(mapping)
    params = binding_params(port.declaration(read), 31)
    save_params(folder, params, port.weight_table(read), stored)
    return folder
