"""The vision tower of Qwen2.5-VL (HF ``Qwen2_5_VisionTransformerPretrainedModel``), one image per call.

The windows of an image are laid out side by side, each padded to the full window of S patches, so that windowed
attention is a batch of dense [S, S] ones and full attention sees the same rows as one sequence.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.blocks.layers import dense, rms_norm, swiglu
from models.blocks.params import ParamInfo, Params, linear, stacked, swiglu_declaration
from models.blocks.softmax import Keys, attention
from models.blocks.vit import axial_rotation, mlp, mlp_declaration, pad_patches
from models.media.images import check_merged_grid
from models.ports.qwen2_5_vl.config import VisionConfig

__all__ = ["VisionPlan", "encode_image", "pad_patches", "plan", "vision_declaration"]

EPS = 1e-6
"""Of every RMSNorm of the tower; not configurable in HF either."""


@flax.struct.dataclass
class VisionPlan:
    """Where the patches of one image go: W windows of S rows, P = W·S. Plans of one bucket may be stacked, for vmap.

    Attributes:
        order: the patch that each row takes, i32[W, S]; 0 in padding.
        positions: row and column of that patch, f32[2, P].
        valid: which rows hold a patch, bool[W, S].
        inverse: the merged row that each output token takes, i32[P / merge²].
        tokens: output tokens that are not padding, i32 scalar.
    """

    order: Int[Array | np.ndarray, "*B W S"]
    positions: Float[Array | np.ndarray, "*B 2 P"]
    valid: Bool[Array | np.ndarray, "*B W S"]
    inverse: Int[Array | np.ndarray, "*B M"]
    tokens: Int[Array | np.ndarray, "*B"]

    @property
    def rows(self) -> int:
        """P: the number of patches that `encode_image` takes, padding included."""
        return self.order.shape[-2] * self.order.shape[-1]


def vision_declaration(config: VisionConfig, *, fused: bool = True) -> Params:
    """Every parameter of the tower; blocks stacked on the leading axis. ``fused``: q, k and v are one dense layer."""
    width = config.hidden_size
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    merged = width * config.spatial_merge_size**2
    projections = {"qkv": "qkv"} if fused else {"q": "heads", "k": "kv_heads", "v": "kv_heads"}
    block: Params = {
        "attn_norm": ParamInfo((width,), "ones", axes=("norm",)),
        "attn": {
            **{
                name: linear(
                    width,
                    len(name) * width,
                    bias=True,
                    axes=("embed", axis),
                    heads=None if fused else config.num_heads,
                )
                for name, axis in projections.items()
            },
            "o": linear(width, width, bias=True, axes=("heads", "embed"), heads=config.num_heads),
        },
        "mlp_norm": ParamInfo((width,), "ones", axes=("norm",)),
        "mlp": swiglu_declaration(width, config.intermediate_size, bias=True),
    }
    return {
        "patch_embed": linear(pixels, width, axes=("pixels", "embed")),
        "blocks": stacked(config.depth, block),
        "merger": {
            "norm": ParamInfo((width,), "ones", axes=("norm",)),
            **mlp_declaration(merged, merged, config.out_hidden_size),
        },
    }


def plan(grid_h: int, grid_w: int, config: VisionConfig, bucket: int = 256) -> VisionPlan:
    """Lay an image out in windows (HF ``get_vision_window_index`` and ``get_vision_position_ids``), on the host.

    Args:
        grid_h, grid_w: the image in patches, as `models.ports.qwen2_5_vl.images.preprocess_image` says.
        config: the tower's configuration.
        bucket: the rows are padded with empty windows to a multiple of this many patches, rounded down to whole
            windows, so that images of one bucket share a compiled program.

    Raises:
        ValueError: the grid is empty, or not a whole number of merged tokens.
    """
    merge = config.spatial_merge_size
    check_merged_grid(grid_h, grid_w, merge)
    unit = merge**2
    side = config.window_size // (merge * config.patch_size)
    height = grid_h // merge
    width = grid_w // merge

    token = np.full((-(-height // side) * side, -(-width // side) * side), -1)
    token[:height, :width] = np.arange(height * width).reshape(height, width)
    token = token.reshape(token.shape[0] // side, side, -1, side).transpose(0, 2, 1, 3).reshape(-1, side * side)
    multiple = max(1, bucket // (side * side * unit))
    token = np.pad(token, ((0, -len(token) % multiple), (0, 0)), constant_values=-1)

    filled = token >= 0
    order = np.where(filled[..., None], token[..., None] * unit + np.arange(unit), 0).reshape(len(token), -1)
    rows, columns = (
        axis.reshape(height, merge, width, merge).swapaxes(1, 2).reshape(-1) for axis in np.indices((grid_h, grid_w))
    )
    inverse = np.zeros(token.size, np.int32)
    inverse[token[filled]] = np.flatnonzero(filled)
    return VisionPlan(
        order=order.astype(np.int32),
        positions=np.stack([rows, columns])[:, order.reshape(-1)].astype(np.float32),
        valid=np.repeat(filled, unit, axis=-1),
        inverse=inverse,
        tokens=np.asarray(height * width, np.int32),
    )


def encode_image(
    params: Params, config: VisionConfig, patches: Float[Array | np.ndarray, "P C"], plan: VisionPlan
) -> Float[Array, "M E"]:
    """Run the tower over one image.

    Args:
        params: as declared by `vision_declaration`.
        config: the tower's configuration (static).
        patches: normalised pixels in merge-block order, padded by `pad_patches`.
        plan: the image's layout.

    Returns:
        One embedding per merged token in raster order, in the parameters' dtype; rows from ``plan.tokens`` on are zero.
    """
    embed = params["patch_embed"]
    windows, size = plan.order.shape
    x = dense(embed, jnp.asarray(patches).astype(embed["w"].dtype))[plan.order.reshape(-1)]
    head_dim = config.hidden_size // config.num_heads
    rotated = axial_rotation(jnp.asarray(plan.positions), head_dim)
    valid = jnp.asarray(plan.valid)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        return attention(q, [Keys(k, v, valid)], head_dim**-0.5).out

    def within_windows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (t.reshape(windows, size, *t.shape[1:]) for t in (q, k, v))
        return jax.vmap(attend)(q, k, v, valid).reshape(windows * size, -1)

    def everywhere(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, valid.reshape(-1))

    full = np.isin(np.arange(config.depth), config.fullatt_block_indexes)

    def block(x: jax.Array, scanned: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        weights, sees_all = scanned
        attn = weights["attn"]
        h = rms_norm(x, weights["attn_norm"], EPS)
        if "qkv" in attn:
            q, k, v = dense(attn["qkv"], h).reshape(windows * size, 3, config.num_heads, -1).swapaxes(0, 1)
        else:
            q, k, v = (dense(attn[name], h).reshape(windows * size, config.num_heads, -1) for name in "qkv")
        q = rotated(q)
        k = rotated(k)
        if full.any() and not full.all():
            out = jax.lax.cond(sees_all, everywhere, within_windows, q, k, v)
        else:
            out = (everywhere if full.any() else within_windows)(q, k, v)
        x = x + dense(attn["o"], out)
        return x + swiglu(weights["mlp"], rms_norm(x, weights["mlp_norm"], EPS)), None

    x, _ = jax.lax.scan(block, x, (params["blocks"], jnp.asarray(full)))

    merger = params["merger"]
    x = rms_norm(x, merger["norm"], EPS).reshape(-1, x.shape[-1] * config.spatial_merge_size**2)
    x = mlp(merger, x, "gelu")
    return jnp.where(
        (jnp.arange(x.shape[0], dtype=jnp.int32) < plan.tokens)[:, None], x[plan.inverse], jnp.zeros((), x.dtype)
    )
