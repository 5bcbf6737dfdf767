"""Configuration of Kimi-VL."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import deepseek_v3_config, one_head, top_fields
from models.ports.kimi_vl.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: a size that determines the computation is not given.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    top = top_fields(mapping, "kimi_vl")
    text = deepseek_v3_config(one_head(top))
    vision = vision_config_from_hf(top, text.hidden_size)
    top.expect("vocab_size", text.vocab_size)
    config = Config(text, vision, image_token_id=top.size("media_placeholder_token_id", 163605, least=0))
    top.close()
    return config
