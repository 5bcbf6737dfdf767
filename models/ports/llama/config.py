"""Configuration of the text-only language models: Llama, Mistral, Qwen2, Qwen3 and SmolLM3."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.language_models import FAMILIES, Family, language_model
from models.hub.text_config import top_fields

__all__ = ["FAMILIES", "Family", "config_from_hf"]


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``, of one of the `FAMILIES`.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.language_models.language_model`.
    """
    kind = mapping.get("model_type")
    fields = top_fields(mapping, kind if isinstance(kind, str) and kind in FAMILIES else "llama")
    return Config(language_model(fields, FAMILIES[str(kind)], mapping))
