"""Image preprocessing of kamera-smol-vl: a page is cut into the pictures of its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.hub.fields import Fields
from models.media.images import ImagePatches, to_rgb
from models.media.typeset import LINE
from models.ports.smol_vl.boxes import boxes


@dataclass(frozen=True)
class ImageConfig:
    """How pages are cut.

    Attributes:
        line: rows of pixels of a line.
    """

    line: int = LINE

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], patch_size: int = LINE) -> "ImageConfig":
        """The configuration in a ``preprocessor_config.json``.

        Raises:
            ConfigError: a field is unknown or missing, or the lines have another height, named.
        """
        fields = Fields("preprocessor_config.json", mapping)
        fields.expect("image_processor_type", "KameraPageProcessor")
        fields.expect("line", patch_size)
        fields.close()
        return cls(patch_size)


def preprocess_image(image: Image.Image | np.ndarray, config: ImageConfig) -> ImagePatches:
    """The pictures of a page's tokens, in reading order.

    Raises:
        PageFormatError: the image is not made of lines, or blank.
    """
    found = boxes(np.asarray(to_rgb(image)))
    return ImagePatches(found, (1, 1, len(found)))
