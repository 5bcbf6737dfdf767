"""What a port says of itself; `models.vlm` does the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import Params
from models.hub.weights import WeightTable


@dataclass(frozen=True)
class Config:
    """Everything a port needs to know of a checkpoint.

    Attributes:
        text: the language model.
        vision: the vision tower and its projector, as the port has them.
        image_token_id: the placeholder that an image's tokens stand in.
    """

    text: DecoderConfig
    vision: Any
    image_token_id: int


@dataclass(frozen=True)
class Architecture:
    """A port: a reading of the configuration, a weight table, a vision tower and its images.

    Attributes:
        name: ``model_type`` in config.json.
        config_from_hf: config.json to `Config`.
        weight_table: hub names of all tensors.
        images: a module with ``ImageConfig.from_hf(preprocessor_config, patch_size)`` and
            ``preprocess_image(image, ImageConfig) -> ImagePatches``.
        vision: a module with ``vision_declaration(config)``, ``plan(rows, columns, config)``,
            ``pad_patches(patches, plan)`` and ``encode_image(params, config, patches, plan) -> [M, E]``, zero from
            ``plan.tokens`` on.
        image_positions: for position axes of its own: rows and columns of patches, vision configuration, tokens before
            the image's and tokens in all, to local positions f32[A, length] and the advance.
    """

    name: str
    config_from_hf: Callable[[Mapping[str, Any]], Config]
    weight_table: Callable[[Config], WeightTable]
    images: ModuleType
    vision: ModuleType
    image_positions: Callable[[int, int, Any, int, int], tuple[np.ndarray, float]] | None = None

    def declaration(self, config: Config) -> Params:
        """Every parameter of the model."""
        return {"text": text_declaration(config.text), "vision": self.vision.vision_declaration(config.vision)}
