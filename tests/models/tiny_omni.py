"""A tiny random Qwen2.5-Omni as a hub folder; without torch."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.tiny.vocabulary import VOCABULARY
from models.hub.weights import save_params
from models.registry import ARCHITECTURES
from tests.models.tiny_ports import binding_params
from tests.omni_files import AUDIO, BANDS, END, PREPROCESSING, SIZE, START, TOKENS, write_tokenizer

PATCH = 4
CELL = 2 * PATCH
"""Pixels along a side of a merged token."""

IMAGES: dict[str, Any] = {**PREPROCESSING, "patch_size": PATCH, "min_pixels": CELL**2, "max_pixels": 64 * CELL**2}
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_omni",
    "talker_config": {"model_type": "qwen2_5_omni_talker"},
    "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    "thinker_config": {
        "model_type": "qwen2_5_omni_thinker",
        "audio_token_index": TOKENS[AUDIO],
        "audio_start_token_id": TOKENS[START],
        "audio_end_token_id": TOKENS[END],
        "image_token_index": VOCABULARY.index("<|image_pad|>"),
        "video_token_index": VOCABULARY.index("<|video_pad|>"),
        "position_id_per_seconds": 25,
        "text_config": {
            "model_type": "qwen2_5_omni_text",
            "vocab_size": SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": False,
            "bos_token_id": VOCABULARY.index("<|endoftext|>"),
            "eos_token_id": VOCABULARY.index("<|im_end|>"),
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
        },
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder",
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "num_mel_bins": BANDS,
            "n_window": 10,
            "max_source_positions": 100,
            "output_dim": 64,
        },
    },
}
"""Pieces of the audio tower are 20 frames, 0.2 seconds and 5 tokens."""

PIECE = 20


def config(**text: Any) -> dict[str, Any]:
    """`CONFIG` with other fields of the language model."""
    mapping = copy.deepcopy(CONFIG)
    mapping["thinker_config"]["text_config"] |= text
    for section, name in (("vision_config", "out_hidden_size"), ("audio_config", "output_dim")):
        mapping["thinker_config"][section][name] = mapping["thinker_config"]["text_config"]["hidden_size"]
    return mapping


def write(folder: Path, preprocessing: dict[str, Any] | None = None) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        preprocessing: what preprocessor_config.json says beside `IMAGES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGES, **(preprocessing or {})}))
    write_tokenizer(folder)
    port = ARCHITECTURES["qwen2_5_omni"]
    read = port.config_from_hf(CONFIG)
    params = binding_params(port.declaration(read), 37)
    save_params(folder, params, port.weight_table(read), np.float32)
    return folder
