"""Image preprocessing of DeepSeek-VL, equal to HF ``DeepseekVLImageProcessorPil`` to the bit.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import UnsupportedConfigError
from models.media.images import (
    ImagePatches,
    PatchConfig,
    check_whole_patches,
    pad_to_square,
    preprocessor_fields,
    raster_patches,
    resized,
    take_normalisation,
    take_square,
    to_rgb,
)


@dataclass(frozen=True)
class ImageConfig(PatchConfig):
    """How images become patches.

    Attributes:
        size: pixels along a side of the square that every image becomes.
        min_size: pixels that neither side of the image in it falls below.
    """

    patch_size: int = 16
    size: int = 384
    min_size: int = 14

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.size:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: min_size is {self.min_size}; expected at least 1 and at most size, "
                f"{self.size}"
            )

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 16) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Args:
            mapping: the file.
            patch_size: of the vision tower; the file does not say it.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named.
        """
        fields = preprocessor_fields(mapping, "DeepseekVLImageProcessor")
        fields.expect("do_pad", True)
        fields.expect("do_center_crop", False)
        fields.expect("default_to_square", True)
        # Unset in transformers, where images of other modes than RGB then fail; here they are converted.
        fields.expect("do_convert_rgb", True, False)
        # The colour is always computed from the mean, and nothing is cropped.
        fields.ignore("background_color", "crop_size")
        config = cls(
            patch_size=patch_size,
            **take_normalisation(fields, cls, colour=True),
            size=take_square(fields, "size", cls.size),
            min_size=fields.size("min_size", cls.min_size),
        )
        fields.close()
        check_whole_patches(config.size, patch_size)
        return config


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Resize the longer side, pad to a square over the mean colour, normalise and cut.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Returns:
        Patches [P, 3 * patch²] in raster order.

    Raises:
        EmptyImageError, ImageFormatError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    scale = config.size / max(rgb.size)
    width, height = (max(round(side * scale), config.min_size) for side in rgb.size)
    return raster_patches(pad_to_square(resized(rgb, width, height), config.mean), config)
