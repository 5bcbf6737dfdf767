"""What the vision transformers share: pre-norm blocks with LayerNorm, biased attention and a two-layer MLP.

The Square names are for towers whose images all have one size (SigLIP, CLIP): one shape, so nothing is padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kamera_jax import rope
from models.blocks.encoder_config import EncoderConfig
from models.blocks.layers import dense, rotation
from models.blocks.params import ParamInfo, Params, linear, stacked
from models.blocks.scanning import scan
from models.blocks.softmax import Keys, attention
from models.errors import UnsupportedConfigError

THETA = 10000.0
"""RoPE base of the axial rotation; no tower configures another."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""By the names that transformers gives them."""


@dataclass(frozen=True)
class VitConfig:
    """A tower of ``depth`` blocks of width E.

    Attributes:
        depth: blocks that run.
        hidden_size: E.
        intermediate_size: of the blocks' MLP.
        num_heads: of the blocks' attention.
        in_channels: of the image.
        patch_size: pixels along a side of a patch.
        hidden_act: of the blocks' MLP, a name in `ACTIVATIONS`.
        layer_norm_eps: of the tower's norms.
        out_hidden_size: what the projector makes of it, the width of the language model.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    out_hidden_size: int

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise UnsupportedConfigError(
                f"vision_config: {self.num_heads} heads of width {self.hidden_size} in all; one must divide the other"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def pixels(self) -> int:
        """C: values in a patch."""
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True)
class SquareConfig(VitConfig):
    """A tower of images of ``image_size`` x ``image_size`` pixels, one token per patch."""

    image_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise UnsupportedConfigError(
                f"vision_config: image_size is {self.image_size}; expected a multiple of patch_size, {self.patch_size}"
            )

    @property
    def side(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class MergedSquareConfig(SquareConfig):
    """A tower of such images, of which ``merge`` x ``merge`` patches become one token."""

    merge: int

    MERGED_BY: ClassVar[str] = "merge"
    """What config.json calls it, for messages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_merge()

    def check_merge(self) -> None:
        """Raise UnsupportedConfigError unless merged tokens tile the image."""
        if self.side < 1 or self.side % self.merge:
            raise UnsupportedConfigError(
                f"vision_config: {self.side} x {self.side} patches, of which config.json: {self.MERGED_BY} merges "
                f"{self.merge} x {self.merge}; expected a whole number of merged tokens along a side, 1 at least"
            )

    @property
    def tokens(self) -> int:
        """M: tokens of an image."""
        return (self.side // self.merge) ** 2

    def merged(self, x: Float[Array, "P E"]) -> Float[Array, "M I"]:
        """Patches in raster order, those of one token side by side: row by row, with all features of each."""
        cells = self.side // self.merge
        x = x.reshape(cells, self.merge, cells, self.merge, -1).swapaxes(1, 2)
        return x.reshape(self.tokens, -1)


@runtime_checkable
class Plan(Protocol):
    """What `pad_patches` needs of a plan."""

    @property
    def rows(self) -> int:
        """P: patches that the tower takes, padding included."""
        ...


@flax.struct.dataclass
class SquarePlan:
    """The layout of an image of the one size. Plans may be stacked, for vmap.

    Attributes:
        tokens: output tokens, all of them valid, i32 scalar.
        rows: P, the number of patches.
    """

    tokens: Int[Array | np.ndarray, "*B"]
    rows: int = flax.struct.field(pytree_node=False)


def pad_patches(patches: Float[np.ndarray, "n C"], plan: Plan) -> Float[np.ndarray, "P C"]:
    """Patches with zero rows after them, as many as the plan has."""
    return np.pad(patches, ((0, plan.rows - len(patches)), (0, 0)))


def square_plan(grid_h: int, grid_w: int, config: SquareConfig, bucket: int = 256) -> SquarePlan:
    """Check that an image has the one size.

    Args:
        grid_h, grid_w: the image in patches.
        config: the tower's configuration.
        bucket: what other towers pad to; here every image has the same rows already.

    Raises:
        ValueError: the grid is another.
    """
    if (grid_h, grid_w) != (config.side, config.side):
        raise ValueError(
            f"the grid is {grid_h} x {grid_w} patches; expected {config.side} x {config.side}: "
            f"resize the image to {config.image_size} x {config.image_size} pixels"
        )
    return SquarePlan(tokens=np.asarray(config.side**2, np.int32), rows=config.side**2)


def merged_plan(grid_h: int, grid_w: int, config: MergedSquareConfig, bucket: int = 256) -> SquarePlan:
    """The layout of an image whose patches are merged, as of every one; see `square_plan`."""
    return replace(square_plan(grid_h, grid_w, config, bucket), tokens=np.asarray(config.tokens, np.int32))


def norm(width: int) -> Params:
    """Declaration of a LayerNorm: w and b [width]."""
    return {"w": ParamInfo((width,), "ones", axes=("norm",)), "b": ParamInfo((width,), "zeros", axes=("norm",))}


def mlp_declaration(inputs: int, hidden: int, outputs: int, *, bias: bool = True) -> Params:
    """Declaration of two dense layers, for `mlp`."""
    return {
        "hidden": linear(inputs, hidden, bias=bias, axes=("embed", "mlp")),
        "out": linear(hidden, outputs, bias=bias, axes=("mlp", "embed")),
    }


def blocks_declaration(config: EncoderConfig, *, fused: bool = False) -> Params:
    """Every parameter of the blocks, stacked; ``fused`` keeps q, k and v in one dense layer."""
    width = config.hidden_size
    projections = {"qkv": "qkv"} if fused else {"q": "heads", "k": "kv_heads", "v": "kv_heads"}
    attn = {
        name: linear(width, len(name) * width, bias=True, axes=("embed", axis), heads=config.num_heads)
        for name, axis in projections.items()
    }
    block: Params = {
        "attn_norm": norm(width),
        "attn": attn | {"o": linear(width, width, bias=True, axes=("heads", "embed"), heads=config.num_heads)},
        "mlp_norm": norm(width),
        "mlp": mlp_declaration(width, config.intermediate_size, width),
    }
    return stacked(config.depth, block)


def layer_norm(layer: Params, x: Float[Array, "... E"], eps: float) -> Float[Array, "... E"]:
    """LayerNorm in f32, rounded once to the dtype of ``x`` (torch ``LayerNorm``)."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    w, b = (layer[name].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + layer[name].shape) for name in "wb")
    return (scaled * w + b).astype(x.dtype)


def mlp(layer: Params, x: Float[Array, "... I"], activation: str) -> Float[Array, "... O"]:
    """``out(activation(hidden(x)))``."""
    return dense(layer["out"], ACTIVATIONS[activation](dense(layer["hidden"], x)))


def run_blocks(
    blocks: Params,
    config: EncoderConfig,
    x: Float[Array, "T E"],
    *,
    valid: Bool[Array, " T"] | None = None,
    rotate: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "T E"]:
    """Blocks in which every row sees every valid one.

    Args:
        blocks: as declared by `blocks_declaration`.
        config: the tower's configuration (static).
        x: embedded patches.
        valid: which rows hold a patch; all by default.
        rotate: applied to the heads [T, N, D] of q and k, such as an `axial_rotation`.
    """
    block = _block(config, x.shape[0], valid, rotate)
    return scan(lambda x, weights: (block(x, weights), None), x, blocks)[0]


def run_blocks_tapped(
    blocks: Params,
    config: EncoderConfig,
    x: Float[Array, "T E"],
    taps: Sequence[int],
    *,
    valid: Bool[Array, " T"] | None = None,
    rotate: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Float[Array, "T E"], Float[Array, "d T E"]]:
    """As `run_blocks`, and what came out of some of the blocks on the way.

    Args:
        blocks: as declared by `blocks_declaration`.
        config: the tower's configuration (static).
        x: embedded patches.
        taps: indices of those blocks, rising.
        valid: which rows hold a patch; all by default.
        rotate: applied to the heads [T, N, D] of q and k, such as an `axial_rotation`.
    """
    block = _block(config, x.shape[0], valid, rotate)
    # Each block writes where the next tap belongs, which the tap itself then overwrites; those after the last one write
    # to a place of their own, so that no more than d + 1 outputs are kept at a time.
    places = jnp.asarray(np.searchsorted(np.asarray(taps, np.int32), np.arange(config.depth)), jnp.int32)

    def step(
        carry: tuple[jax.Array, jax.Array], scanned: tuple[Params, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, kept = carry
        weights, place = scanned
        x = block(x, weights)
        return (x, jax.lax.dynamic_update_index_in_dim(kept, x, place, 0)), None

    kept = jnp.zeros((len(taps) + 1, *x.shape), x.dtype)
    (x, kept), _ = scan(step, (x, kept), (blocks, places))
    return x, kept[: len(taps)]


def _block(
    config: EncoderConfig, tokens: int, valid: jax.Array | None, rotate: Callable[[jax.Array], jax.Array] | None
) -> Callable[[jax.Array, Params], jax.Array]:
    """One block of ``tokens`` rows, as a function of them and its parameters."""
    seen = jnp.ones(tokens, bool) if valid is None else valid

    def block(x: jax.Array, weights: Params) -> jax.Array:
        attn = weights["attn"]
        h = layer_norm(weights["attn_norm"], x, config.layer_norm_eps)
        if "qkv" in attn:
            q, k, v = dense(attn["qkv"], h).reshape(tokens, 3, config.num_heads, -1).swapaxes(0, 1)
        else:
            q, k, v = (dense(attn[name], h).reshape(tokens, config.num_heads, -1) for name in "qkv")
        if rotate is not None:
            q = rotate(q)
            k = rotate(k)
        x = x + dense(attn["o"], attention(q, [Keys(k, v, seen)], config.head_dim**-0.5).out)
        h = layer_norm(weights["mlp_norm"], x, config.layer_norm_eps)
        return x + mlp(weights["mlp"], h, config.hidden_act)

    return block


def axial_rotation(positions: Float[Array, "2 T"], head_dim: int) -> Callable[[jax.Array], jax.Array]:
    """2-D RoPE of heads [T, N, D] in half-split pairs, f32 inside.

    Rows (``positions[0]``) turn the first half of the pairs, columns the second, both with the same frequencies.
    """
    frequencies = tuple(rope.inverse_frequencies(head_dim // 2, THETA).tolist())
    spec = rope.RopeSpec(frequencies + frequencies, head_dim, sections=(len(frequencies), len(frequencies)))
    return rotation(spec, positions)


def square_declaration(config: SquareConfig, *, class_token: bool = False) -> Params:
    """Embedding and blocks; with a class token, as CLIP: no bias under the patches, and a norm before the blocks."""
    width = config.hidden_size
    tower: Params = {
        "patch_embed": linear(config.pixels, width, bias=not class_token, axes=("pixels", "embed")),
        "positions": ParamInfo((config.side**2 + class_token, width), "embedding", axes=("positions", "embed")),
        "blocks": blocks_declaration(config),
    }
    if class_token:
        tower |= {"class": ParamInfo((width,), "embedding", axes=("embed",)), "pre_norm": norm(width)}
    return tower


def square_features(
    params: Params, config: SquareConfig, patches: Float[Array | np.ndarray, "P C"]
) -> Float[Array, "T E"]:
    """What the last block makes of an image's patches in raster order, after the class token where there is one."""
    x = dense(params["patch_embed"], jnp.asarray(patches).astype(params["patch_embed"]["w"].dtype))
    if "class" in params:
        x = jnp.concatenate([params["class"][None, :], x])
    x = x + params["positions"]
    if "pre_norm" in params:
        x = layer_norm(params["pre_norm"], x, config.layer_norm_eps)
    return run_blocks(params["blocks"], config, x)


def interpolated(
    table: Float[Array, "... E"], taps: Int[Array, "P K"], weights: Float[Array, "P K"]
) -> Float[Array, "P E"]:
    """Learned positions at the patches, each between K of them, whose indices count through the table's rows.

    Summed in f32, one tap at a time: all of them at once would take K times the memory of the patches.
    """
    flat = table.reshape(-1, table.shape[-1])

    def add(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, weight = tap
        return total + weight[:, None] * flat[index].astype(jnp.float32), None

    start = jnp.zeros((taps.shape[0], flat.shape[-1]), jnp.float32)
    return jax.lax.scan(add, start, (taps.T, weights.T))[0].astype(table.dtype)


Taps = tuple[np.ndarray, np.ndarray]
"""Of each row, or column, of an image the learned positions that it is interpolated from, and their weights [n, k]."""


def merged_layout(rows: Taps, columns: Taps, width: int, merge: int, bucket: int) -> dict[str, np.ndarray]:
    """An image's patches in the order of merged tokens, on learned positions [·, width], on the host.

    Args:
        rows, columns: see `Taps`; one for each row and column of patches.
        width: learned positions of a row.
        merge: a merged token has so many patches a side, of which there are whole numbers.
        bucket: what comes out is padded to a multiple of this many patches, rounded down to whole merged tokens, so
            that images of one bucket share a compiled program.

    Returns:
        ``order`` i32[P] of the patches in raster order, ``positions`` f32[2, P], ``valid`` bool[P], ``taps`` i32[P, k²]
        and their ``weights`` f32[P, k²], and how many merged ``tokens`` there are, i32.
    """
    grid_h = len(rows[0])
    grid_w = len(columns[0])
    order = np.arange(grid_h * grid_w).reshape(grid_h // merge, merge, grid_w // merge, merge)
    order = order.swapaxes(1, 2).reshape(-1)
    row, column = np.divmod(order, grid_w)
    taps = rows[0][row][:, :, None] * width + columns[0][column][:, None, :]
    weights = rows[1][row][:, :, None] * columns[1][column][:, None, :]
    unit = merge**2
    count = len(order)
    padding = -count % (max(1, bucket // unit) * unit)

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, ((0, padding), *[(0, 0)] * (rows.ndim - 1)))

    return {
        "order": padded(order.astype(np.int32)),
        "positions": padded(np.stack([row, column], axis=-1).astype(np.float32)).T,
        "valid": padded(np.ones(count, bool)),
        "taps": padded(taps.reshape(count, -1)),
        "weights": padded(weights.reshape(count, -1)),
        "tokens": np.asarray(count // unit, np.int32),
    }
