"""The audio tower of Qwen3-Omni (HF ``Qwen3OmniMoeAudioEncoder``), one recording per call.

Pieces of 2 n frames of mel (n is 50: one second) go through three convolutions over time and bands, each piece alone,
and become 13 rows with positions of their own. Rows of a window of several pieces (eight) see each other, and no
others: a recording that is cut between windows gives what the whole gives there.

The last piece may be short. Where one stands before it, HF fills it with zeros to a whole one, and from the first
convolution on what these make of its end counts; alone it ends where it ends.
"""

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.blocks.layers import dense
from models.blocks.params import Params, linear
from models.blocks.vit import ACTIVATIONS, blocks_declaration, layer_norm, mlp_declaration, norm, run_blocks
from models.hub.fields import UnsupportedConfigError
from models.ports.qwen2_5_omni import audio
from models.ports.qwen2_5_omni.audio import EPS, sinusoids

ROWS = 13
"""Rows of a whole piece: HF counts a recording's tokens by this number, whatever its configuration says."""

CONVOLUTIONS = 3
"""Each halves the frames and the bands of a piece."""

TAPS = 3
"""Of a convolution, along either axis."""

SEPARATE = 4
"""Up to so many windows a program is compiled for each power of two, beyond for each multiple."""

TOGETHER = 4
"""Windows whose convolutions are computed at once: what comes out of the first takes 40 times the memory of its mel."""


@dataclass(frozen=True)
class AudioConfig(audio.AudioConfig):
    """The audio tower; see `models.ports.qwen2_5_omni.audio.AudioConfig`.

    Attributes:
        pieces: of a window.
        channels: of the convolutions.
    """

    pieces: int
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = halved(2 * self.window, CONVOLUTIONS)
        if rows != ROWS:
            raise UnsupportedConfigError(
                f"audio_config: n_window is {self.window}, which makes {rows} rows of a piece; expected {ROWS}, by "
                "which transformers counts tokens: 49 to 52"
            )

    @property
    def piece(self) -> int:
        """Frames of a piece."""
        return 2 * self.window


def halved(size: int, times: int) -> int:
    """What so many convolutions make of so many frames, or bands."""
    return -(-size // 2**times)


@flax.struct.dataclass
class AudioPlan:
    """The layout of a recording in windows. Plans of one bucket may be stacked, for vmap.

    Attributes:
        frames: that are not padding, i32 scalar.
        tokens: output tokens that are not padding, i32 scalar.
        filled: whether a piece that is not whole is filled with zeros to one, bool scalar.
        windows: that the tower takes.
        rows: frames that it takes, padding included: as many pieces in each window.
    """

    frames: Int[Array | np.ndarray, "*B"]
    tokens: Int[Array | np.ndarray, "*B"]
    filled: Bool[Array | np.ndarray, "*B"]
    windows: int = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)


def audio_declaration(config: AudioConfig) -> Params:
    """Every parameter of the tower; blocks stacked on the leading axis."""
    width = config.hidden_size
    channels = [1, *[config.channels] * CONVOLUTIONS]
    convolutions = {
        f"conv{number}": linear(TAPS**2 * before, config.channels, bias=True, axes=(None, "embed"))
        for number, before in enumerate(channels[:-1], start=1)
    }
    flat = config.channels * halved(config.bands, CONVOLUTIONS)
    return {
        **convolutions,
        "flat": linear(flat, width, axes=(None, "embed")),
        "blocks": blocks_declaration(config),
        "norm": norm(width),
        "projector": mlp_declaration(width, width, config.out_hidden_size),
    }


def unit(config: AudioConfig) -> tuple[int, int]:
    """Frames that share no token and no attention with others, and their tokens: a window."""
    return config.pieces * config.piece, config.pieces * ROWS


def token_count(frames: int, config: AudioConfig) -> int:
    """Tokens of a recording (HF ``_get_feat_extract_output_lengths``)."""
    whole, rest = divmod(frames, config.piece)
    return whole * ROWS + halved(rest, CONVOLUTIONS)


