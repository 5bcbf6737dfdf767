"""Jitted ports of vision-language backbones."""

import kamera_jax

if not hasattr(kamera_jax, "__path__"):
    raise ImportError(f"{kamera_jax.__file__} hides the package 'kamera_jax', which this one is built on; rename it")

from kamera_jax.moved import moved
from models.media.recordings import AudioFile
from models.media.video_files import VideoFile
from models.registry import load

__all__ = ["AudioFile", "VideoFile", "load"]

moved(
    "models",
    {
        "attention": "models.blocks.attention",
        "chat": "models.hub.chat",
        "control_tokens": "models.hub.control_tokens",
        "decoder": "models.blocks.decoder",
        "deepseek_vl": "models.ports.deepseek_vl",
        "fields": "models.hub.fields",
        "frames": "models.media.frames",
        "kimi_vl": "models.ports.kimi_vl",
        "layers": "models.blocks.layers",
        "llava": "models.ports.llava",
        "moe": "models.blocks.moe",
        "params": "models.blocks.params",
        "pdf": "models.media.pdf",
        "pictures": "models.media.pictures",
        "qwen2_5_vl": "models.ports.qwen2_5_vl",
        "refusals": "models.hub.refusals",
        "tensor_files": "models.hub.tensor_files",
        "text_config": "models.hub.text_config",
        "text_weights": "models.hub.text_weights",
        "tiktoken": "models.hub.tiktoken",
        "vit": "models.blocks.vit",
        "weights": "models.hub.weights",
    },
)
