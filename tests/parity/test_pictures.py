"""What transformers' `load_image` makes of files and images; it drops transparency, which here lies over white."""

import numpy as np
import pytest
from PIL import ExifTags, Image
from transformers.image_utils import load_image

from models.media.pictures import open_item, to_rgb
from tests.pictures import picture


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_files_are_read_as_load_image_does(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"image.{kind.lower()}"
    picture(19, 11).save(path, kind, exif=exif)
    np.testing.assert_array_equal(open_item(path), load_image(str(path)))
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image), load_image(str(path)))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_images_are_read_as_load_image_does(mode, orientation):
    image = picture(19, 11).convert("L" if mode in ("I", "F", "I;16", "1") else "RGB")
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    np.testing.assert_array_equal(to_rgb(image), load_image(image))
