"""InternViT (HF ``InternVLVisionModel``) and its projector (``InternVLMultiModalProjector``), one tile per call.

Two kinds are published: of 300M parameters, with LayerNorms and biases, and of 6B, with RMSNorms, queries and keys that
are normalised, and no biases under them. Tiles do not see each other.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.blocks.layers import dense, rms_norm
from models.blocks.params import ParamInfo, Params, linear, stacked
from models.blocks.softmax import Keys, attention
from models.blocks.vit import MergedSquareConfig, layer_norm, mlp, mlp_declaration, norm, pad_patches
from models.blocks.vit import SquarePlan as VisionPlan
from models.blocks.vit import merged_plan as plan
from models.hub.fields import LAYERS, Fields, UnsupportedConfigError
from models.hub.towers import UNUSED_FIELDS, activation_name, feature_depth

__all__ = [
    "VisionConfig",
    "VisionPlan",
    "encode_image",
    "pad_patches",
    "plan",
    "vision_config_from_hf",
    "vision_declaration",
]

QK_EPS = 1e-6
"""Of the norms of queries and keys; not configurable in HF either."""

PROJECTOR_EPS = 1e-5
"""Of the projector's norm; not configurable in HF either."""

_UNUSED = (*UNUSED_FIELDS, "hidden_dropout_prob", "projection_dropout", "layer_scale_init_value")


@dataclass(frozen=True)
class VisionConfig(MergedSquareConfig):
    """InternViT up to the block whose output is the feature; ``layer_norm_eps`` is of its norms, whatever their kind.

    Attributes:
        stored_depth: blocks in the checkpoint; of those, ``depth`` run.
        rms: whether the blocks' norms are RMSNorms; they are LayerNorms otherwise.
        qkv_bias: of the blocks' queries, keys and values.
        qk_norm: whether queries and keys are normalised, over all heads at once.
        final_norm: whether a LayerNorm follows the last block.
        projector_act: a name in `models.blocks.vit.ACTIVATIONS`.
    """

    stored_depth: int
    rms: bool
    qkv_bias: bool
    qk_norm: bool
    final_norm: bool
    projector_act: str

    MERGED_BY: ClassVar[str] = "downsample_ratio"


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: its ``vision_config`` and what goes with it.

    Args:
        top: the file; taken from it are also downsample_ratio, vision_feature_layer, vision_feature_select_strategy,
            projector_hidden_act and image_seq_length. What is not about images is left.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields = Fields("vision_config", top.take("vision_config", dict))
    fields.expect("model_type", "internvl_vision")
    fields.expect("use_mask_token", False)
    fields.expect("use_absolute_position_embeddings", True)
    kind = fields.take("norm_type", str, "layer_norm")
    if kind not in ("layer_norm", "rms_norm"):
        raise UnsupportedConfigError(f"vision_config: norm_type is {kind!r:.200}; expected 'layer_norm' or 'rms_norm'")
    stored = fields.size("num_hidden_layers", 24, most=LAYERS)
    pooled = fields.take("use_mean_pooling", bool, True)

    top.expect("vision_feature_select_strategy", "default")
    top.ignore("image_seq_length")  # the size of a tile says it; HF's model does not read it either
    last = top.rest.get("vision_feature_layer", -1) == -1
    depth = feature_depth(top, stored, -1)
    ratio = top.positive("downsample_ratio", 0.5)
    if ratio not in (1.0, 0.5, 0.25):
        raise UnsupportedConfigError(f"config.json: downsample_ratio is {ratio}; expected 1, 0.5 or 0.25")
    config = VisionConfig(
        depth=depth,
        hidden_size=fields.size("hidden_size", 1024),
        intermediate_size=fields.size("intermediate_size", 4096),
        num_heads=fields.size("num_attention_heads", 16),
        in_channels=fields.size("num_channels", 3),
        patch_size=_side(fields, "patch_size", 14),
        hidden_act=activation_name(fields, "hidden_act", "gelu"),
        layer_norm_eps=fields.positive("layer_norm_eps", 1e-6),
        out_hidden_size=out_hidden_size,
        image_size=_side(fields, "image_size", 448),
        stored_depth=stored,
        rms=kind == "rms_norm",
        qkv_bias=fields.take("attention_bias", bool, False),
        qk_norm=fields.take("use_qk_norm", bool, False),
        final_norm=last and not pooled,
        merge=round(1 / ratio),
        projector_act=activation_name(top, "projector_hidden_act", "gelu"),
    )
    fields.ignore(*_UNUSED)
    fields.close()
    return config


