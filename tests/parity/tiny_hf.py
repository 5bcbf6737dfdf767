"""Tiny random Hugging Face models, the oracle of the ports."""

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from models.hub.tensor_files import SINGLE

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IMAGE = 90
VIDEO = 91
START = 92
END = 93
"""Special tokens of the tiny vocabulary of 100."""

TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}

_TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
QWEN2_5: dict[str, Any] = {
    **_TEXT,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
LLAMA: dict[str, Any] = {**_TEXT, "model_type": "llama", "num_key_value_heads": 4, "max_position_embeddings": 4096}
DEEPSEEK_V3: dict[str, Any] = {
    **_TEXT,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.446,
    "rope_parameters": {"rope_type": "default", "rope_theta": 8e5},
}

QWEN2_5_VIT: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 64,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
WHISPER: dict[str, Any] = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "n_window": 5,
    "output_dim": 64,
    "max_source_positions": 64,
}
WHISPER3: dict[str, Any] = {
    **{name: value for name, value in WHISPER.items() if name != "n_window"},
    "n_window": 50,
    "n_window_infer": 200,
    "downsample_hidden_size": 8,
}
QWEN3: dict[str, Any] = {
    **_TEXT,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}
QWEN3_MOE: dict[str, Any] = {**QWEN3, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
QWEN3_VIT: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2, 3],
}
_VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
MOONVIT: dict[str, Any] = {**_VIT, "pos_emb_height": 8, "pos_emb_width": 8}
SIGLIP: dict[str, Any] = {**_VIT, "model_type": "siglip_vision_model", "image_size": 12}
INTERNVIT: dict[str, Any] = {**_VIT, "image_size": 8, "attention_bias": True}
CLIP: dict[str, Any] = {**_VIT, "model_type": "clip_vision_model", "image_size": 12, "num_hidden_layers": 3}


def tiny_qwen2_5_vl(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A random model in f32; ``text`` and ``vision`` override fields of those sections, ``top`` those beside them."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={**QWEN2_5, **(text or {})},
        vision_config={**QWEN2_5_VIT, **(vision or {})},
        **{**TOKENS, **top},
    )
    return _random(transformers.Qwen2_5_VLForConditionalGeneration, config, seed)


