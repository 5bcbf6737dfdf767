import json

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from models.ports.deepseek_vl import images as deepseek_vl
from models.ports.llava import images as llava
from tests.pictures import MODES, picture, width_first

pytestmark = pytest.mark.parity

HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CASES = {
    "deepseek": (deepseek_vl, 16, DeepseekVLImageProcessorPil, {"do_convert_rgb": True}),
    "deepseek-hub": (deepseek_vl, 16, DeepseekVLImageProcessorPil, {"do_convert_rgb": True, **HALVES}),
    "deepseek-small": (
        deepseek_vl,
        4,
        DeepseekVLImageProcessorPil,
        {"do_convert_rgb": True, "size": 36, "min_size": 3, "image_mean": [0.9, 0.2, 0.7], "rescale_factor": 1 / 128},
    ),
    "clip": (llava, 14, CLIPImageProcessorPil, {}),
    "clip-hub": (llava, 14, CLIPImageProcessorPil, {"size": {"shortest_edge": 336}, "crop_size": 336}),
    "clip-crop": (llava, 4, CLIPImageProcessorPil, {"size": 37, "crop_size": 24}),
    "clip-beyond": (llava, 4, CLIPImageProcessorPil, {"size": 25, "crop_size": 48}),
    "llava": (llava, 14, LlavaImageProcessorPil, HALVES),
    "llava-pad": (llava, 7, LlavaImageProcessorPil, {"do_pad": True, "size": 56, "crop_size": 56}),
}
SIZES = [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (5, 640), (641, 480), (200, 1)]


def assert_equal(case, image):
    """Equal to transformers where Pillow resizes width first, and to transformers as it is where the order is that."""
    port, patch, processor, settings = CASES[case]
    processor = processor(**settings)
    with width_first() as unlike:
        pixels = processor(images=[image], return_tensors="np")["pixel_values"][0]
    if not unlike:
        assert np.array_equal(processor(images=[image], return_tensors="np")["pixel_values"][0], pixels)
    config = port.ImageConfig.from_hf(json.loads(processor.to_json_string()), patch_size=patch)
    given = port.preprocess_image(image, config)
    _, rows, columns = given.grid
    assert given.grid[0] == 1 and pixels.shape == (3, rows * patch, columns * patch)
    assert given.patches.dtype == pixels.dtype == np.float32
    patches = given.patches.reshape(rows, columns, 3, patch, patch)
    np.testing.assert_array_equal(patches.transpose(2, 0, 3, 1, 4).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_hf_to_the_bit(case, size):
    assert_equal(case, picture(*size))


@pytest.mark.parametrize("case", ["deepseek", "clip", "llava-pad"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_hf_to_the_bit(case, mode):
    assert_equal(case, picture(97, 61, mode))


@pytest.mark.parametrize("case", ["deepseek", "clip", "llava-pad"])
def test_palette_with_transparency_equals_hf_to_the_bit(case):
    image = picture(97, 61, "P")
    image.info["transparency"] = 3
    assert_equal(case, image)


@pytest.mark.parametrize("case", ["deepseek", "clip", "llava-pad"])
def test_array_equals_hf_to_the_bit(case):
    assert_equal(case, np.asarray(picture(97, 61)))


def test_a_very_thin_image_equals_hf_to_the_bit():
    assert_equal("deepseek", picture(3000, 1))
