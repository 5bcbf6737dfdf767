"""Configuration of Idefics3 and SmolVLM2 (``model_type`` idefics3 and smolvlm)."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.blocks.decoder import DecoderConfig
from models.hub.fields import Fields
from models.hub.language_models import FAMILIES, language_model
from models.hub.text_config import read_sections
from models.ports.idefics3.vision import vision_config_from_hf

_TRAINING = ("_flash_attn_2_enabled", "neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor")
"""What the published text_config says of the program that trained it; the connector's factor is ``scale_factor``."""


def config_from_hf(mapping: Mapping[str, Any], model_type: str = "idefics3") -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    top, text, vision = read_sections(mapping, model_type, text_config, vision_config_from_hf)
    top.expect("vocab_size", text.vocab_size)
    image = top.size("image_token_id", 128257, least=0)
    top.ignore("_pad_token_id", "image_seq_len", "use_reentrant_checkpointing", *_TRAINING)
    top.close()
    return Config(text, vision, image_token_id=image)


def text_config(mapping: Mapping[str, Any]) -> DecoderConfig:
    """The language model in ``text_config``, of type llama (also where it has none)."""
    fields = Fields("text_config", mapping)
    fields.expect("model_type", "llama")
    # Switches of the class that the published models were trained with; transformers' Llama has none of them.
    for switch in ("qk_layer_norms", "use_resampler"):
        fields.expect(switch, False)
    fields.ignore(*_TRAINING)
    return language_model(fields, FAMILIES["llama"], mapping)
