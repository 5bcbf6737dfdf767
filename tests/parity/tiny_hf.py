"""Tiny random Hugging Face models, the oracle of the port."""

from pathlib import Path
from typing import Any

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IMAGE, VIDEO, START, END = 90, 91, 92, 93
"""Special tokens of the tiny vocabulary of 100."""

TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
VISION: dict[str, Any] = {
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


def tiny_qwen2_5_vl(
    seed: int, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A random model in f32; ``text`` and ``vision`` override fields of those sections, ``top`` those beside them."""
    special = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **(text or {})}, vision_config={**VISION, **(vision or {})}, **{**special, **top}
    )
    torch.manual_seed(seed)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    return randomize(model, seed)


def randomize(model: Any, seed: int) -> Any:
    """Move every parameter: as made, norms are 1 and biases 0, and an oracle would not see them swapped or dropped."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.1 if parameter.ndim == 1 else 0.02))
    return model


def save_hub_folder(model: Any, path: Path, *, sharded: bool = False) -> Path:
    """Write config and safetensors under their hub names; ``sharded`` spreads them over several files."""
    model.save_pretrained(path, max_shard_size="100KB" if sharded else "1GB")
    return path
