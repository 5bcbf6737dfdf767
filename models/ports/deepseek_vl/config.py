"""Configuration of DeepSeek-VL."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import llama_config, one_head, top_fields
from models.ports.deepseek_vl.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no model_type, text_config or vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    top = top_fields(mapping, "deepseek_vl")
    text = llama_config(one_head(top))
    vision = vision_config_from_hf(top, text.hidden_size)
    config = Config(text, vision, image_token_id=top.size("image_token_id", 100015, least=0))
    top.close()
    return config
