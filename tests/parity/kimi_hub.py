"""Kimi-VL's hub folder of a kimi_k25 model: transformers knows neither the configuration nor the names."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.hub.tensor_files import SINGLE

RENAMES = (
    (r"^model\.vision_tower\.patch_embed\.pos_emb\.position_embeddings$", "vision_tower.patch_embed.pos_emb.weight"),
    (r"^model\.vision_tower\.final_layernorm\.", "vision_tower.encoder.final_layernorm."),
    (r"^model\.vision_tower\.layers\.(\d+)\.norm1\.", r"vision_tower.encoder.blocks.\1.norm0."),
    (r"^model\.vision_tower\.layers\.(\d+)\.norm2\.", r"vision_tower.encoder.blocks.\1.norm1."),
    (r"^model\.vision_tower\.layers\.(\d+)\.mlp\.fc1\.", r"vision_tower.encoder.blocks.\1.mlp.fc0."),
    (r"^model\.vision_tower\.layers\.(\d+)\.mlp\.fc2\.", r"vision_tower.encoder.blocks.\1.mlp.fc1."),
    (r"^model\.vision_tower\.layers\.(\d+)\.attn\.proj\.", r"vision_tower.encoder.blocks.\1.wo."),
    (r"^model\.vision_tower\.layers\.", "vision_tower.encoder.blocks."),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^model\.mm_projector\.in_proj\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.out_proj\.", "multi_modal_projector.linear_2."),
    (r"^model\.mm_projector\.", "multi_modal_projector."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)


def hub_state(model: Any) -> dict[str, torch.Tensor]:
    """The state dict under Kimi-VL's names: experts apart; q, k and v of the tower together, rotated pairs abreast."""
    heads = model.config.vision_config.num_attention_heads
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    hub: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES:
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        experts, _, kind = name.partition(".mlp.experts.")
        if kind:
            parts = tensor.chunk(2, dim=1) if kind == "gate_up_proj" else (tensor,)
            for part, stacked in zip(kind.removesuffix("_proj").split("_"), parts, strict=True):
                for i, one in enumerate(stacked):
                    hub[f"{experts}.mlp.experts.{i}.{part}_proj.weight"] = one
        elif ".attn.q_proj." in name:
            q, k, v = (state[_model_name(name, part)] for part in "qkv")
            q, k = (each.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) for each in (q, k))
            hub[name.replace("attn.q_proj", "wqkv")] = torch.cat([q, k, v])
        elif ".attn." not in name:
            hub[name] = tensor
    return {name: tensor.clone().contiguous() for name, tensor in hub.items()}


def _model_name(name: str, part: str) -> str:
    return f"model.{name.replace('encoder.blocks', 'layers').replace('q_proj', f'{part}_proj')}"


def hub_config(model: Any, *, rope_parameters: bool = False) -> dict[str, Any]:
    """config.json as the hub has it; ``rope_parameters`` spells the RoPE as transformers 5 does."""
    config = model.config
    vision = model.config.vision_config
    text = {name: value for name, value in config.text_config.to_dict().items() if name in TEXT_FIELDS}
    rope = dict(config.text_config.rope_parameters)
    if rope_parameters:
        text["rope_parameters"] = rope
    else:
        text["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        text["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    same = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "patch_size")
    return {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "torch_dtype": "float32",
        "tie_word_embeddings": config.tie_word_embeddings,
        "ignore_index": -100,
        "media_placeholder_token_id": config.image_token_id,
        "vocab_size": config.text_config.vocab_size,
        "text_config": {
            "model_type": "deepseek_v3",
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "seq_aux": True,
            "num_nextn_predict_layers": 0,
            **text,
        },
        "vision_config": {
            "model_type": "moonvit",
            **{name: getattr(vision, name) for name in same},
            "init_pos_emb_height": vision.pos_emb_height,
            "init_pos_emb_width": vision.pos_emb_width,
            "merge_kernel_size": list(vision.merge_kernel_size),
        },
    }


TEXT_FIELDS = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "first_k_dense_replace",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "moe_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rms_norm_eps",
    "routed_scaling_factor",
    "topk_group",
    "v_head_dim",
    "vocab_size",
)


def save_kimi_vl(model: Any, path: Path, *, rope_parameters: bool = False) -> Path:
    """Write config.json and safetensors; a tied head is not written."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(hub_config(model, rope_parameters=rope_parameters)))
    state = hub_state(model)
    if model.config.tie_word_embeddings:
        del state["language_model.lm_head.weight"]
    save_file(state, path / SINGLE)
    return path