def tiny_qwen3_vl(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.Qwen3VLForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.Qwen3VLConfig(
        text_config={**QWEN3, **(text or {})},
        vision_config={**QWEN3_VIT, **(vision or {})},
        **{**TOKENS, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.Qwen3VLForConditionalGeneration, config, seed)


def tiny_qwen3_vl_moe(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.Qwen3VLMoeForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.Qwen3VLMoeConfig(
        text_config={**QWEN3_MOE, **(text or {})},
        vision_config={**QWEN3_VIT, **(vision or {})},
        **{**TOKENS, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.Qwen3VLMoeForConditionalGeneration, config, seed)


def tiny_qwen2_5_omni(
    seed: int,
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    **top: Any,
) -> transformers.Qwen2_5OmniThinkerForConditionalGeneration:
    """As `tiny_qwen2_5_vl`: a thinker, whose ``audio`` tower is configured too."""
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config={**QWEN2_5, **(text or {})},
        vision_config={**QWEN2_5_VIT, **(vision or {})},
        audio_config={**WHISPER, **(audio or {})},
        **{"tie_word_embeddings": False, **top},
    )
    return _random(transformers.Qwen2_5OmniThinkerForConditionalGeneration, config, seed)


def tiny_qwen3_omni(
    seed: int,
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    **top: Any,
) -> transformers.Qwen3OmniMoeThinkerForConditionalGeneration:
    """As `tiny_qwen2_5_omni`."""
    config = transformers.Qwen3OmniMoeThinkerConfig(
        text_config={**QWEN3_MOE, **(text or {})},
        vision_config={**QWEN3_VIT, **(vision or {})},
        audio_config={**WHISPER3, **(audio or {})},
        **{"tie_word_embeddings": False, **top},
    )
    return _random(transformers.Qwen3OmniMoeThinkerForConditionalGeneration, config, seed)


def tiny_kimi_k25(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.Kimi_K25ForConditionalGeneration:
    """As `tiny_qwen2_5_vl`; for one frame it computes what Kimi-VL does, which transformers does not have."""
    vision = {**MOONVIT, **(vision or {})}
    config = transformers.Kimi_K25Config(
        text_config={**DEEPSEEK_V3, **(text or {})},
        vision_config=vision,
        projection_hidden_size=vision["hidden_size"],
        **{**TOKENS, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.Kimi_K25ForConditionalGeneration, config, seed)


def tiny_deepseek_vl(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.DeepseekVLForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.DeepseekVLConfig(
        text_config={**LLAMA, **(text or {})},
        vision_config={**SIGLIP, **(vision or {})},
        **{"image_token_id": IMAGE, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.DeepseekVLForConditionalGeneration, config, seed)


def tiny_llava(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.LlavaForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.LlavaConfig(
        text_config={**LLAMA, **(text or {})},
        vision_config={**CLIP, **(vision or {})},
        **{"image_token_index": IMAGE, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.LlavaForConditionalGeneration, config, seed)


def tiny_internvl(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.InternVLForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.InternVLConfig(
        text_config={**_TEXT, "model_type": "qwen2", "num_key_value_heads": 2, "pad_token_id": 1, **(text or {})},
        vision_config={**INTERNVIT, **(vision or {})},
        **{"image_token_id": IMAGE, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.InternVLForConditionalGeneration, config, seed)


def tiny_llava_onevision(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.LlavaOnevisionForConditionalGeneration:
    """As `tiny_qwen2_5_vl`."""
    config = transformers.LlavaOnevisionConfig(
        text_config={**_TEXT, "model_type": "qwen2", "num_key_value_heads": 2, "pad_token_id": 1, **(text or {})},
        vision_config={**SIGLIP, "vision_use_head": False, **(vision or {})},
        **{"image_token_index": IMAGE, "video_token_index": VIDEO, "tie_word_embeddings": False, **top},
    )
    return _random(transformers.LlavaOnevisionForConditionalGeneration, config, seed)


def tiny_idefics3(
    seed: int,
    *,
    smolvlm: bool,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **top: Any,
) -> Any:
    """As `tiny_qwen2_5_vl`: an Idefics3, or a SmolVLM."""
    name = "SmolVLM" if smolvlm else "Idefics3"
    config = getattr(transformers, f"{name}Config")(
        text_config={**LLAMA, "pad_token_id": 1, **(text or {})},
        vision_config={**_VIT, "image_size": 8, **(vision or {})},
        **{"image_token_id": IMAGE, "tie_word_embeddings": False, **top},
    )
    return _random(getattr(transformers, f"{name}ForConditionalGeneration"), config, seed)


def _random(kind: type, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # no shared experts: theirs are empty
        return randomize(kind(config).eval(), seed)


def randomize(model: Any, seed: int) -> Any:
    """Move every parameter: as made, norms are 1 and biases 0, and an oracle would not see them swapped or dropped."""
    generator = torch.Generator().manual_seed(seed + 1)
    routers = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for parameter in (*model.parameters(), *routers):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.1 if parameter.ndim == 1 else 0.02))
    return model


def save_experts(path: Path, layout: str) -> None:
    """Write the experts of a saved folder as the hub has them, ``"hub"``, or each in tensors of its own, ``"apart"``.

    What was never read from the hub transformers writes as it has it in memory, the other way round.
    """
    written = {}
    for name, tensor in load_file(path / SINGLE).items():
        if ".mlp.experts." not in name:
            written[name] = tensor
        elif layout == "hub":
            written[name] = tensor.transpose(1, 2).contiguous()
        else:
            names = ("gate_proj", "up_proj") if "gate_up_proj" in name else ("down_proj",)
            for part, each in zip(names, tensor.chunk(len(names), dim=1), strict=True):
                for number, expert in enumerate(each):
                    written[f"{name.rpartition('.')[0]}.{number}.{part}.weight"] = expert.clone().contiguous()
    save_file(written, path / SINGLE, metadata={"format": "pt"})


def save_hub_folder(model: Any, path: Path, *, sharded: bool = False) -> Path:
    """Write config and safetensors under their hub names; ``sharded`` spreads them over several files."""
    model.save_pretrained(path, max_shard_size="100KB" if sharded else "1GB")
    return path
