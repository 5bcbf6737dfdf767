"""Checkpoints whose KV cannot be reused as it is are refused by name, before a weight is read."""

import json

import pytest

from models import load

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
PHI = {**TEXT, "model_type": "phi3_v", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
CASES = {
    "dynamic NTK": [
        {"model_type": "llava", "text_config": {**TEXT, "model_type": "llama", "rope_scaling": DYNAMIC}},
        {
            "model_type": "deepseek_vl",
            "text_config": {
                **TEXT,
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
        },
        {"model_type": "kimi_vl", "text_config": {**TEXT, "model_type": "deepseek_v3", "rope_scaling": DYNAMIC}},
        {"model_type": "qwen2_5_vl", **TEXT, "rope_scaling": {**DYNAMIC, "mrope_section": [2, 3, 3]}},
        {"model_type": "internvl_chat", "llm_config": {**TEXT, "model_type": "internlm2", "rope_scaling": DYNAMIC}},
    ],
    "LongRoPE": [
        {**PHI, "rope_scaling": {"type": "su", **FACTORS}},
        {**PHI, "rope_scaling": {"type": "longrope", **FACTORS}},
        {
            "model_type": "llava",
            "text_config": {
                **TEXT,
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096, **FACTORS},
            },
        },
    ],
    "Gemma-3": [
        {"model_type": "gemma3", "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 8}},
    ],
}


@pytest.mark.parametrize(
    "reason, config",
    [
        pytest.param(reason, config, id=f"{reason}-{config['model_type']}")
        for reason in CASES
        for config in CASES[reason]
    ],
)
def test_it_is_refused_by_name(tmp_path, reason, config):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        load(tmp_path)


def test_longrope_within_its_original_length_is_not(tmp_path):
    """There it is one rotation; what is refused is the rest, which is missing."""
    text = {**TEXT, "model_type": "llama"}
    text["rope_scaling"] = {"type": "longrope", "original_max_position_embeddings": 4096, **FACTORS}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}), encoding="utf-8")
    with pytest.raises(ValueError, match="vision_config"):
        load(tmp_path)
