import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.hub.fields import ConfigError, UnknownConfigFieldError, UnsupportedConfigError
from models.media.images import AspectRatioError, EmptyImageError, ImageFormatError, PatchLimitError, resized
from models.ports.deepseek_vl import images as deepseek_vl
from models.ports.internvl import images as internvl
from models.ports.kimi_vl import images as kimi_vl
from models.ports.llava import images as llava
from tests.internvl_files import PREPROCESSING as INTERNVL
from tests.pictures import MODES, picture, width_first

KIMI = {
    "auto_map": {"AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor"},
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "KimiVLImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "in_token_limit": 4096,
    "merge_kernel_size": [2, 2],
    "num_pooled_tokens": 1024,
    "pad_input": True,
    "patch_size": 14,
}
DEEPSEEK = {
    "background_color": [127, 127, 127],
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "DeepseekVLImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "processor_class": "DeepseekVLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
LLAVA = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
PORTS = {
    "kimi": (kimi_vl, KIMI),
    "deepseek": (deepseek_vl, DEEPSEEK),
    "llava": (llava, LLAVA),
    "internvl": (internvl, INTERNVL),
}


def published_kimi(image, limit, patch=14, merge=(2, 2), mean=0.5, std=0.5):
    """Moonshot's published ``KimiVLImageProcessor`` for an RGB image, stated again in numpy.

    The original (hub, image_processing_kimi_vl.py) needs torchvision, and so does the one class of transformers near
    it (``Kimi_K25ImageProcessor``), which moreover shrinks long images where this one refuses. So this is written from
    the published steps: shrink by the root of limit over patches, pad right and bottom with zeros, divide by 255,
    normalise.

    Returns:
        Patches [P, 3, patch, patch] in raster order, rows, columns.
    """
    count = (image.width // patch) * (image.height // patch)
    if count > limit:
        scale = math.sqrt(limit / count)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    right = -image.width % (patch * merge[1])
    bottom = -image.height % (patch * merge[0])
    padded = np.asarray(ImageOps.expand(image, (0, 0, right, bottom), fill=0)).astype(np.float32)
    values = (padded / np.float32(255) - np.float32(mean)) / np.float32(std)
    rows = len(values) // patch
    columns = values.shape[1] // patch
    patches = [
        values[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].transpose(2, 0, 1)
        for row in range(rows)
        for column in range(columns)
    ]
    return np.stack(patches), rows, columns


@pytest.mark.parametrize("limit", [4096, 64, 7])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (13, 640), (641, 480), (1100, 900)])
def test_kimi_equals_the_published_processor_to_the_bit(size, limit):
    image = picture(*size)
    expected, rows, columns = published_kimi(image, limit)
    given = kimi_vl.preprocess_image(image, kimi_vl.ImageConfig.from_hf({**KIMI, "in_token_limit": limit}))
    assert given.grid == (1, rows, columns) and rows % 2 == columns % 2 == 0
    np.testing.assert_array_equal(given.patches, expected.reshape(rows * columns, -1))


def test_kimi_pads_to_merged_tokens_of_any_shape():
    image = picture(97, 61)
    config = kimi_vl.ImageConfig.from_hf({**KIMI, "patch_size": 7, "merge_kernel_size": [3, 1], "image_mean": [0] * 3})
    expected, rows, columns = published_kimi(image, 4096, patch=7, merge=(3, 1), mean=0)
    given = kimi_vl.preprocess_image(image, config)
    assert given.grid == (1, rows, columns) == (1, 9, 14)
    np.testing.assert_array_equal(given.patches, expected.reshape(rows * columns, -1))


def test_kimi_shrinks_only_above_the_limit():
    config = kimi_vl.ImageConfig.from_hf(KIMI)
    assert kimi_vl.shrunk_size(64 * 14, 64 * 14, config) == (896, 896)
    assert kimi_vl.shrunk_size(65 * 14 - 1, 65 * 14 - 1, config) == (909, 909)  # floors to 64 patches
    assert kimi_vl.shrunk_size(64 * 14, 65 * 14, config) == (889, 902)  # by the root of 64 / 65


def test_kimi_refuses_more_patches_than_there_are_positions():
    config = kimi_vl.ImageConfig.from_hf(KIMI)
    assert kimi_vl.preprocess_image(picture(510 * 14, 1), config).grid == (1, 2, 510)
    for width, height in [(510 * 14 + 1, 1), (1, 512 * 14), (400_000, 30)]:
        with pytest.raises(PatchLimitError, match="fewer than 512"):
            kimi_vl.preprocess_image(Image.new("RGB", (width, height)), config)
    tiny = kimi_vl.ImageConfig.from_hf({**KIMI, "in_token_limit": 1})
    assert kimi_vl.shrunk_size(14, 14 * 400, tiny) == (1, 280)  # int() of the published code would say 0
    assert kimi_vl.preprocess_image(picture(14 * 400, 14), tiny).grid == (1, 2, 20)


