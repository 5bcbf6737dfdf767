"""Configuration of DeepSeek-VL."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import llama_config, read_sections
from models.ports.deepseek_vl.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, "deepseek_vl", llama_config, vision_config_from_hf)
    config = Config(text, vision, image_token_id=top.size("image_token_id", 100015, least=0))
    top.close()
    return config
