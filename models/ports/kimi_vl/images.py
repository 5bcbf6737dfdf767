"""Image preprocessing of Kimi-VL, as its hub repository publishes it (``KimiVLImageProcessor``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import UnsupportedConfigError
from models.media.images import (
    ImagePatches,
    PatchConfig,
    PatchLimitError,
    preprocessor_fields,
    raster_patches,
    resized,
    take_normalisation,
    to_rgb,
)

MAX_SIDE = 512
"""Patches along a side have to stay below this: MoonViT tabulates that many rotary positions."""


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become patches.

    Attributes:
        in_token_limit: an image of more patches than this is shrunk to about as many.
        merge: rows and columns of patches in a merged token.
    """

    in_token_limit: int = 4096
    merge: tuple[int, int] = (2, 2)

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has the published class's default.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named. ``pad_input`` has to be there
                and true: without it images are cropped to patches that do not fill merged tokens.
        """
        fields = preprocessor_fields(mapping, "KimiVLImageProcessor")
        if not fields.take("pad_input", bool, False):
            raise UnsupportedConfigError("preprocessor_config.json: pad_input is false or absent; expected true")
        fields.expect("do_convert_rgb", True)
        fields.expect("rescale_factor", 1 / 255)
        fields.ignore("auto_map", "num_pooled_tokens")
        merge = fields.sizes("merge_kernel_size", [2, 2])
        if len(merge) != 2:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: merge_kernel_size is {list(merge)!r:.200}; expected rows and columns, at "
                "least 1"
            )
        config = cls(
            patch_size=fields.size("patch_size", patch_size),
            **take_normalisation(fields, cls),
            in_token_limit=fields.size("in_token_limit", cls.in_token_limit),
            merge=merge,
        )
        fields.close()
        return config


def shrunk_size(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """The size an image is resized to: unchanged, unless it has too many patches."""
    patches = (height // config.patch_size) * (width // config.patch_size)
    if patches <= config.in_token_limit:
        return height, width
    scale = math.sqrt(config.in_token_limit / patches)
    return max(1, int(height * scale)), max(1, int(width * scale))


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Shrink, pad to whole merged tokens (black, right and bottom, before the normalisation), normalise and cut.

    Transparency lies over white, as in transformers; the published code drops it. For RGB images the two agree.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Returns:
        Patches [P, 3 * patch²] in raster order.

    Raises:
        EmptyImageError, ImageFormatError, PatchLimitError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    height, width = shrunk_size(rgb.height, rgb.width, config)
    patch = config.patch_size
    (merge_rows, merge_columns) = config.merge
    rows = math.ceil(height / (patch * merge_rows)) * merge_rows
    columns = math.ceil(width / (patch * merge_columns)) * merge_columns
    if max(rows, columns) >= MAX_SIDE:
        raise PatchLimitError(
            f"the image is {rgb.width} x {rgb.height} pixels, {columns} x {rows} patches; expected fewer than "
            f"{MAX_SIDE} along a side: cut it up"
        )
    canvas = Image.new("RGB", (columns * patch, rows * patch))
    canvas.paste(resized(rgb, width, height))
    return raster_patches(canvas, config)
