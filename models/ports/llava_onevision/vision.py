"""SigLIP as LLaVA-OneVision has it, its projector and the learned end of a row (HF ``LlavaOnevisionModel``)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.blocks.params import ParamInfo, Params
from models.blocks.vit import (
    SquareConfig,
    VitConfig,
    interpolated,
    mlp,
    mlp_declaration,
    square_declaration,
    square_features,
)
from models.hub.fields import Fields, UnsupportedConfigError
from models.hub.towers import feature_fields, siglip_fields
from models.ports.llava_onevision.packing import Packing


@dataclass(frozen=True)
class VisionConfig(SquareConfig):
    """SigLIP up to the block whose output is the feature, without a norm; pixels past the last patch are not read.

    Attributes:
        stored_depth: blocks in the checkpoint; of those, ``depth`` run.
        projector_act: a name in `models.blocks.vit.ACTIVATIONS`.
        projector_bias: of both layers of the projector.
    """

    stored_depth: int
    projector_act: str
    projector_bias: bool

    def __post_init__(self) -> None:
        VitConfig.__post_init__(self)  # the image need not be whole patches
        if self.side < 1:
            raise UnsupportedConfigError(
                f"vision_config: image_size is {self.image_size}; expected patch_size, {self.patch_size}, at least"
            )

    @property
    def tokens(self) -> int:
        """Of a frame of a video."""
        return (-(-self.side // 2)) ** 2


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: its ``vision_config`` (HF ``SiglipVisionConfig``) and what goes with it.

    Args:
        top: the file; taken from it are also vision_feature_layer, vision_feature_select_strategy,
            projector_hidden_act and multimodal_projector_bias. What is not about the tower is left.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    common = siglip_fields(top)
    top.expect("vision_feature_select_strategy", "full")
    return VisionConfig(**feature_fields(top, common, -1), out_hidden_size=out_hidden_size)


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter that runs, of the tower, its projector and the end of a row; blocks stacked on the first axis."""
    out = config.out_hidden_size
    return square_declaration(config) | {
        "projector": mlp_declaration(config.hidden_size, out, out, bias=config.projector_bias),
        "newline": ParamInfo((out,), "embedding", axes=("embed",)),
    }


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "n P C"], packing: Packing
) -> Float[Array, "R E"]:
    """Run tower and projector over the tiles of an image, or over a frame, and put its tokens together.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: of each tile normalised pixels in raster order, channels first within a patch. Only the first
            ``packing.tiles`` are run, one after the other: they do not see each other.
        packing: what the tokens are made of.

    Returns:
        The tokens' embeddings, in the parameters' dtype; rows past them are zero.
    """
    newline = params["newline"]

    def run(pixels: jax.Array) -> jax.Array:
        return mlp(params["projector"], square_features(params, config, pixels), config.projector_act)

    def rest(pixels: jax.Array) -> jax.Array:
        return jnp.zeros((pixels.shape[0], config.out_hidden_size), newline.dtype)

    def step(number: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return number + 1, jax.lax.cond(number < packing.tiles, run, rest, pixels)

    _, rows = jax.lax.scan(step, jnp.int32(0), jnp.asarray(patches))
    table = jnp.concatenate([newline[None], rows.reshape(-1, rows.shape[-1])])
    return interpolated(table, jnp.asarray(packing.taps), jnp.asarray(packing.weights))
