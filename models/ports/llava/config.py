"""Configuration of LLaVA-1.5."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import llama_config, read_sections
from models.ports.llava.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, "llava", llama_config, vision_config_from_hf)
    top.expect("vocab_size", text.vocab_size)
    image = top.size("image_token_id", top.size("image_token_index", 32000, least=0), least=0)
    top.close()
    return Config(text, vision, image_token_id=image)
