"""The audio tower of Qwen2.5-Omni (HF ``Qwen2_5OmniAudioEncoder``), one recording per call.

It reads pieces of 2 n frames of mel (n is 100: two seconds), each alone: convolutions, positions and attention stay
within a piece, so a recording that is cut between pieces gives what the whole gives there. Only the mean of two rows,
which comes last, may reach across a border, and does where n is odd.
"""

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.blocks.layers import dense
from models.blocks.params import Params, linear
from models.blocks.vit import ACTIVATIONS, blocks_declaration, layer_norm, norm, run_blocks
from models.hub.fields import UnsupportedConfigError

EPS = 1e-5
"""Of every LayerNorm of the tower; not configurable in HF either."""

TIMESCALE = 10000.0
"""Of the slowest of the sinusoids that stand for positions."""

SEPARATE = 16
"""Up to so many pieces a program is compiled for each power of two, beyond for each multiple."""


@dataclass(frozen=True)
class AudioConfig:
    """The audio tower of an omni model.

    Attributes:
        depth, hidden_size, intermediate_size, num_heads, hidden_act: see `models.blocks.encoder_config`.
        bands: of the mel spectrogram.
        window: n, half the frames of a piece.
        out_hidden_size: the width of the language model.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    hidden_act: str
    bands: int
    window: int
    out_hidden_size: int

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size % 2 or self.hidden_size < 4:
            raise UnsupportedConfigError(
                f"audio_config: {self.num_heads} heads of width {self.hidden_size} in all; one must divide the other, "
                "which is an even number, 4 at least"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def layer_norm_eps(self) -> float:
        """`EPS`."""
        return EPS


@flax.struct.dataclass
class AudioPlan:
    """The layout of a recording in P pieces. Plans of one bucket may be stacked, for vmap.

    Attributes:
        frames: that are not padding, i32 scalar.
        tokens: output tokens that are not padding, i32 scalar.
        rows: frames that the tower takes, padding included: P pieces.
    """

    frames: Int[Array | np.ndarray, "*B"]
    tokens: Int[Array | np.ndarray, "*B"]
    rows: int = flax.struct.field(pytree_node=False)


def audio_declaration(config: AudioConfig) -> Params:
    """Every parameter of the tower; blocks stacked on the leading axis. Keys have no bias."""
    width = config.hidden_size
    blocks = blocks_declaration(config)
    attn = {name: layer for name, layer in blocks["attn"].items() if name != "k"} | {
        "k": {"w": blocks["attn"]["k"]["w"]}
    }
    return {
        "conv1": linear(3 * config.bands, width, bias=True, axes=(None, "embed")),
        "conv2": linear(3 * width, width, bias=True, axes=(None, "embed")),
        "blocks": {**blocks, "attn": attn},
        "norm": norm(width),
        "out": linear(width, config.out_hidden_size, bias=True, axes=(None, "embed")),
    }


def unit(config: AudioConfig) -> tuple[int, int]:
    """Frames that share no token with others, and their tokens: a piece, or two where a pair of rows lies in both."""
    frames = 2 * config.window * (1 + config.window % 2)
    return frames, frames // 4


def plan(frames: int, config: AudioConfig, behind: bool = False) -> AudioPlan:
    """Lay a recording out in pieces, on the host.

    Args:
        frames: of mel, 3 at least: fewer give no token.
        config: the tower's configuration.
        behind: whether the frames stand behind others of their recording, which makes no difference here.
    """
    pieces = -(-frames // (2 * config.window))
    pieces = 1 << (pieces - 1).bit_length() if pieces <= SEPARATE else -(-pieces // SEPARATE) * SEPARATE
    tokens = (frames + 1) // 2 // 2
    return AudioPlan(np.asarray(frames, np.int32), np.asarray(tokens, np.int32), pieces * 2 * config.window)


def sinusoids(rows: int, width: int) -> Float[np.ndarray, "n E"]:
    """Positions in a piece (HF ``SinusoidsPositionEmbedding``), rounded to f32 where HF rounds."""
    step = np.float32(np.log(TIMESCALE) / (width // 2 - 1))
    exponents = -step * np.arange(width // 2, dtype=np.float32)
    scales = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(rows, dtype=np.float32)[:, None] * scales[None, :]).astype(np.float64)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def encode_audio(
    params: Params, config: AudioConfig, mel: Float[Array | np.ndarray, "T F"], plan: AudioPlan
) -> Float[Array, "M E"]:
    """Run the tower over one recording.

    Args:
        params: as declared by `audio_declaration`.
        config: the tower's configuration (static).
        mel: frames of the log-mel spectrogram, padded by `models.blocks.vit.pad_patches`.
        plan: the recording's layout.

    Returns:
        One embedding for each two rows of the pieces, in the parameters' dtype; rows from ``plan.tokens`` on are zero.
    """
    dtype = params["conv1"]["w"].dtype
    size = 2 * config.window
    x = jnp.asarray(mel).astype(dtype).reshape(-1, size, config.bands)
    pieces = x.shape[0]
    lengths = jnp.clip(plan.frames - size * jnp.arange(pieces, dtype=jnp.int32), 0, size)
    gelu = ACTIVATIONS["gelu"]
    # Without the mask the second convolution would read what the first one's bias makes of padding.
    there = jnp.arange(size, dtype=jnp.int32)[None, :] < lengths[:, None]
    x = jnp.where(there[..., None], gelu(dense(params["conv1"], _neighbours(x, 1))), jnp.zeros((), dtype))
    x = gelu(dense(params["conv2"], _neighbours(x, 2)))
    x = x + jnp.asarray(sinusoids(config.window, config.hidden_size)).astype(dtype)[None]
    valid = jnp.arange(config.window, dtype=jnp.int32)[None, :] < ((lengths + 1) // 2)[:, None]

    def encoded(rows: jax.Array, valid: jax.Array) -> jax.Array:
        return run_blocks(params["blocks"], config, rows, valid=valid)

    x = jax.vmap(encoded)(x, valid).reshape(pieces * config.window, -1)
    pairs = x[: len(x) // 2 * 2].reshape(-1, 2, x.shape[-1])
    x = dense(params["out"], layer_norm(params["norm"], (pairs[:, 0] + pairs[:, 1]) / 2, EPS))
    return jnp.where((jnp.arange(x.shape[0], dtype=jnp.int32) < plan.tokens)[:, None], x, jnp.zeros((), x.dtype))


def _neighbours(x: Float[Array, "P T C"], stride: int) -> Float[Array, "P t C3"]:
    """What a convolution of three taps, padded by one, reads: each row between the one before and the one behind."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + x.shape[1] : stride] for tap in range(3)], axis=-1)
