"""Configuration of Kimi-VL."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import deepseek_v3_config, read_sections
from models.ports.kimi_vl.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, "kimi_vl", deepseek_v3_config, vision_config_from_hf)
    top.expect("vocab_size", text.vocab_size)
    config = Config(text, vision, image_token_id=top.size("media_placeholder_token_id", 163605, least=0))
    top.close()
    return config
