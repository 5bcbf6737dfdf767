"""Configuration of InternVL3 in the format of transformers (``model_type`` internvl)."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.blocks.decoder import DecoderConfig
from models.hub.fields import Fields
from models.hub.language_models import FAMILIES, language_model
from models.hub.text_config import read_sections
from models.ports.internvl.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, "internvl", text_config, vision_config_from_hf)
    image = top.size("image_token_id", 151667, least=0)
    top.close()
    return Config(text, vision, image_token_id=image)


def text_config(mapping: Mapping[str, Any]) -> DecoderConfig:
    """The language model in ``text_config``: of type qwen2 (also where it has none), qwen3 or llama."""
    fields = Fields("text_config", mapping)
    fields.expect("model_type", "qwen2", "qwen3", "llama")
    # What 3.5 says of the program that trained it.
    fields.ignore("attn_implementation", "debug", "micro_forward", "skip_checkpoint", "use_deepep")
    return language_model(fields, FAMILIES[mapping.get("model_type") or "qwen2"], mapping)
