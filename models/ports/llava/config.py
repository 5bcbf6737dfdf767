"""Configuration of LLaVA-1.5."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.text_config import llama_config, one_head, top_fields
from models.ports.llava.vision import vision_config_from_hf


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no model_type, text_config or vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    top = top_fields(mapping, "llava")
    text = llama_config(one_head(top))
    vision = vision_config_from_hf(top, text.hidden_size)
    top.expect("vocab_size", text.vocab_size)
    image = top.size("image_token_id", top.size("image_token_index", 32000, least=0), least=0)
    top.close()
    return Config(text, vision, image_token_id=image)