def plan(frames: int, config: AudioConfig, behind: bool = False) -> AudioPlan:
    """Lay a recording out in windows, on the host.

    Args:
        frames: of mel, 1 at least.
        config: the tower's configuration.
        behind: whether they stand behind others of their recording, so that a whole piece stands before each of them.
    """
    pieces = -(-frames // config.piece)
    windows = -(-pieces // config.pieces)
    if windows == 1:
        pieces = min(1 << (pieces - 1).bit_length(), config.pieces)
    else:
        pieces = config.pieces
        windows = 1 << (windows - 1).bit_length() if windows <= SEPARATE else -(-windows // SEPARATE) * SEPARATE
    return AudioPlan(
        np.asarray(frames, np.int32),
        np.asarray(token_count(frames, config), np.int32),
        np.asarray(behind or frames > config.piece),
        windows,
        windows * pieces * config.piece,
    )


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
        13 embeddings for each piece, in the parameters' dtype; rows from ``plan.tokens`` on are zero.
    """
    dtype = params["conv1"]["w"].dtype
    size = config.piece
    frames = jnp.asarray(mel).astype(dtype).reshape(plan.windows, -1, size, config.bands)
    pieces = frames.shape[0] * frames.shape[1]
    lengths = jnp.clip(plan.frames - size * jnp.arange(pieces, dtype=jnp.int32), 0, size)
    positions = jnp.asarray(sinusoids(ROWS, config.hidden_size)).astype(dtype)

    def window(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        frames, lengths = given
        rows = _convolved(params, frames, lengths, jnp.where(plan.filled, size, lengths))
        rows = dense(params["flat"], rows) + positions[None]
        valid = jnp.arange(ROWS, dtype=jnp.int32)[None, :] < _halved(lengths, CONVOLUTIONS)[:, None]
        rows = rows.reshape(-1, config.hidden_size)
        return run_blocks(params["blocks"], config, rows, valid=valid.reshape(-1))

    x = jax.lax.map(window, (frames, lengths.reshape(plan.windows, -1)), batch_size=min(plan.windows, TOGETHER))
    x = layer_norm(params["norm"], x.reshape(pieces * ROWS, -1), EPS)
    x = ACTIVATIONS[config.hidden_act](dense(params["projector"]["hidden"], x))
    x = dense(params["projector"]["out"], x)
    return jnp.where((jnp.arange(x.shape[0], dtype=jnp.int32) < plan.tokens)[:, None], x, jnp.zeros((), x.dtype))


def _convolved(
    params: Params, frames: Float[Array, "P T F"], lengths: Int[Array, " P"], ends: Int[Array, " P"]
) -> Float[Array, "P t C"]:
    """What the convolutions make of pieces, each frame's channels side by side, with all bands of each.

    Args:
        params: of the tower.
        frames: of the pieces.
        lengths: frames of each that are no padding.
        ends: frames of each, behind which convolutions read zeros; up to there they read what they made themselves.
    """
    x = jnp.where(_before(frames, lengths)[..., None], frames, jnp.zeros((), frames.dtype)).swapaxes(1, 2)[..., None]
    for number in range(1, CONVOLUTIONS + 1):
        layer = params[f"conv{number}"]
        kernel = layer["w"].reshape(TAPS, TAPS, -1, layer["w"].shape[-1])
        made = jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        made = made + layer["b"].astype(jnp.float32).reshape(1, 1, 1, -1)
        x = ACTIVATIONS["gelu"](made.astype(x.dtype))
        there = _before(x.swapaxes(1, 2), _halved(ends, number))
        x = jnp.where(there[:, None, :, None], x, jnp.zeros((), x.dtype))
    pieces, _, rows, _ = x.shape
    return x.transpose(0, 2, 3, 1).reshape(pieces, rows, -1)


def _before(x: Float[Array, "P T ..."], ends: Int[Array, " P"]) -> Bool[Array, "P T"]:
    """Which places of each piece stand before its end."""
    return jnp.arange(x.shape[1], dtype=jnp.int32)[None, :] < ends[:, None]


def _halved(sizes: Int[Array, " P"], times: int) -> Int[Array, " P"]:
    """`halved`, traced."""
    return (sizes + (2**times - 1)) // 2**times
