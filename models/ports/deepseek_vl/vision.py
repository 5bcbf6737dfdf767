"""The vision tower of DeepSeek-VL (HF ``SiglipVisionModel``) and its projector (``DeepseekVLAligner``)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from models.blocks.params import Params
from models.blocks.vit import (
    SquareConfig,
    layer_norm,
    mlp,
    mlp_declaration,
    norm,
    pad_patches,
    square_declaration,
    square_features,
)
from models.blocks.vit import SquarePlan as VisionPlan
from models.blocks.vit import square_plan as plan
from models.hub.fields import Fields
from models.hub.towers import siglip_fields

__all__ = [
    "VisionConfig",
    "VisionPlan",
    "encode_image",
    "pad_patches",
    "plan",
    "vision_config_from_hf",
    "vision_declaration",
]


@dataclass(frozen=True)
class VisionConfig(SquareConfig):
    """SigLIP: images of one size, one token per patch."""


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: takes its ``vision_config`` (HF ``SiglipVisionConfig``).

    Args:
        top: the file; what is not about images is left in it.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    return VisionConfig(**siglip_fields(top), out_hidden_size=out_hidden_size)


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter of the tower and its projector; blocks stacked on the leading axis."""
    width = config.hidden_size
    out = config.out_hidden_size
    return square_declaration(config) | {"norm": norm(width), "projector": mlp_declaration(width, out, out)}


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Float[Array, "P E"]:
    """Run tower and projector over one image.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in raster order, channels first within a patch.
        plan: the image's layout, which says nothing new: no row is padding.

    Returns:
        One embedding per patch in raster order, in the parameters' dtype.
    """
    x = layer_norm(params["norm"], square_features(params, config, patches), config.layer_norm_eps)
    return mlp(params["projector"], x, "gelu")
