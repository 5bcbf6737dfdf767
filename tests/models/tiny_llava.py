"""A tiny random LLaVA-1.5 as a hub folder, in the dtype a checkpoint is stored in; without torch."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models.blocks.params import is_info
from models.hub.weights import save_params
from models.ports.llava.port import ARCHITECTURE

SIDE = 12
PATCH = 4

CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": VOCABULARY.index("<|image_pad|>"),
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "image_size": SIDE,
    },
}
PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}


def write(folder: Path, stored: Any, *, scale: float = 1.0, **config: Any) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        stored: dtype of the tensors.
        scale: factor on the random weights of the layers.
        config: what config.json says beside `CONFIG`, such as its dtype.
    """
    rng = np.random.default_rng(23)

    def leaf(info):
        size = {"fan_in": scale * info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.0, "embedding": 0.5}
        noise = size.get(info.init, 0.05) * rng.standard_normal(info.shape, np.float32)
        return np.float32(info.init == "ones") + noise

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    build_tokenizer(folder)
    read = ARCHITECTURE.config_from_hf(CONFIG)
    params = jax.tree.map(leaf, ARCHITECTURE.declaration(read), is_leaf=is_info)
    save_params(folder, params, ARCHITECTURE.weight_table(read), stored)
    return folder
