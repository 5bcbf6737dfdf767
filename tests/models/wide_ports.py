"""Tiny random models of every port whose heads, experts and layers split eight ways, as hub folders; without torch."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.tiny.backbones import BACKBONES
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models.blocks.params import is_info
from models.hub.weights import save_params
from models.registry import ARCHITECTURES
from tests import idefics3_files, internvl_files, omni_files
from tests.internvl_files import PREPROCESSING as TILES
from tests.models import tiny_idefics3, tiny_internvl, tiny_llava, tiny_llava_onevision, tiny_omni, tiny_qwen3_vl

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 16}
GQA = WIDE | {"num_key_value_heads": 8, "head_dim": 16}
MHA = WIDE | {"num_attention_heads": 8, "num_key_value_heads": 8}
TEXT = {"vocab_size": len(VOCABULARY), "dtype": "float32"} | WIDE | {"num_key_value_heads": 8}


def _tiny(attention: str, **text: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """An embedded model's configuration and preprocessing, with other sizes of its language model."""
    mapping = copy.deepcopy(BACKBONES[attention].hf_config)
    (mapping if attention == "gqa" else mapping["text_config"]).update(text)
    return mapping, BACKBONES[attention].preprocessing


def _with(config: dict[str, Any], **text: Any) -> dict[str, Any]:
    mapping = copy.deepcopy(config)
    mapping["text_config"] |= text
    return mapping


LATENT = WIDE | {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 2, "kv_lora_rank": 32}
LATENT |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 16, "v_head_dim": 8, "first_k_dense_replace": 1}
QWEN2_5: dict[str, Any] = WIDE | {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
QWEN2_5 |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}


def ports() -> dict[str, tuple[dict[str, Any], dict[str, Any] | None]]:
    """Of every port config.json, and preprocessor_config.json where it reads images."""
    kinds = {
        "llama": {"attention_bias": True, "mlp_bias": True},
        "mistral": {},
        "qwen2": {"tie_word_embeddings": True},
        "qwen3": {"head_dim": 24},
        "smollm3": {"no_rope_layers": [1, 0]},
    }
    texts = {kind: ({"model_type": kind, **TEXT, **fields}, None) for kind, fields in kinds.items()}
    sides = {"size": {"height": tiny_internvl.SIDE, "width": tiny_internvl.SIDE}}
    experts = tiny_qwen3_vl.EXPERTS | {"num_experts": 8}
    return {
        "qwen2_5_vl": _tiny("gqa", **QWEN2_5),
        "kimi_vl": _tiny("mla", **LATENT, n_routed_experts=8, moe_intermediate_size=24),
        "deepseek_vl": _tiny("mha", **MHA),
        "llava": (_with(tiny_llava.CONFIG, **MHA), tiny_llava.PREPROCESSING),
        "llava_onevision": (_with(tiny_llava_onevision.CONFIG, **GQA), tiny_llava_onevision.PREPROCESSING),
        "internvl": (_with(tiny_internvl.CONFIG, **GQA), TILES | sides),
        "idefics3": (_with(tiny_idefics3.CONFIG | {"model_type": "idefics3"}, **GQA), tiny_idefics3.IMAGES),
        "smolvlm": (_with(tiny_idefics3.CONFIG, **GQA), tiny_idefics3.IMAGES),
        "qwen2_5_omni": (tiny_omni.config(**QWEN2_5), tiny_omni.IMAGES),
        "qwen3_omni_moe": (tiny_omni.config("qwen3_omni_moe", **GQA, **experts), tiny_omni.IMAGES),
        "qwen3_vl": (_with(tiny_qwen3_vl.config(), **GQA), tiny_qwen3_vl.PREPROCESSING),
        "qwen3_vl_moe": (_with(tiny_qwen3_vl.config(True), **GQA, **experts), tiny_qwen3_vl.PREPROCESSING),
        **texts,
    }


def write(folder: Path, kind: str) -> Path:
    """Write the folder of a port; attention binds, so that every head shows in the logits."""
    mapping, preprocessing = ports()[kind]
    port = ARCHITECTURES[mapping["model_type"]]
    rng = np.random.default_rng(37)

    def leaf(info: Any) -> np.ndarray:
        size = {"fan_in": info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.0, "embedding": 0.5}
        noise = size.get(info.init, 0.05) * rng.standard_normal(info.shape, np.float32)
        return np.float32(info.init == "ones") + noise

    folder.mkdir(parents=True, exist_ok=True)
    tokenizers = {"internvl": internvl_files, "idefics3": idefics3_files, "smolvlm": idefics3_files}
    tokenizers |= dict.fromkeys(tiny_omni.CONFIGS, omni_files)
    (tokenizers[kind].write_tokenizer if kind in tokenizers else build_tokenizer)(folder)
    (folder / "config.json").write_text(json.dumps(mapping))
    if preprocessing is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    config = port.config_from_hf(mapping)
    params = jax.tree.map(leaf, port.declaration(config), is_leaf=is_info)
    save_params(folder, params, port.weight_table(config), np.float32)
    return folder