def test_kimi_lays_transparency_on_white():
    clear = kimi_vl.preprocess_image(Image.new("RGBA", (28, 28), (9, 9, 9, 0)), kimi_vl.ImageConfig.from_hf(KIMI))
    np.testing.assert_array_equal(clear.patches, np.ones((4, 588), np.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PORTS)
def test_every_mode_is_encoded(name, mode):
    port, mapping = PORTS[name]
    given = port.preprocess_image(picture(97, 61, mode), port.ImageConfig.from_hf(mapping))
    assert given.patches.shape == (math.prod(given.grid), 3 * port.ImageConfig.from_hf(mapping).patch_size ** 2)
    assert np.isfinite(given.patches).all()


def test_hub_files_are_read():
    assert kimi_vl.ImageConfig.from_hf(KIMI) == kimi_vl.ImageConfig(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert deepseek_vl.ImageConfig.from_hf(DEEPSEEK) == deepseek_vl.ImageConfig(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert llava.ImageConfig.from_hf(LLAVA) == llava.ImageConfig(shortest_edge=336, crop_size=336)


def test_what_older_files_say_beside_is_let_be():
    first = {
        field: value for field, value in KIMI.items() if field not in ("image_processor_type", "merge_kernel_size")
    }
    assert kimi_vl.ImageConfig.from_hf(first) == kimi_vl.ImageConfig.from_hf(KIMI)
    beside = {"crop_size": {"height": 8, "width": 8}, "do_center_crop": None, "background_color": [0, 0, 0]}
    assert deepseek_vl.ImageConfig.from_hf({**DEEPSEEK, **beside}) == deepseek_vl.ImageConfig.from_hf(DEEPSEEK)
    beside = {"feature_extractor_type": "CLIPFeatureExtractor", "_valid_processor_keys": ["images"], "do_pad": False}
    assert llava.ImageConfig.from_hf({**LLAVA, **beside}) == llava.ImageConfig.from_hf(LLAVA)


def test_sizes_may_be_numbers():
    assert deepseek_vl.ImageConfig.from_hf({**DEEPSEEK, "size": 384}) == deepseek_vl.ImageConfig.from_hf(DEEPSEEK)
    assert llava.ImageConfig.from_hf({**LLAVA, "size": 336, "crop_size": 336}) == llava.ImageConfig.from_hf(LLAVA)


@pytest.mark.parametrize("name", PORTS)
def test_unknown_fields_are_named(name):
    port, mapping = PORTS[name]
    with pytest.raises(UnknownConfigFieldError, match="do_sharpen"):
        port.ImageConfig.from_hf({**mapping, "do_sharpen": True})


@pytest.mark.parametrize(
    "name, field, value",
    [
        *[
            (name, field, value)
            for name in PORTS
            for field, value in [
                ("do_resize", False),
                ("do_normalize", False),
                ("do_rescale", False),
                ("resample", 2),
                ("image_processor_type", "Kimi_K25ImageProcessor"),
                ("image_mean", [0.5]),
                ("image_std", ["a", "b", "c"]),
            ]
        ],
        ("kimi", "pad_input", False),
        ("kimi", "merge_kernel_size", [2]),
        ("kimi", "merge_kernel_size", [2, 0]),
        ("kimi", "in_token_limit", 0),
        ("kimi", "rescale_factor", 1.0),
        ("deepseek", "do_pad", False),
        ("deepseek", "do_center_crop", True),
        ("deepseek", "min_size", 385),
        ("deepseek", "size", {"height": 384, "width": 400}),
        ("deepseek", "size", 390),
        ("llava", "do_pad", True),
        ("llava", "do_center_crop", False),
        ("llava", "do_convert_rgb", False),
        ("llava", "crop_size", 330),
        ("llava", "size", {"height": 336, "width": 336}),
        ("llava", "default_to_square", True),
    ],
)
def test_other_preprocessing_is_refused_by_name(name, field, value):
    port, mapping = PORTS[name]
    patch = {"size": "patch_size", "crop_size": "patch_size"}.get(field, field)
    with pytest.raises(ConfigError, match=f"{field}|{patch}"):
        port.ImageConfig.from_hf({**mapping, field: value})


def test_kimi_has_to_say_that_it_pads():
    with pytest.raises(UnsupportedConfigError, match="pad_input"):
        kimi_vl.ImageConfig.from_hf({field: value for field, value in KIMI.items() if field != "pad_input"})


@pytest.mark.parametrize("name", PORTS)
def test_what_is_no_image_is_refused(name):
    port, mapping = PORTS[name]
    config = port.ImageConfig.from_hf(mapping)
    for image in (Image.new("RGB", (0, 5)), Image.new("RGB", (5, 0)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(EmptyImageError, match="expected at least"):
            port.preprocess_image(image, config)
    with pytest.raises(ImageFormatError, match=r"expected uint8\[H, W, 3\]"):
        port.preprocess_image(np.zeros((5, 5), np.uint8), config)


@pytest.mark.parametrize("size", [(4200, 60), (60, 4200), (4100, 4000), (5000, 25)])
def test_llava_shrinks_before_it_pads_to_a_very_large_square(monkeypatch, size):
    """The oracle pads first, as transformers does: the picture is the same up to where it borders on the padding."""
    config = llava.ImageConfig.from_hf(LLAVA | {"image_processor_type": "LlavaImageProcessor", "do_pad": True})
    smooth = Image.fromarray(np.add.outer(np.arange(60), np.arange(60)).astype(np.uint8), "L").convert("RGB")
    image = smooth.resize(size)
    sizes = []
    new = Image.new
    monkeypatch.setattr(Image, "new", lambda mode, size, *more: sizes.append(size) or new(mode, size, *more))
    given = llava.preprocess_image(image, config).patches
    assert max(width * height for width, height in sizes) <= 2**24
    monkeypatch.setattr("models.media.images.MAX_SQUARE_PIXELS", 10**9)
    exact = llava.preprocess_image(image, config).patches
    levels = np.abs(given - exact).max(axis=1) * 255 * 0.26862954
    assert (levels > 3).mean() <= 0.1 and levels.mean() < 3


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (300, 60_000)])
@pytest.mark.parametrize("name", [*PORTS, "padded"])
def test_thin_images_are_resized_or_refused_within_bounds(monkeypatch, name, size):
    port, given = PORTS.get(name, (llava, LLAVA | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}))
    config = port.ImageConfig.from_hf(given)
    sizes = []
    new = Image.new
    monkeypatch.setattr(Image, "new", lambda mode, size, *more: sizes.append(size) or new(mode, size, *more))
    try:
        assert len(port.preprocess_image(Image.new("RGB", size, (9, 9, 9)), config).patches)
    except (AspectRatioError, PatchLimitError) as error:
        assert f"{size[0]} x {size[1]}" in str(error)
    assert max(width * height for width, height in sizes) <= 2**25


def test_height_goes_first_where_width_first_would_be_too_large(monkeypatch):
    image = picture(10, 400)
    wide = resized(image, 40, 20)
    monkeypatch.setattr("models.media.images.MAX_BETWEEN", 40 * 400 - 1)
    other = resized(image, 40, 20)
    assert other.size == wide.size
    assert np.abs(np.asarray(other, int) - np.asarray(wide, int)).mean() < 1


@pytest.mark.parametrize("pad", [False, True])
def test_llava_refuses_thin_images(pad):
    config = llava.ImageConfig(pad=pad)
    assert llava.preprocess_image(Image.new("RGB", (200, 1)), config).grid == (1, 16, 16)
    with pytest.raises(AspectRatioError, match="200"):
        llava.preprocess_image(Image.new("RGB", (201, 1)), config)


def test_deepseek_refuses_bounds_that_no_image_meets():
    for bounds in ({"size": 384, "min_size": 385}, {"min_size": 0}):
        with pytest.raises(UnsupportedConfigError, match="min_size is"):
            deepseek_vl.ImageConfig(**bounds)


@pytest.mark.parametrize("name", PORTS)
def test_images_are_turned_scaled_and_resized_width_first(name):
    """What every port does before its own preprocessing, seen from the outside."""
    port, mapping = PORTS[name]
    config = port.ImageConfig.from_hf({**mapping, **({"in_token_limit": 40} if name == "kimi" else {})})
    stored = picture(300, 130)
    plain = port.preprocess_image(stored.transpose(Image.Transpose.ROTATE_270), config)
    stored.getexif()[274] = 6
    np.testing.assert_array_equal(port.preprocess_image(stored, config).patches, plain.patches)
    deep = np.asarray(picture(300, 130, "L"))
    scaled = port.preprocess_image(Image.fromarray(deep.astype(np.uint16) * 257), config)
    np.testing.assert_array_equal(scaled.patches, port.preprocess_image(Image.fromarray(deep), config).patches)
    with width_first():
        np.testing.assert_array_equal(port.preprocess_image(stored, config).patches, plain.patches)


def test_deepseek_keeps_thin_images_visible():
    config = deepseek_vl.ImageConfig(patch_size=2, size=32, min_size=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    strip = deepseek_vl.preprocess_image(Image.new("RGB", (5000, 1), (255, 255, 255)), config)
    pixels = strip.patches.reshape(16, 16, 3, 2, 2).transpose(0, 3, 1, 4, 2).reshape(32, 32, 3)
    assert (pixels[14:18] == 1).all() and not pixels[:14].any() and not pixels[18:].any()


def test_patches_are_channel_row_column_in_raster_order():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    config = llava.ImageConfig(patch_size=2, shortest_edge=8, crop_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, rescale=1.0)
    given = llava.preprocess_image(image, config)
    assert given.grid == (1, 4, 4) and given.patches.shape == (16, 12)
    patches = given.patches.reshape(4, 4, 3, 2, 2)
    for row, column, y, x in np.ndindex(4, 4, 2, 2):
        np.testing.assert_array_equal(patches[row, column, :, y, x], image[row * 2 + y, column * 2 + x])
