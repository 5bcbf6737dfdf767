"""Tiny random Qwen2.5-Omni and Qwen3-Omni as hub folders; without torch."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.tiny.vocabulary import VOCABULARY
from models.hub.weights import save_params
from models.registry import ARCHITECTURES
from tests.models import tiny_qwen3_vl
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

_VL = tiny_qwen3_vl.config(experts=True)
_TOKENS = {
    name.replace("_index", "_id"): each
    for name, each in CONFIG["thinker_config"].items()
    if name.endswith(("_token_index", "_token_id"))
}
CONFIG3: dict[str, Any] = {
    "model_type": "qwen3_omni_moe",
    "enable_audio_output": False,
    "thinker_config": {
        "model_type": "qwen3_omni_moe_thinker",
        **_TOKENS,
        "vision_start_token_id": _VL["vision_start_token_id"],
        "position_id_per_seconds": 13,
        "text_config": {**_VL["text_config"], "model_type": "qwen3_omni_moe_text"},
        "vision_config": {**_VL["vision_config"], "model_type": "qwen3_omni_moe_vision_encoder"},
        "audio_config": {
            **CONFIG["thinker_config"]["audio_config"],
            "model_type": "qwen3_omni_moe_audio_encoder",
            "n_window": 50,
            "n_window_infer": 100,
            "downsample_hidden_size": 8,
        },
    },
}
CONFIG3["thinker_config"]["text_config"]["vocab_size"] = SIZE
"""Pieces of the audio tower are 100 frames, a second and 13 tokens, and windows have one."""

CONFIGS = {mapping["model_type"]: mapping for mapping in (CONFIG, CONFIG3)}


def config(family: str = "qwen2_5_omni", **text: Any) -> dict[str, Any]:
    """One of `CONFIGS` with other fields of the language model."""
    mapping = copy.deepcopy(CONFIGS[family])
    mapping["thinker_config"]["text_config"] |= text
    for section, name in (("vision_config", "out_hidden_size"), ("audio_config", "output_dim")):
        mapping["thinker_config"][section][name] = mapping["thinker_config"]["text_config"]["hidden_size"]
    return mapping


def write(
    folder: Path,
    preprocessing: dict[str, Any] | None = None,
    family: str = "qwen2_5_omni",
    *,
    alone: bool = False,
) -> Path:
    """Write the folder; attention binds, so that what stands before a chunk shows in it.

    Args:
        folder: is made.
        preprocessing: what preprocessor_config.json says beside `IMAGES`.
        family: one of `CONFIGS`.
        alone: whether config.json is that of a thinker that was saved by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = CONFIGS[family]["thinker_config"] if alone else CONFIGS[family]
    (folder / "config.json").write_text(json.dumps(mapping))
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGES, **(preprocessing or {})}))
    if family == "qwen3_omni_moe":
        videos = {**tiny_qwen3_vl.VIDEOS, "video_processor_type": "Qwen2VLVideoProcessor"}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    write_tokenizer(folder)
    port = ARCHITECTURES[mapping["model_type"]]
    read = port.config_from_hf(mapping)
    params = binding_params(port.declaration(read), 37)
    save_params(folder, params, port.weight_table(read), np.float32)
    return folder
