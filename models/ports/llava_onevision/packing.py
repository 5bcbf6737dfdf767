"""Which features of its tiles an image's tokens are, and between which they lie (HF ``pack_image_features``).

All is decided on the host: what the device does is the same for images of every shape.
"""

import math

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int

from models.blocks.vit import Taps
from models.media.images import AspectRatioError

NEWLINE = 0
"""The place of the learned end of a row in the table; behind it the tiles' features follow, tile by tile in raster."""

LARGER = 1.1
"""The side of the stitched tiles over what it may be, beyond which they are shrunk."""

_BUCKET = 512
"""What comes out is padded to a multiple of so many tokens."""


@flax.struct.dataclass
class Packing:
    """The tokens of an image or of a frame, each between K features. Packings may be stacked, for vmap.

    Attributes:
        tokens: how many of the R rows are tokens, i32 scalar; the others' weights are zero.
        tiles: how many tiles they are of, i32 scalar.
        taps: rows of the table.
        weights: of each.
    """

    tokens: Int[Array | np.ndarray, "*B"]
    tiles: Int[Array | np.ndarray, "*B"]
    taps: Int[Array | np.ndarray, "*B R K"]
    weights: Float[Array | np.ndarray, "*B R K"]


def packed_tiles(width: int, height: int, rows: int, columns: int, side: int, most: int) -> Packing:
    """An image of several tiles: the whole of it first, then the tiles stitched, with an end behind each of its rows.

    What shows padding alone is left out, and what is then more than ``most`` tiles is shrunk to that.

    Args:
        width, height: of the image, in pixels.
        rows, columns: of tiles; with the whole image before them there is one more.
        side: features along a side of a tile.
        most: see `models.ports.llava_onevision.config.Layout`.

    Raises:
        AspectRatioError: nothing is left along a side that is shrunk.
    """
    tile = side**2
    stitched = np.arange(tile, (rows * columns + 1) * tile).reshape(rows, columns, side, side).swapaxes(1, 2)
    shown = _unpadded(stitched.reshape(rows * side, columns * side) + 1, width, height)
    down, across = shown.shape
    ratio = math.sqrt(down * across / (most * tile))
    if ratio > LARGER:
        size = (int(down // ratio), int(across // ratio))
        if not all(size):
            raise AspectRatioError(
                f"the image is {width} x {height} pixels, of which {across} x {down} features would be shrunk to "
                f"{size[1]} x {size[0]}; cut it up"
            )
        grid = _between(shown, bilinear(down, size[0]), bilinear(across, size[1]))
    else:
        grid = _between(shown, _each(down), _each(across))
    taps, weights = (np.pad(part, ((0, 0), (0, 1), (0, 0))) for part in grid)  # taps of 0 are the end of a row
    weights[:, -1, 0] = 1
    return _packing(rows * columns + 1, (_whole(side), (taps, weights)))


def packed_square(side: int) -> Packing:
    """An image of one tile: its features in raster order, and an end behind them all."""
    return _packing(1, (_whole(side), _END))


def packed_frame(side: int, *, last: bool) -> Packing:
    """A frame of a video, half as long and wide, rounded up (HF ``apply_pooling``); an end behind the ``last`` one."""
    halved = bilinear(side, -(-side // 2))
    features = np.arange(1, side**2 + 1).reshape(side, side)
    return _packing(1, (_between(features, halved, halved), *([_END] if last else [])))


def bilinear(count: int, size: int) -> Taps:
    """Where ``size`` points lie between ``count`` features, as torch interpolates without aligned corners, in f32.

    It rounds the step, and each place once, for processors multiply and add in one instruction.
    """
    step = np.float64(np.float32(count) / np.float32(size))
    at = np.maximum(step * (np.arange(size) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(at.astype(np.int64), count - 1)
    beyond = np.minimum(at - first.astype(np.float32), np.float32(1))
    return np.stack([first, np.minimum(first + 1, count - 1)], axis=1), np.stack([1 - beyond, beyond], axis=1)


_END: Taps = (np.full((1, 1, 4), NEWLINE), np.array([[[1, 0, 0, 0]]], np.float32))
"""The learned end of a row."""


def _each(count: int) -> Taps:
    """Every feature as it is."""
    index = np.arange(count)
    return np.stack([index, index], axis=1), np.tile(np.array([1, 0], np.float32), (count, 1))


def _between(features: np.ndarray, rows: Taps, columns: Taps) -> Taps:
    """Points between the features of a grid [h, w, 4], and their weights."""
    row, down = rows
    column, across = columns
    taps = features[row[:, None, :, None], column[None, :, None, :]]
    weights = down[:, None, :, None] * across[None, :, None, :]
    return taps.reshape(*taps.shape[:2], 4), weights.reshape(*taps.shape[:2], 4)


def _whole(side: int) -> Taps:
    """The features of the first tile in raster order."""
    return _between(np.arange(1, side**2 + 1)[None], _each(1), _each(side**2))


def _unpadded(stitched: np.ndarray, width: int, height: int) -> np.ndarray:
    """The rows and columns of features that show something of the image (HF ``unpad_image``)."""
    rows, columns = stitched.shape
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return stitched[padding : rows - padding]
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return stitched[:, padding : columns - padding]


def _packing(tiles: int, parts: tuple[Taps, ...]) -> Packing:
    """Parts one behind the other, padded to a bucket."""
    taps = np.concatenate([part[0].reshape(-1, 4) for part in parts])
    weights = np.concatenate([part[1].reshape(-1, 4) for part in parts])
    padding = ((0, -len(taps) % _BUCKET), (0, 0))
    return Packing(
        tokens=np.asarray(len(taps), np.int32),
        tiles=np.asarray(tiles, np.int32),
        taps=np.pad(taps, padding).astype(np.int32),
        weights=np.pad(weights, padding).astype(np.float32),
    )
