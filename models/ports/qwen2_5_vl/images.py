"""Image preprocessing of Qwen2-VL and its successors, equal to HF ``Qwen2VLImageProcessorPil`` to the bit.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import Fields, UnsupportedConfigError
from models.media.images import (
    EmptyImageError,
    ImagePatches,
    PatchConfig,
    check_aspect,
    normalise,
    preprocessor_fields,
    resized,
    take_normalisation,
    to_rgb,
)


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become patches.

    Attributes:
        min_pixels, max_pixels: bounds on the resized image's area.
        temporal_patch_size: frames a patch spans; a still image is repeated.
        merge_size: patches along a side of a merged token.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: min_pixels (shortest_edge) is {self.min_pixels} and max_pixels "
                f"(longest_edge) is {self.max_pixels}; expected at least 1, and max_pixels no less than min_pixels; a "
                f"bound that is left out is {ImageConfig.min_pixels} or {ImageConfig.max_pixels}"
            )

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named.
        """
        fields = preprocessor_fields(mapping, "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
        fields.expect("do_convert_rgb", True)
        for switch in ("do_center_crop", "do_pad"):
            fields.expect(switch, False)
        fields.ignore("default_to_square")

        bounds = Fields("preprocessor_config.json: size", fields.take("size", dict, {}))
        least = bounds.size("shortest_edge", bounds.size("min_pixels", cls.min_pixels))
        most = bounds.size("longest_edge", bounds.size("max_pixels", cls.max_pixels))
        bounds.close()

        config = cls(
            min_pixels=fields.size("min_pixels", least),
            max_pixels=fields.size("max_pixels", most),
            patch_size=fields.size("patch_size", patch_size),
            temporal_patch_size=fields.size("temporal_patch_size", cls.temporal_patch_size),
            merge_size=fields.size("merge_size", cls.merge_size),
            **take_normalisation(fields, cls),
        )
        fields.close()
        return config


def smart_resize(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """The size an image is resized to: whole merged tokens, an area within bounds, about the same shape.

    Raises:
        EmptyImageError: a side is zero.
        AspectRatioError: one side is more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise EmptyImageError(f"the image is {width} x {height} pixels; expected at least 1 x 1")
    check_aspect(width, height)
    factor = config.patch_size * config.merge_size
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Resize, normalise and cut an image into patches.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Returns:
        Patches [P, 3 * frames * patch²], all patches of a merged token together.

    Raises:
        EmptyImageError, ImageFormatError, AspectRatioError: the image cannot be encoded; the message says why.
    """
    return cut_patches([fitted(to_rgb(image), config)] * config.temporal_patch_size, config)


def fitted(rgb: Image.Image, config: ImageConfig) -> Image.Image:
    """An RGB image or frame, resized to whole merged tokens.

    Raises:
        EmptyImageError, AspectRatioError: it cannot be resized.
    """
    height, width = smart_resize(rgb.height, rgb.width, config)
    return resized(rgb, width, height)


def cut_patches(frames: Sequence[Image.Image], config: ImageConfig) -> ImagePatches:
    """Fitted frames of one temporal patch, normalised and cut, all patches of a merged token together."""
    pixels = np.stack([normalise(frame, config) for frame in frames])
    patch = config.patch_size
    merge = config.merge_size
    rows = frames[0].height // patch
    columns = frames[0].width // patch
    blocks = pixels.reshape(len(frames), rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = blocks.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return ImagePatches(blocks.reshape(rows * columns, -1), (1, rows, columns))
