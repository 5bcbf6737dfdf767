"""Image preprocessing of InternVL3, equal to HF ``GotOcr2ImageProcessorPil`` as ``InternVLProcessor`` calls it.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from models.hub.fields import UnsupportedConfigError
from models.media.images import (
    PatchConfig,
    check_whole_patches,
    preprocessor_fields,
    raster_patches,
    resized,
    take_normalisation,
    take_square,
    to_rgb,
)

MOST_TILES = 1024
"""Of an image, at most: a wrong number must not fill the memory."""


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

        ``crop_to_patches`` has no effect: the processor of InternVL cuts into tiles whatever it says.

        Args:
            mapping: the file.
            patch_size: of the vision tower; the file does not say it.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named.
        """
        fields = preprocessor_fields(mapping, "GotOcr2ImageProcessor")
        fields.expect("do_convert_rgb", True)
        fields.expect("default_to_square", True)
        for switch in ("do_center_crop", "do_pad"):
            fields.expect(switch, False)
        fields.ignore("crop_to_patches", "input_data_format", "model_valid_processing_keys", "video_processor_type")
        config = cls(
            patch_size=patch_size,
            **take_normalisation(fields, cls),
            tile=take_square(fields, "size", cls.tile),
            least=fields.size("min_patches", cls.least, most=MOST_TILES),
            most=fields.size("max_patches", cls.most, most=MOST_TILES),
        )
        fields.close()
        if config.least > config.most:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: min_patches is {config.least} and max_patches {config.most}; expected at "
                "most as many"
            )
        check_whole_patches(config.tile, patch_size)
        return config


def canvas(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """Columns and rows of tiles whose shape is nearest to an image's; of equally near ones the most that fit it.

    More tiles fit as long as the image has more than half their pixels.
    """
    counts = range(1, config.most + 1)
    grids = [(columns, rows) for columns in counts for rows in counts if config.least <= columns * rows <= config.most]
    best = (1, 1)
    nearest = float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        fits = width * height > 0.5 * config.tile**2 * columns * rows
        if apart < nearest or (apart == nearest and fits):
            best = (columns, rows)
            nearest = apart
    return best


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> Float32[np.ndarray, "n P C"]:
    """Resize to whole tiles, cut these out, add the whole image as one more if there are several, and normalise.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Returns:
        Patches of each tile in raster order, tiles row by row, the whole image last.

    Raises:
        EmptyImageError, ImageFormatError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    side = config.tile
    columns, rows = canvas(*rgb.size, config)
    whole = resized(rgb, columns * side, rows * side)
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    tiles = [whole.crop((left, top, left + side, top + side)) for left, top in corners]
    if len(tiles) > 1:
        tiles.append(resized(rgb, side, side))
    return np.stack([raster_patches(tile, config).patches for tile in tiles])
