"""Images of Idefics3 and SmolVLM2, equal to HF ``Idefics3ImageProcessorPil`` to the bit.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import Fields, UnsupportedConfigError
from models.media.images import (
    PatchConfig,
    preprocessor_fields,
    resized,
    take_normalisation,
    to_rgb,
)

LONGEST = 4096
"""Pixels of the longer side, at most (HF ``MAX_IMAGE_SIZE``)."""

MOST = 32
"""Tiles along a side, at most: a wrong number must not fill the memory."""

_LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become tiles.

    Attributes:
        longest_edge: pixels that the longer side is resized to, upwards too.
        tile: pixels along a side of a tile.
        split: whether an image is cut into tiles; it is one tile otherwise.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    longest_edge: int = 4 * 364
    tile: int = 364
    split: bool = True

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Args:
            mapping: the file.
            patch_size: of the vision tower; the file does not say it.

        Raises:
            ConfigError: a field is not known, or its value asks for other preprocessing; it is named.
        """
        fields = preprocessor_fields(mapping, "Idefics3ImageProcessor", "SmolVLMImageProcessor", resample=int(_LANCZOS))
        for switch in ("do_convert_rgb", "do_pad", "default_to_square"):
            fields.expect(switch, True)
        # Of videos, and what is returned beside the pixels.
        fields.ignore("return_row_col_info", "video_sampling", "image_seq_len", "video_processor_type")
        config = cls(
            patch_size,
            **take_normalisation(fields, cls),
            longest_edge=_longest_edge(fields, "size", cls.longest_edge),
            tile=_longest_edge(fields, "max_image_size", cls.tile),
            split=fields.take("do_image_splitting", bool, True),
        )
        fields.close()
        if min(config.longest_edge, LONGEST) > MOST * config.tile:
            raise UnsupportedConfigError(
                f"{fields.section}: size is {config.longest_edge} pixels along the longer side, and max_image_size "
                f"{config.tile}; expected {MOST} tiles along a side at most"
            )
        return config


def _longest_edge(fields: Fields, name: str, default: int) -> int:
    """A field that is an object with ``longest_edge`` alone.

    Raises:
        ConfigError: it is sized some other way, named.
    """
    edges = Fields(f"{fields.section}: {name}", fields.take(name, dict, {"longest_edge": default}))
    longest = edges.size("longest_edge")
    edges.close()
    return longest


def scaled(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """Width and height of an image whose longer side is resized; the other one becomes even."""
    ratio = width / height
    longest = config.longest_edge
    if width >= height:
        height = int(longest / ratio)
        width = longest
        height = max(height + height % 2, 1)
    else:
        width = int(longest * ratio)
        height = longest
        width = max(width + width % 2, 1)
    if max(width, height) > LONGEST:
        ratio = width / height
        if width >= height:
            return LONGEST, max(int(LONGEST / ratio), 1)
        return max(int(LONGEST * ratio), 1), LONGEST
    return width, height


def in_whole_tiles(width: int, height: int, tile: int) -> tuple[int, int]:
    """Width and height of whole tiles: the longer side rounded up, then the other one at the same shape."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return width, math.ceil(int(width / ratio) / tile) * tile
    height = math.ceil(height / tile) * tile
    return math.ceil(int(height * ratio) / tile) * tile, height


def tiles_of(image: Image.Image | np.ndarray, config: ImageConfig) -> tuple[list[Image.Image], int, int]:
    """The tiles of an image row by row and the whole of it behind them, and how many rows and columns there are.

    Returns:
        Pictures of ``tile`` x ``tile`` pixels; rows and columns are 0 where there is the whole alone.

    Raises:
        EmptyImageError, ImageFormatError: the image cannot be encoded; the message says why.
    """
    side = config.tile
    rgb = to_rgb(image)
    rgb = resized(rgb, *scaled(*rgb.size, config), _LANCZOS)
    if not config.split:
        return [resized(rgb, side, side, _LANCZOS)], 0, 0
    rgb = resized(rgb, *in_whole_tiles(*rgb.size, side), _LANCZOS)
    columns = rgb.width // side
    rows = rgb.height // side
    if columns * rows == 1:
        return [rgb], 0, 0
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    tiles = [rgb.crop((left, top, left + side, top + side)) for left, top in corners]
    return [*tiles, resized(rgb, side, side, _LANCZOS)], rows, columns
