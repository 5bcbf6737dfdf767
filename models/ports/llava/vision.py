"""The vision tower of LLaVA-1.5 (HF ``CLIPVisionModel``) and its projector (``LlavaMultiModalProjector``)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from models.blocks.params import Params
from models.blocks.vit import SquareConfig, mlp, mlp_declaration, pad_patches, square_declaration, square_features
from models.blocks.vit import SquarePlan as VisionPlan
from models.blocks.vit import square_plan as plan
from models.hub.fields import Fields
from models.hub.towers import UNUSED_FIELDS, feature_fields, square_fields

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
    """CLIP up to the block whose output is the feature.

    Attributes:
        stored_depth: blocks in the checkpoint; of those, ``depth`` run.
        projector_act: a name in `models.blocks.vit.ACTIVATIONS`.
        projector_bias: of both layers of the projector.
    """

    stored_depth: int
    projector_act: str
    projector_bias: bool


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: its ``vision_config`` (HF ``CLIPVisionConfig``) and what goes with it.

    Args:
        top: the file; taken from it are also vision_feature_layer, vision_feature_select_strategy,
            projector_hidden_act, multimodal_projector_bias and image_seq_length. What is not about images is left.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields = Fields("vision_config", top.take("vision_config", dict))
    fields.expect("model_type", "clip_vision_model")
    common = square_fields(fields, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    fields.ignore("projection_dim", "vocab_size", *UNUSED_FIELDS)  # of the pair that CLIP trains
    fields.close()

    top.expect("vision_feature_select_strategy", "default")
    top.ignore("image_seq_length")  # the size of the image says it; HF does not read it here either
    return VisionConfig(**feature_fields(top, common, -2), out_hidden_size=out_hidden_size)


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter that runs, of the tower and its projector; blocks stacked on the leading axis."""
    width = config.hidden_size
    out = config.out_hidden_size
    projector = mlp_declaration(width, out, out, bias=config.projector_bias)
    return square_declaration(config, class_token=True) | {"projector": projector}


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
    return mlp(params["projector"], square_features(params, config, patches)[1:], config.projector_act)
