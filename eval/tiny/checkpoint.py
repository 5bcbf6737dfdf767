"""An embedded model as a Hugging Face folder: configuration, tokenizer, preprocessing, weights."""

import json
from pathlib import Path

import jax.numpy as jnp

from eval.tiny.backbones import TinyBackbone
from eval.tiny.vocabulary import build_tokenizer
from models.blocks.params import Params
from models.hub.weights import save_params


def write_settings(folder: Path, backbone: TinyBackbone) -> None:
    """Write everything of the folder but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", backbone.hf_config),
        ("preprocessor_config.json", backbone.preprocessing),
        ("video_preprocessor_config.json", backbone.video),
    ):
        if content is None:
            continue
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    build_tokenizer(folder)


def write(folder: Path, backbone: TinyBackbone, params: Params) -> None:
    """Write the folder that `models.load` reads."""
    write_settings(folder, backbone)
    save_params(folder, params, backbone.architecture.weight_table(backbone.config), jnp.float32)