def _side(fields: Fields, name: str, default: int) -> int:
    """A field that is a square's side, as a number or as height and width.

    Raises:
        UnsupportedConfigError: it is no size, or height and width differ.
    """
    if not isinstance(fields.rest.get(name), list):
        return fields.size(name, default)
    sides = fields.sizes(name)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UnsupportedConfigError(f"vision_config: {name} is {list(sides)!r:.200}; expected one size, or it twice")
    return sides[0]


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter that runs, of the tower and its projector; blocks stacked on the leading axis."""
    width = config.hidden_size
    out = config.out_hidden_size
    merged = width * config.merge**2
    scale = ParamInfo((width,), "ones", axes=("norm",))
    block_norm = {"w": scale} if config.rms else norm(width)
    attn: Params = {
        name: linear(width, width, bias=config.qkv_bias, axes=("embed", axis), heads=config.num_heads)
        for name, axis in {"q": "heads", "k": "kv_heads", "v": "kv_heads"}.items()
    }
    attn["o"] = linear(width, width, bias=True, axes=("heads", "embed"), heads=config.num_heads)
    if config.qk_norm:
        attn |= {"q_norm": scale, "k_norm": scale}
    block: Params = {
        "attn_norm": block_norm,
        "attn": attn,
        "attn_scale": scale,
        "mlp_norm": block_norm,
        "mlp": mlp_declaration(width, config.intermediate_size, width),
        "mlp_scale": scale,
    }
    tower: Params = {
        "patch_embed": linear(config.pixels, width, bias=True, axes=("pixels", "embed")),
        "class": ParamInfo((width,), "embedding", axes=("embed",)),
        "positions": ParamInfo((config.side**2 + 1, width), "embedding", axes=("positions", "embed")),
        "blocks": stacked(config.depth, block),
        "projector": {"norm": norm(merged), **mlp_declaration(merged, out, out)},
    }
    return tower | ({"norm": norm(width)} if config.final_norm else {})


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Float[Array, "M E"]:
    """Run tower and projector over one tile.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in raster order, channels first within a patch.
        plan: the tile's layout, which says nothing new: no row is padding.

    Returns:
        One embedding for each merged token in raster order, in the parameters' dtype.
    """
    x = dense(params["patch_embed"], jnp.asarray(patches).astype(params["patch_embed"]["w"].dtype))
    x = jnp.concatenate([params["class"][None, :], x]) + params["positions"]
    x = _run_blocks(params["blocks"], config, x)[1:]
    if config.final_norm:
        x = layer_norm(params["norm"], x, config.layer_norm_eps)
    x = config.merged(x)
    projector = params["projector"]
    return mlp(projector, layer_norm(projector["norm"], x, PROJECTOR_EPS), config.projector_act)


def _run_blocks(blocks: Params, config: VisionConfig, x: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Blocks in which every row sees every other, and each branch is scaled channel by channel (LayerScale)."""
    seen = jnp.ones(x.shape[0], bool)

    def normal(layer: Params, x: jax.Array) -> jax.Array:
        if config.rms:
            return rms_norm(x, layer["w"], config.layer_norm_eps)
        return layer_norm(layer, x, config.layer_norm_eps)

    def block(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        attn = weights["attn"]
        h = normal(weights["attn_norm"], x)
        heads = {name: dense(attn[name], h) for name in "qkv"}
        if config.qk_norm:
            heads |= {name: rms_norm(heads[name], attn[f"{name}_norm"], QK_EPS) for name in "qk"}
        q, k, v = (heads[name].reshape(x.shape[0], config.num_heads, -1) for name in "qkv")
        out = dense(attn["o"], attention(q, [Keys(k, v, seen)], config.head_dim**-0.5).out)
        x = x + weights["attn_scale"][None, :] * out
        out = mlp(weights["mlp"], normal(weights["mlp_norm"], x), config.hidden_act)
        return x + weights["mlp_scale"][None, :] * out, None

    return jax.lax.scan(block, x, blocks)[0]
