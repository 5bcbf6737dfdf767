"""MoonViT, the vision tower of Kimi-VL, and its projector, one image per call.

HF has it as ``Kimi_K25VisionModel`` and ``Kimi_K25MultimodalProjection``, for one frame. The rows of an image are laid
out merged token by merged token, so that merging is a reshape.
"""

from dataclasses import dataclass

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.blocks.layers import dense
from models.blocks.params import ParamInfo, Params, linear
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
    pad_patches,
    run_blocks,
)
from models.hub.fields import LAYERS, Fields, UnsupportedConfigError
from models.hub.towers import UNUSED_FIELDS
from models.media.images import check_merged_grid

__all__ = [
    "VisionConfig",
    "VisionPlan",
    "encode_image",
    "pad_patches",
    "plan",
    "vision_config_from_hf",
    "vision_declaration",
]

EPS = 1e-5
"""Of every LayerNorm, the projector's included; not configurable."""

CUBIC = -0.75
"""The free parameter of the bicubic kernel (Keys, 1981), as torch has it."""


@dataclass(frozen=True)
class VisionConfig(VitConfig):
    """MoonViT: positions learned on a grid of ``init_pos_emb_height`` x ``init_pos_emb_width``."""

    init_pos_emb_height: int
    init_pos_emb_width: int
    spatial_merge_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 4:
            raise UnsupportedConfigError(
                f"vision_config: {self.num_heads} heads of width {self.hidden_size} in all; "
                "the 2-D RoPE needs a head width that is a multiple of 4"
            )


@flax.struct.dataclass
class VisionPlan:
    """Where the patches of one image go. Plans of one bucket may be stacked, for vmap.

    Attributes:
        order: the patch that each row takes, i32[P]; 0 in padding.
        positions: row and column of that patch, f32[2, P].
        valid: which rows hold a patch, bool[P].
        taps: the 16 learned positions next to it, i32[P, 16].
        weights: what each of them counts, f32[P, 16]; 0 in padding.
        tokens: output tokens that are not padding, i32 scalar.
    """

    order: Int[Array | np.ndarray, "*B P"]
    positions: Float[Array | np.ndarray, "*B 2 P"]
    valid: Bool[Array | np.ndarray, "*B P"]
    taps: Int[Array | np.ndarray, "*B P K"]
    weights: Float[Array | np.ndarray, "*B P K"]
    tokens: Int[Array | np.ndarray, "*B"]

    @property
    def rows(self) -> int:
        """P: the number of patches that `encode_image` takes, padding included."""
        return self.order.shape[-1]


def vision_config_from_hf(top: Fields, out_hidden_size: int) -> VisionConfig:
    """The image side of a hub ``config.json``: takes its ``vision_config`` (``MoonViTConfig``).

    Args:
        top: the file; what is not about images is left in it.
        out_hidden_size: width of the language model.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields = Fields("vision_config", top.take("vision_config", dict))
    fields.expect("model_type", "moonvit")
    merge = fields.sizes("merge_kernel_size", [2, 2])
    if len(merge) != 2 or merge[0] != merge[1]:
        raise UnsupportedConfigError(
            f"vision_config: merge_kernel_size is {list(merge)!r:.200}; expected twice the same size"
        )
    config = VisionConfig(
        depth=fields.size("num_hidden_layers", 27, most=LAYERS),
        hidden_size=fields.size("hidden_size", 1152),
        intermediate_size=fields.size("intermediate_size", 4304),
        num_heads=fields.size("num_attention_heads", 16),
        in_channels=3,
        patch_size=fields.size("patch_size", 14),
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=EPS,
        out_hidden_size=out_hidden_size,
        init_pos_emb_height=fields.size("init_pos_emb_height", 64),
        init_pos_emb_width=fields.size("init_pos_emb_width", 64),
        spatial_merge_size=merge[0],
    )
    fields.ignore(*UNUSED_FIELDS)
    fields.close()
    return config


def vision_declaration(config: VisionConfig) -> Params:
    """Every parameter of the tower and its projector; blocks stacked on the leading axis."""
    width = config.hidden_size
    merged = config.hidden_size * config.spatial_merge_size**2
    return {
        "patch_embed": linear(config.pixels, width, bias=True, axes=("pixels", "embed")),
        "positions": ParamInfo(
            (config.init_pos_emb_height, config.init_pos_emb_width, width),
            "embedding",
            axes=("rows", "columns", "embed"),
        ),
        "blocks": blocks_declaration(config, fused=True),
        "norm": norm(width),
        "projector": {"norm": norm(width), **mlp_declaration(merged, merged, config.out_hidden_size)},
    }


def bicubic(size: int, learned: int) -> tuple[np.ndarray, np.ndarray]:
    """One axis of ``torch.nn.functional.interpolate(mode="bicubic")``, from ``learned`` points to ``size``.

    Returns:
        For every point the 4 learned ones it is made of, i32[size, 4] (the border stands for what is beyond it), and
        their weights, f32[size, 4], which sum to 1. All in f32, as torch computes them.
    """
    source = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(learned) / np.float32(size)
    source -= np.float32(0.5)
    first = np.floor(source)
    offsets = np.arange(-1, 3, dtype=np.float32)
    d = np.abs((source - first)[:, None] - offsets)
    a = np.float32(CUBIC)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    taps = np.clip(first[:, None] + offsets, 0, learned - 1).astype(np.int32)
    return taps, np.where(d <= 1, near, far).astype(np.float32)


def plan(grid_h: int, grid_w: int, config: VisionConfig, bucket: int = 256) -> VisionPlan:
    """Lay an image out merged token by merged token and place it on the learned positions, on the host.

    Args:
        grid_h, grid_w: the image in patches.
        config: the tower's configuration.
        bucket: the rows are padded to a multiple of this many patches, rounded down to whole merged tokens, so that
            images of one bucket share a compiled program.

    Raises:
        ValueError: the grid is empty, or not a whole number of merged tokens.
    """
    check_merged_grid(grid_h, grid_w, config.spatial_merge_size)
    rows = bicubic(grid_h, config.init_pos_emb_height)
    columns = bicubic(grid_w, config.init_pos_emb_width)
    width = config.init_pos_emb_width
    return VisionPlan(**merged_layout(rows, columns, width, config.spatial_merge_size, bucket))


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Float[Array, "M E"]:
    """Run tower and projector over one image.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in raster order, channels first within a patch, padded by `pad_patches`.
        plan: the image's layout.

    Returns:
        One embedding per merged token in raster order, in the parameters' dtype; rows from ``plan.tokens`` on are zero.
    """
    embed = params["patch_embed"]
    x = dense(embed, jnp.asarray(patches).astype(embed["w"].dtype))[plan.order]
    x = x + interpolated(params["positions"], jnp.asarray(plan.taps), jnp.asarray(plan.weights))
    rotate = axial_rotation(jnp.asarray(plan.positions), config.head_dim)
    x = run_blocks(params["blocks"], config, x, valid=jnp.asarray(plan.valid), rotate=rotate)

    projector = params["projector"]
    x = layer_norm(projector["norm"], layer_norm(params["norm"], x, EPS), EPS)
    x = mlp(projector, x.reshape(-1, x.shape[-1] * config.spatial_merge_size**2), "gelu")
    return jnp.where((jnp.arange(x.shape[0], dtype=jnp.int32) < plan.tokens)[:, None], x, jnp.zeros((), x.dtype))
