"""Configuration of LLaVA-OneVision (``model_type`` llava_onevision)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.architecture import Config
from models.blocks.decoder import DecoderConfig
from models.hub.fields import Fields, UnsupportedConfigError
from models.hub.language_models import FAMILIES, language_model
from models.hub.text_config import read_sections
from models.ports.llava_onevision.images import Pinpoints, take_pinpoints
from models.ports.llava_onevision.vision import vision_config_from_hf

PAD = "pad"
"""The ``vision_aspect_ratio`` by which every image is one tile, padded to a square."""


@dataclass(frozen=True)
class Layout:
    """How an image becomes tokens.

    Attributes:
        pinpoints: heights and widths that an image may be fitted into, in pixels.
        most: tiles of which the stitched ones may have the tokens, before they are shrunk; None where every image is
            one tile, padded to a square.
    """

    pinpoints: Pinpoints
    most: int | None


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Raises:
        ConfigError, UnsupportedRopeError: see `models.hub.text_config.read_sections`.
    """
    inner = Fields("text_config", Fields("config.json", mapping).take("text_config", dict))
    if inner.take("tie_word_embeddings", bool, False):
        mapping = {**mapping, "tie_word_embeddings": True}  # either section ties, as in HF
    top, text, vision = read_sections(mapping, "llava_onevision", text_config, vision_config_from_hf)
    top.expect("vocab_size", text.vocab_size)
    top.expect("use_image_newline_parameter", True)
    image = top.size("image_token_id", top.size("image_token_index", 151646, least=0), least=0)
    video = top.size("video_token_id", top.size("video_token_index", 151647, least=0), least=0)
    layout = Layout(take_pinpoints(top, vision.image_size), _most(top))
    top.close()
    return Config(text, vision, image_token_id=image, media={"image": layout}, placeholders={"video": video})


def text_config(mapping: Mapping[str, Any]) -> DecoderConfig:
    """The language model in ``text_config``, of type qwen2 (also where it has none)."""
    fields = Fields("text_config", mapping)
    fields.expect("model_type", "qwen2")
    return language_model(fields, FAMILIES["qwen2"], mapping)


def _most(top: Fields) -> int | None:
    """``vision_aspect_ratio``: a number of tiles, or None for `PAD`.

    Raises:
        UnsupportedConfigError: it is neither.
    """
    named = top.take("vision_aspect_ratio", str, "anyres_max_9")
    if named == PAD:
        return None
    number = re.fullmatch(r"anyres_max_([0-9]{1,9})", named)
    if number is None or int(number[1]) < 1:
        raise UnsupportedConfigError(
            f"{top.section}: vision_aspect_ratio is {named!r:.200}; expected 'anyres_max_9', or another number of "
            f"tiles, 1 at least, or {PAD!r}, by which every image is one tile"
        )
    return int(number[1])
