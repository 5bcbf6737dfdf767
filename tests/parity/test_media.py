import json

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.ports.qwen2_5_vl.images import ImageConfig, preprocess_image
from tests.pictures import MODES, picture, width_first

pytestmark = pytest.mark.parity

CONFIGS = {
    "default": {},
    "small": {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 30}},
    "cells": {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 1,
        "size": {"shortest_edge": 64, "longest_edge": 64 * 64},
    },
    "qwen3_vl": {
        "patch_size": 16,
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "symmetric": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2], "merge_size": 1},
}
SIZES = [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (5, 640), (641, 480)]


def assert_equal(image, **config):
    """Equal to transformers where Pillow resizes width first, and to transformers as it is where the order is that."""
    processor = Qwen2VLImageProcessorPil(**config)
    with width_first() as unlike:
        expected = processor(images=[image], return_tensors="np")
    if not unlike:
        assert np.array_equal(processor(images=[image], return_tensors="np")["pixel_values"], expected["pixel_values"])
    given = preprocess_image(image, ImageConfig.from_hf(json.loads(processor.to_json_string())))
    assert given.grid == tuple(expected["image_grid_thw"][0])
    assert given.patches.dtype == expected["pixel_values"].dtype
    np.testing.assert_array_equal(given.patches, expected["pixel_values"])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_hf_to_the_bit(config, size):
    assert_equal(picture(*size), **CONFIGS[config])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_hf_to_the_bit(mode):
    assert_equal(picture(97, 61, mode))


def test_palette_with_transparency_equals_hf_to_the_bit():
    image = picture(97, 61, "P")
    image.info["transparency"] = 3
    assert_equal(image)


def test_array_equals_hf_to_the_bit():
    assert_equal(np.asarray(picture(97, 61)))


def test_where_pillow_resizes_height_first_transformers_follows_it():
    """From Pillow 13 on: this image grows by 3 columns and shrinks by 4 rows, to whole tokens."""
    image = picture(641, 480)
    processor = Qwen2VLImageProcessorPil()
    with width_first() as unlike:
        processor(images=[image], return_tensors="np")
    theirs = processor(images=[image], return_tensors="np")["pixel_values"]
    assert np.array_equal(preprocess_image(image, ImageConfig()).patches, theirs) == (not unlike)
