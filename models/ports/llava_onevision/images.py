"""Images of LLaVA-OneVision, equal to HF ``LlavaOnevisionImageProcessorPil`` to the bit.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from models.hub.fields import Fields, UnsupportedConfigError, shown
from models.media.images import PatchConfig, preprocessor_fields, resized, take_normalisation, take_square

Pinpoints = tuple[tuple[int, int], ...]
"""Heights and widths in pixels; of equally good ones the first is taken."""

PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
"""Those of HF, and of the published models."""

MOST = 1024
"""Tiles of an image, at most: a wrong number must not fill the memory."""


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become tiles.

    Attributes:
        tile: pixels along a side of a tile.
        pinpoints: what the whole of the tiles may measure.
    """

    tile: int = 384
    pinpoints: Pinpoints = ()

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14, *, padded: bool = False) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Args:
            mapping: the file.
            patch_size: of the vision tower; the file does not say it.
            padded: whether images are padded with the mean colour.

        Raises:
            ConfigError: a field is not known, or its value asks for other preprocessing; it is named.
        """
        fields = preprocessor_fields(mapping, "LlavaOnevisionImageProcessor")
        for switch, on in {"do_convert_rgb": True, "default_to_square": False, "do_center_crop": False}.items():
            fields.expect(switch, on)
        # How images of a batch become one array, and of videos.
        fields.ignore("do_pad", "pad_size", "input_data_format", "video_processor_type")
        tile = take_square(fields, "size", cls.tile)
        fields.expect("crop_size", tile, {"height": tile, "width": tile})
        config = cls(
            patch_size,
            **take_normalisation(fields, cls, colour=padded),
            tile=tile,
            pinpoints=take_pinpoints(fields, tile),
        )
        fields.close()
        return config


def take_pinpoints(fields: Fields, tile: int) -> Pinpoints:
    """The field ``image_grid_pinpoints``: heights and widths of whole tiles.

    Raises:
        UnsupportedConfigError: it is something else, or one is of more tiles than `MOST`.
    """
    pairs = fields.take("image_grid_pinpoints", list, PINPOINTS)
    read = []
    for pair in pairs:
        sides = Fields(fields.section, {"image_grid_pinpoints": pair}).sizes("image_grid_pinpoints")
        if len(sides) != 2 or any(side % tile for side in sides) or sides[0] * sides[1] > MOST * tile**2:
            break
        read.append((sides[0], sides[1]))
    if not pairs or len(read) < len(pairs):
        raise UnsupportedConfigError(
            f"{fields.section}: image_grid_pinpoints is {shown(pairs)}; expected heights and widths, each a multiple "
            f"of {tile} pixels, of {MOST} tiles of {tile} x {tile} at most"
        )
    return tuple(read)


def best_fit(width: int, height: int, pinpoints: Pinpoints) -> tuple[int, int]:
    """The height and width that keep most pixels of an image, of these those that waste the fewest, else the first."""

    def rank(pinpoint: tuple[int, int]) -> tuple[int, int]:
        rows, columns = pinpoint
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, rows * columns - kept

    return min(pinpoints, key=rank)


def tiles_of(image: Image.Image, config: ImageConfig) -> tuple[list[Image.Image], int, int]:
    """The whole of an RGB image squashed to a tile, and behind it the tiles of it row by row.

    For these it is resized as large as it fits into one of the ``pinpoints``, and laid in the middle of it, over black.

    Returns:
        The pictures, and how many rows and columns of tiles there are.
    """
    side = config.tile
    rows, columns = best_fit(*image.size, config.pinpoints)
    width, height = image.size
    across = columns / width
    down = rows / height
    if across < down:
        fitted = resized(image, columns, min(math.ceil(height * across), rows))
    else:
        fitted = resized(image, min(math.ceil(width * down), columns), rows)
    canvas = Image.new("RGB", (columns, rows))
    canvas.paste(fitted, ((columns - fitted.width) // 2, (rows - fitted.height) // 2))
    corners = [(left, top) for top in range(0, rows, side) for left in range(0, columns, side)]
    tiles = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
    return [resized(image, side, side), *tiles], rows // side, columns // side
