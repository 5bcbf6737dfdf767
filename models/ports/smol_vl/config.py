"""Configuration of kamera-smol-vl."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.fields import Fields
from models.hub.text_config import llama_config, read_sections
from models.ports.smol_vl.tower import TowerConfig

MODEL_TYPE = "kamera_smol_vl"


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a ``config.json`` to which the language model's was added as ``text_config``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, MODEL_TYPE, llama_config, tower_config)
    image = top.size("image_token_id", least=0)
    top.take("language_model", str)
    top.close()
    return Config(text, TowerConfig(vocab_size=text.vocab_size, **vision), image_token_id=image)


def tower_config(top: Fields, out_hidden_size: int) -> dict[str, int]:
    """The sizes in ``vision_config``, by the names that `TowerConfig` has for them."""
    fields = Fields("vision_config", top.take("vision_config", dict))
    names = ("window", "stride", "strokes", "run", "step", "shapes", "whole", "code")
    sizes = {name: fields.size(name) for name in names}
    fields.close()
    return sizes
