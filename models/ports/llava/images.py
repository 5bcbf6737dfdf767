"""Image preprocessing of LLaVA-1.5, equal to HF ``CLIPImageProcessorPil`` and ``LlavaImageProcessorPil`` to the bit.

Save where the installed Pillow resizes the height first; see `models.media.resized`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import Fields
from models.media.images import (
    ImagePatches,
    PatchConfig,
    check_aspect,
    check_whole_patches,
    padded_and_resized,
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
        shortest_edge: pixels that the shorter side is resized to.
        crop_size: pixels along a side of the square cut from the middle.
        pad: whether images are padded to a square first.
    """

    shortest_edge: int = 224
    crop_size: int = 224
    pad: bool = False

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = 14) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``; what it leaves out has transformers' default.

        Args:
            mapping: the file.
            patch_size: of the vision tower; the file does not say it.

        Raises:
            UnknownConfigFieldError: a field this does not know, named.
            UnsupportedConfigError: a value that asks for other preprocessing, named.
        """
        clip = str(mapping.get("image_processor_type")).startswith("CLIP")
        fields = preprocessor_fields(mapping, "CLIPImageProcessor", "LlavaImageProcessor")
        for switch in ("do_convert_rgb", "do_center_crop"):
            fields.expect(switch, True)
        fields.expect("default_to_square", False)
        fields.ignore("feature_extractor_type")
        if clip:
            # CLIP pads images of a batch to the same size, after normalisation: another thing of the same name.
            fields.expect("do_pad", False)
        if isinstance(fields.rest.get("size"), Mapping):
            sides = Fields("preprocessor_config.json: size", fields.take("size", dict))
            shortest_edge = sides.size("shortest_edge", cls.shortest_edge)
            sides.close()
        else:
            shortest_edge = fields.size("size", cls.shortest_edge)
        pad = fields.take("do_pad", bool, False)
        config = cls(
            patch_size=patch_size,
            **take_normalisation(fields, cls, colour=pad),
            shortest_edge=shortest_edge,
            crop_size=take_square(fields, "crop_size", cls.crop_size),
            pad=pad,
        )
        fields.close()
        check_whole_patches(config.crop_size, patch_size)
        return config


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """Pad to a square if the checkpoint does, resize the shorter side, cut out the middle, normalise and cut.

    Args:
        image: a PIL image of any mode, or uint8[H, W, 3].
        config: the checkpoint's preprocessing.

    Returns:
        Patches [P, 3 * patch²] in raster order.

    Raises:
        EmptyImageError, ImageFormatError, AspectRatioError: the image cannot be encoded; the message says why.
    """
    rgb = to_rgb(image)
    check_aspect(*rgb.size)
    if config.pad:
        rgb = padded_and_resized(rgb, config.shortest_edge, config.mean)
    else:
        # HF truncates size * long / short; for the shorter side itself that is exact.
        width, height = (int(config.shortest_edge * side / min(rgb.size)) for side in rgb.size)
        rgb = resized(rgb, width, height)
    left, top = ((side - config.crop_size) // 2 for side in rgb.size)
    # Black where the crop reaches past the image.
    return raster_patches(rgb.crop((left, top, left + config.crop_size, top + config.crop_size)), config)
