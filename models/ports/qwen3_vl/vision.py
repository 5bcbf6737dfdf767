"""The vision tower of Qwen3-VL (HF ``Qwen3VLVisionModel``), one image or temporal patch per call.

Every patch sees every other. Learned positions are interpolated to the image, and rows and columns rotate queries and
keys beside. What comes out of some of the blocks is merged too, and added behind the first layers of the language
model (DeepStack).
"""

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.blocks.decoder import DecoderConfig
from models.blocks.layers import dense
from models.blocks.params import ParamInfo, Params, linear, stacked
from models.blocks.vit import (
    VitConfig,
    axial_rotation,
    blocks_declaration,
    interpolated,
    layer_norm,
    merged_layout,
    mlp,
    mlp_declaration,
    norm,
    run_blocks_tapped,
)
from models.hub.fields import LAYERS, WIDTH, Fields, UnsupportedConfigError
from models.hub.towers import UNUSED_FIELDS, activation_name
from models.media.images import check_merged_grid
from models.media.spans import Features

EPS = 1e-6
"""Of every LayerNorm of the tower; not configurable in HF either."""


@dataclass(frozen=True)
class VisionConfig(VitConfig):
    """The vision tower.

    Attributes:
        temporal_patch_size: frames that a patch spans.
        spatial_merge_size: patches along a side of a merged token.
        num_position_embeddings: learned positions, of a square grid.
        deepstack_visual_indexes: blocks whose outputs are merged too, rising.
    """

    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 4:
            raise UnsupportedConfigError(
                f"vision_config: {self.num_heads} heads of width {self.hidden_size} in all; "
                "the 2-D RoPE needs a head width that is a multiple of 4"
            )
        if self.side**2 != self.num_position_embeddings:
            raise UnsupportedConfigError(
                f"vision_config: num_position_embeddings is {self.num_position_embeddings}; expected a square number, "
                "for as many rows as columns"
            )
        taps = self.deepstack_visual_indexes
        if list(taps) != sorted(set(taps)) or any(tap >= self.depth for tap in taps):
            raise UnsupportedConfigError(
                f"vision_config: deepstack_visual_indexes is {list(taps)!r:.200}; expected blocks below "
                f"{self.depth}, each once, in rising order"
            )

    @property
    def side(self) -> int:
        """Rows, and columns, of learned positions."""
        return int(self.num_position_embeddings**0.5)

    @property
    def pixels(self) -> int:
        """C: values in a patch, of all its frames."""
        return super().pixels * self.temporal_patch_size

    @property
    def merged(self) -> int:
        """Width of the patches of a merged token, side by side."""
        return self.hidden_size * self.spatial_merge_size**2


@flax.struct.dataclass
class VisionPlan:
    """Where the patches of one image stand. Plans of one bucket may be stacked, for vmap.

    Attributes:
        positions: row and column of each patch, f32[2, P].
        valid: which rows hold a patch, bool[P].
        taps: the 4 learned positions around it, i32[P, 4].
        weights: what each of them counts, f32[P, 4]; 0 in padding.
        tokens: output tokens that are not padding, i32 scalar.
    """

    positions: Float[Array | np.ndarray, "*B 2 P"]
    valid: Bool[Array | np.ndarray, "*B P"]
    taps: Int[Array | np.ndarray, "*B P K"]
    weights: Float[Array | np.ndarray, "*B P K"]
    tokens: Int[Array | np.ndarray, "*B"]

    @property
    def rows(self) -> int:
        """P: the number of patches that `encode_image` takes, padding included."""
        return self.valid.shape[-1]


