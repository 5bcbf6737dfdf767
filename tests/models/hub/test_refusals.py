"""Checkpoints whose KV cannot be reused as it is are refused by name, before a weight is read."""

import json

import pytest

from models import load
from models.hub.text_config import llama_config

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
    "Phi-3.5-vision.* runs on code of its own .*does not serve it. .* it serves Qwen/Qwen2.5-VL-3B-Instruct": [
        {**PHI, "rope_scaling": {"type": "su", **FACTORS}},
    ],
    "this version serves": [
        {"model_type": ["llava"]},
        {},
    ],
    "serves the same model in the format of transformers: load the repository whose name ends in -hf": [
        {"model_type": "internvl_chat", "llm_config": {**TEXT, "model_type": "internlm2", "rope_scaling": DYNAMIC}},
    ],
    "Gemma-3": [
        {"model_type": "gemma3", "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 8}},
    ],
}


@pytest.mark.parametrize(
    "reason, config",
    [
        pytest.param(reason, config, id=f"{reason}-{config.get('model_type')}")
        for reason in CASES
        for config in CASES[reason]
    ],
)
def test_it_is_refused_by_name(tmp_path, reason, config):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        load(tmp_path)


LLAMA = {**TEXT, "model_type": "llama"}
LONG = {**TEXT, "model_type": "llama", "max_position_embeddings": 131072}
PARAMETERS = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
SERVED = {
    "llava, dynamic": {"model_type": "llava", "text_config": {**LLAMA, "rope_scaling": DYNAMIC}},
    "deepseek_vl, dynamic": {"model_type": "deepseek_vl", "text_config": {**LLAMA, "rope_parameters": PARAMETERS}},
    "llava, LongRoPE": {
        "model_type": "llava",
        "text_config": {
            **LONG,
            "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096, **FACTORS},
        },
    },
    "llava, LongRoPE as Phi-3 says it": {
        "model_type": "llava",
        "text_config": {**LONG, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su", **FACTORS}},
    },
}


@pytest.mark.parametrize("name", SERVED)
def test_what_depends_on_the_length_is_served_up_to_it(tmp_path, name):
    """There it is one rotation; what is refused is the rest, which is missing."""
    (tmp_path / "config.json").write_text(json.dumps(SERVED[name]), encoding="utf-8")
    with pytest.raises(ValueError, match="vision_config"):
        load(tmp_path)
    assert llama_config(SERVED[name]["text_config"]).max_positions == 4096
