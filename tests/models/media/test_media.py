import numpy as np
import pytest
from PIL import Image

from models.hub.fields import UnknownConfigFieldError, UnsupportedConfigError
from models.media.images import AspectRatioError, EmptyImageError, ImageError, ImageFormatError, to_rgb
from models.ports.qwen2_5_vl.images import ImageConfig, preprocess_image, smart_resize

HUB = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2_5_VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def test_reads_the_hub_spelling():
    assert ImageConfig.from_hf(HUB) == ImageConfig(max_pixels=12845056)


def test_reads_the_size_spelling_and_lets_pixels_override_it():
    config = ImageConfig.from_hf(
        {"size": {"shortest_edge": 784, "longest_edge": 7840}, "crop_size": None, "do_resize": True}
    )
    assert (config.min_pixels, config.max_pixels) == (784, 7840)
    assert (
        ImageConfig.from_hf({"size": {"shortest_edge": 784, "longest_edge": 7840}, "max_pixels": 1568}).max_pixels
        == 1568
    )


@pytest.mark.parametrize("field, value", [("do_sharpen", True), ("size", {"height": 3})])
def test_unknown_fields_are_named(field, value):
    with pytest.raises(UnknownConfigFieldError, match="do_sharpen|height"):
        ImageConfig.from_hf({**HUB, field: value})


@pytest.mark.parametrize(
    "field, value",
    [
        ("do_resize", False),
        ("do_normalize", False),
        ("do_convert_rgb", False),
        ("do_center_crop", True),
        ("resample", 2),
        ("image_processor_type", "CLIPImageProcessor"),
        ("image_mean", [0.5]),
        ("patch_size", "14"),
        ("merge_size", True),
    ],
)
def test_other_preprocessing_is_refused_by_name(field, value):
    with pytest.raises(UnsupportedConfigError, match=field):
        ImageConfig.from_hf({**HUB, field: value})


@pytest.mark.parametrize(
    "given",
    [
        {"min_pixels": 12845057},
        {"min_pixels": 4000, "max_pixels": 3999},
        {"min_pixels": None, "max_pixels": 3135},  # below the default of what is left out
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 7840, "longest_edge": 784}},
        {"min_pixels": None, "max_pixels": None, "size": {"min_pixels": 7840, "max_pixels": 784}},
        {"max_pixels": None, "size": {"longest_edge": 1000}},
    ],
)
def test_bounds_the_wrong_way_round_are_refused(given):
    with pytest.raises(UnsupportedConfigError, match="min_pixels .* is .* and max_pixels .* is"):
        ImageConfig.from_hf({**HUB, **given})


def test_bounds_are_checked_wherever_they_are_given():
    for bounds in ({"min_pixels": 2, "max_pixels": 1}, {"min_pixels": 0}, {"max_pixels": -1}):
        with pytest.raises(UnsupportedConfigError, match="expected at least 1, and max_pixels no less than min_pixels"):
            ImageConfig(**bounds)
    assert ImageConfig(min_pixels=3136, max_pixels=3136).max_pixels == 3136


def test_patches_come_in_merge_blocks_with_the_frame_repeated():
    config = ImageConfig(
        min_pixels=1, patch_size=2, merge_size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rescale=1.0
    )
    # 2 x 3 merged tokens, each 2 x 2 patches of 2 x 2 pixels
    height = 8
    width = 12
    image = np.arange(height * width * 3, dtype=np.uint16).astype(np.uint8).reshape(height, width, 3)
    given = preprocess_image(image, config)
    assert given.grid == (1, 4, 6) and given.patches.shape == (24, 3 * 2 * 2 * 2)
    patches = given.patches.reshape(2, 3, 2, 2, 3, 2, 2, 2)  # token, patch in it, channel, frame, pixel
    for row, column, y, x in np.ndindex(4, 6, 2, 2):
        pixel = patches[row // 2, column // 2, row % 2, column % 2, :, :, y, x]
        np.testing.assert_array_equal(pixel, np.repeat(image[row * 2 + y, column * 2 + x][:, None], 2, 1))


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (29, 500), (2000, 1500), (200, 1), (1, 200), (4000, 4000)])
def test_resize_keeps_to_its_bounds(size):
    config = ImageConfig()
    height, width = smart_resize(*size, config)
    assert height % 28 == width % 28 == 0
    assert config.min_pixels <= height * width <= config.max_pixels


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("L", (4, 4), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), Image.new("RGB", (5, 0)), np.zeros((0, 5, 3), np.uint8)])
def test_zero_size_is_refused(image):
    with pytest.raises(EmptyImageError, match="expected at least"):
        preprocess_image(image, ImageConfig())


@pytest.mark.parametrize(
    "array", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageFormatError, match=r"expected uint8\[H, W, 3\]"):
        preprocess_image(array, ImageConfig())


def test_thin_images_are_refused():
    preprocess_image(Image.new("RGB", (200, 1)), ImageConfig())
    with pytest.raises(AspectRatioError, match="200"):
        preprocess_image(Image.new("RGB", (201, 1)), ImageConfig())


def test_every_refusal_is_a_value_error():
    assert all(issubclass(error, ImageError) for error in (EmptyImageError, ImageFormatError, AspectRatioError))
    assert issubclass(ImageError, ValueError)