def read_tower(fields: Fields, text: DecoderConfig) -> VisionConfig:
    """The image side of a hub ``config.json``, its ``vision_config`` (``Qwen3VLVisionConfig``); closes the section.

    Args:
        fields: the section, less its ``model_type``.
        text: the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields.expect("rope_parameters", {"rope_theta": 10000.0, "rope_type": "axial"})
    config = VisionConfig(
        depth=fields.size("depth", 27, most=LAYERS),
        hidden_size=fields.size("hidden_size", 1152),
        intermediate_size=fields.size("intermediate_size", 4304),
        num_heads=fields.size("num_heads", 16),
        in_channels=fields.size("in_channels", 3),
        patch_size=fields.size("patch_size", 16),
        hidden_act=activation_name(fields, "hidden_act", "gelu_pytorch_tanh"),
        layer_norm_eps=EPS,
        out_hidden_size=fields.size("out_hidden_size", 3584),
        temporal_patch_size=fields.size("temporal_patch_size", 2),
        spatial_merge_size=fields.size("spatial_merge_size", 2),
        num_position_embeddings=fields.size("num_position_embeddings", 2304, most=WIDTH**2),
        deepstack_visual_indexes=fields.sizes("deepstack_visual_indexes", [8, 16, 24], least=0),
    )
    if config.out_hidden_size != text.hidden_size:
        raise UnsupportedConfigError(
            f"vision_config: out_hidden_size is {config.out_hidden_size}; expected the text width, {text.hidden_size}"
        )
    if len(config.deepstack_visual_indexes) > text.num_hidden_layers:
        raise UnsupportedConfigError(
            f"vision_config: deepstack_visual_indexes names {len(config.deepstack_visual_indexes)} blocks, whose "
            f"features are added behind as many layers; the language model has {text.num_hidden_layers}"
        )
    fields.ignore(*UNUSED_FIELDS)
    fields.close()
    return config


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter of the tower and its mergers; blocks, and mergers of DeepStack, stacked on the leading axis."""
    width = config.hidden_size
    merger = mlp_declaration(config.merged, config.merged, config.out_hidden_size)
    declared: Params = {
        "patch_embed": linear(config.pixels, width, bias=True, axes=("pixels", "embed")),
        "positions": ParamInfo((config.num_position_embeddings, width), "embedding", axes=("positions", "embed")),
        "blocks": blocks_declaration(config, fused=True),
        "merger": {"norm": norm(width), **merger},
    }
    if config.deepstack_visual_indexes:
        deep = {"norm": norm(config.merged), **merger}
        declared["deep"] = stacked(len(config.deepstack_visual_indexes), deep)
    return declared


def bilinear(size: int, learned: int) -> tuple[np.ndarray, np.ndarray]:
    """One axis of bilinear interpolation whose corners are aligned, from ``learned`` points to ``size``.

    Returns:
        For every point the 2 learned ones around it, i32[size, 2], and their weights, f32[size, 2]; in f32, as torch
        computes them.
    """
    source = np.arange(size, dtype=np.float32) * np.float32(learned - 1) / np.float32(max(size - 1, 1))
    first = np.floor(source)
    offsets = np.arange(2, dtype=np.float32)
    weights = np.maximum(1 - np.abs((source - first)[:, None] - offsets), np.float32(0))
    return np.clip(first[:, None] + offsets, 0, learned - 1).astype(np.int32), weights.astype(np.float32)


def plan(grid_h: int, grid_w: int, config: VisionConfig, bucket: int = 256) -> VisionPlan:
    """Place an image, whose patches come merged token by merged token, on the learned positions, on the host.

    Args:
        grid_h, grid_w: the image in patches.
        config: the tower's configuration.
        bucket: the rows are padded to a multiple of this many patches, rounded down to whole merged tokens, so that
            images of one bucket share a compiled program.

    Raises:
        ValueError: the grid is empty, or not a whole number of merged tokens.
    """
    check_merged_grid(grid_h, grid_w, config.spatial_merge_size)
    rows = bilinear(grid_h, config.side)
    columns = bilinear(grid_w, config.side)
    layout = merged_layout(rows, columns, config.side, config.spatial_merge_size, bucket)
    return VisionPlan(**{name: array for name, array in layout.items() if name != "order"})


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Features:
    """Run the tower over one image, or over one temporal patch of a video.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in merge-block order, padded by `models.blocks.vit.pad_patches`.
        plan: the image's layout.

    Returns:
        One embedding per merged token in raster order, and as many features for each of the first d layers, in the
        parameters' dtype; rows from ``plan.tokens`` on are zero.
    """
    embed = params["patch_embed"]
    x = dense(embed, jnp.asarray(patches).astype(embed["w"].dtype))
    x = x + interpolated(params["positions"], jnp.asarray(plan.taps), jnp.asarray(plan.weights))
    rotate = axial_rotation(jnp.asarray(plan.positions), config.head_dim)
    taps = config.deepstack_visual_indexes
    x, kept = run_blocks_tapped(params["blocks"], config, x, taps, valid=jnp.asarray(plan.valid), rotate=rotate)

    merger = params["merger"]
    rows = mlp(merger, layer_norm(merger["norm"], x, EPS).reshape(-1, config.merged), "gelu")
    valid = jnp.arange(rows.shape[0], dtype=jnp.int32) < plan.tokens
    zero = jnp.zeros((), rows.dtype)
    rows = jnp.where(valid[:, None], rows, zero)
    if not taps:
        return Features(rows)

    def merged(layer: Params, x: jax.Array) -> jax.Array:
        return mlp(layer, layer_norm(layer["norm"], x, EPS), "gelu")  # here the patches are joined before the norm

    deep = jax.vmap(merged)(params["deep"], kept.reshape(len(taps), -1, config.merged))
    return Features(rows, jnp.where(valid[:, None, None], deep.swapaxes(0, 1), zero))
