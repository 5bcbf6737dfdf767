"""Images of InternVL3, as ``InternVLProcessor`` calls HF ``GotOcr2ImageProcessorPil``; see `models.media.resized`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import UnsupportedConfigError
from models.media.images import (
    ImagePatches,
    PatchConfig,
    preprocessor_fields,
    raster_patches,
    resized,
    take_normalisation,
    take_square,
    to_rgb,
)

MOST = 1024
"""Tiles of an image, at most: a wrong number must not fill the memory."""


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become tiles.

    Attributes:
        tile: pixels along a side of a tile.
        least, most: tiles of an image, without the small picture of it all.
    """

    tile: int = 384
    least: int = 1
    most: int = 12

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        The file does not say ``patch_size``, of the vision tower. ``crop_to_patches`` in it has no effect: the
        processor of InternVL cuts images into tiles whatever it is.

        Raises:
            ConfigError: a field is not known, or its value asks for other preprocessing; it is named.
        """
        fields = preprocessor_fields(mapping, "GotOcr2ImageProcessor")
        for switch, on in {"do_convert_rgb": True, "default_to_square": True, "do_center_crop": False}.items():
            fields.expect(switch, on)
        fields.expect("do_pad", False)
        fields.ignore("crop_to_patches", "input_data_format", "model_valid_processing_keys", "video_processor_type")
        pixels = take_normalisation(fields, cls)
        least = fields.size("min_patches", cls.least, most=MOST)
        most = fields.size("max_patches", cls.most, most=MOST)
        config = cls(patch_size, **pixels, tile=take_square(fields, "size", cls.tile), least=least, most=most)
        fields.close()
        if least > most:
            raise UnsupportedConfigError(
                f"{fields.section}: min_patches is {least}; expected at most max_patches, {most}"
            )
        return config


def canvas(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """Columns and rows of tiles whose shape is nearest to an image's; of equally near ones the most that it fills.

    It fills tiles of less than twice its pixels.
    """
    counts = range(1, config.most + 1)
    grids = [(columns, rows) for columns in counts for rows in counts if config.least <= columns * rows <= config.most]
    best = (1, 1)
    nearest = float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        filled = width * height > 0.5 * config.tile**2 * columns * rows
        if apart < nearest or (apart == nearest and filled):
            best = (columns, rows)
            nearest = apart
    return best


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Resize to whole tiles, cut these out, add the whole image as one more if there are several, and normalise.

    Returns:
        Patches in raster order within a tile, tiles row by row, the whole image last; the grid has tiles for frames.

    Raises:
        EmptyImageError, ImageFormatError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    side = config.tile
    columns, rows = canvas(*rgb.size, config)
    whole = resized(rgb, columns * side, rows * side)
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    tiles = [whole.crop((left, top, left + side, top + side)) for left, top in corners]
    tiles += [resized(rgb, side, side)] if len(tiles) > 1 else []
    cut = [raster_patches(tile, config) for tile in tiles]
    return ImagePatches(np.concatenate([tile.patches for tile in cut]), (len(cut), *cut[0].grid[1:]))
