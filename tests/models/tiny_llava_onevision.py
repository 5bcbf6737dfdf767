"""A tiny random LLaVA-OneVision as a hub folder; without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models.hub.weights import save_params
from models.ports.llava_onevision.port import ARCHITECTURE
from tests.models.tiny_ports import binding_params

SIDE = 10
PATCH = 4
"""2 x 2 patches a tile, and 2 pixels that are not read."""

PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

CONFIG: dict[str, Any] = {
    "model_type": "llava_onevision",
    "image_grid_pinpoints": PINPOINTS,
    "image_token_index": VOCABULARY.index("<|image_pad|>"),
    "video_token_index": VOCABULARY.index("<|video_pad|>"),
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "use_image_newline_parameter": True,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "eos_token_id": VOCABULARY.index("<|im_end|>"),
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "image_size": SIDE,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": PATCH,
        "vision_use_head": False,
    },
}
PREPROCESSING: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_grid_pinpoints": PINPOINTS,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "LlavaOnevisionProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE, "width": SIDE},
}


def write(folder: Path, stored: Any = np.float32, *, images: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        stored: dtype of the tensors.
        images: what preprocessor_config.json says beside `PREPROCESSING`.
        config: what config.json says beside `CONFIG`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(mapping))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, **(images or {})}))
    build_tokenizer(folder)
    read = ARCHITECTURE.config_from_hf(mapping)
    params = binding_params(ARCHITECTURE.declaration(read), 41)
    save_params(folder, params, ARCHITECTURE.weight_table(read), stored)
    return folder
