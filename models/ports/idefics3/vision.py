"""SigLIP as Idefics3 and SmolVLM2 have it (HF ``Idefics3VisionTransformer``), and their connector, one tile per call.

Tiles do not see each other. A tile fills its learned positions, so that each patch has its own (transformers 5;
version 4 moved row and column 10 of 27 by one).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from models.blocks.layers import dense
from models.blocks.params import Params, linear
from models.blocks.vit import (
    MergedSquareConfig,
    VitConfig,
    layer_norm,
    norm,
    square_declaration,
    square_features,
)
from models.blocks.vit import SquarePlan as VisionPlan
from models.blocks.vit import merged_plan as plan
from models.hub.fields import Fields
from models.hub.towers import UNUSED_FIELDS, square_fields

__all__ = ["VisionConfig", "VisionPlan", "encode_image", "plan", "vision_config_from_hf", "vision_declaration"]

_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16}
"""Of HF ``Idefics3VisionConfig``, where they are not SigLIP's."""

_PUBLISHED = ("max_image_size", "size", "tie_word_embeddings", "use_base_siglip")
"""What the published vision_config says of preprocessing and training; preprocessor_config.json counts."""


@dataclass(frozen=True)
class VisionConfig(MergedSquareConfig):
    """SigLIP and the connector behind it; pixels past the last whole patch are not read."""

    MERGED_BY: ClassVar[str] = "scale_factor"

    def __post_init__(self) -> None:
        VitConfig.__post_init__(self)  # the image need not be whole patches
        self.check_merge()


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: its ``vision_config`` and ``scale_factor``.

    Args:
        top: the file; what is not about images is left in it.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields = Fields("vision_config", {**_DEFAULTS, **top.take("vision_config", dict)})
    fields.expect("model_type", "idefics3", "idefics3_vision", "smolvlm_vision")
    common = square_fields(fields, patch_size=32, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    fields.ignore(*_PUBLISHED, *UNUSED_FIELDS)
    fields.close()
    return VisionConfig(**common, out_hidden_size=out_hidden_size, merge=top.size("scale_factor", 2))


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter that runs, of the tower and its connector; blocks stacked on the leading axis."""
    width = config.hidden_size
    connector = linear(width * config.merge**2, config.out_hidden_size, axes=("mlp", "embed"))
    return square_declaration(config) | {"norm": norm(width), "connector": connector}


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Float[Array, "M E"]:
    """Run tower and connector over one tile.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in raster order, channels first within a patch.
        plan: the tile's layout, which says nothing new: no row is padding.

    Returns:
        One embedding for each merged token in raster order, in the parameters' dtype.
    """
    x = layer_norm(params["norm"], square_features(params, config, patches), config.layer_norm_eps)
    return dense(params["connector"], config.merged(x))
