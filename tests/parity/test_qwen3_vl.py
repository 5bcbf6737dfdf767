"""The tower of Qwen3-VL, and what its video processor does, against transformers."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

import kamera_jax as kj
from models.blocks.vit import pad_patches
from models.hub.weights import load_params
from models.ports.qwen2_5_vl.images import ImageConfig
from models.ports.qwen3_vl.video import stamps, video_size
from models.ports.qwen3_vl.vision import bilinear, encode_image, plan
from models.registry import ARCHITECTURES
from tests.parity.tiny_hf import save_hub_folder, tiny_qwen3_vl, tiny_qwen3_vl_moe

pytestmark = pytest.mark.parity

VARIATIONS = {
    "small": {},
    "one deep": {"deepstack_visual_indexes": [3], "num_heads": 4, "hidden_act": "gelu"},
    "every block": {"deepstack_visual_indexes": [0, 1, 2, 3], "num_position_embeddings": 4},
    "nothing deep": {"depth": 1, "deepstack_visual_indexes": [], "num_position_embeddings": 1},
    "merge 3": {"spatial_merge_size": 3, "temporal_patch_size": 1, "num_position_embeddings": 2304},
    "wide": {"hidden_size": 48, "num_heads": 3, "patch_size": 2, "num_position_embeddings": 64},
}
GRIDS = [(1, 1), (1, 7), (3, 4), (5, 3), (9, 2)]
"""Heights and widths in merged tokens: below, at and above the learned positions."""


@pytest.fixture(scope="module", params=VARIATIONS)
def tower(request, tmp_path_factory):
    make = tiny_qwen3_vl_moe if request.param == "wide" else tiny_qwen3_vl
    model = make(seed=len(request.param), vision=VARIATIONS[request.param])
    folder = save_hub_folder(model, tmp_path_factory.mktemp("hub"))
    mapping = json.loads((folder / "config.json").read_text())
    port = ARCHITECTURES[mapping["model_type"]]
    config = port.config_from_hf(mapping)
    return model.model, config.vision, load_params(folder, port.declaration(config), port.weight_table(config), "f32")


def assert_close(given, expected):
    assert given.shape == expected.shape
    error = np.abs(given - expected).max() / np.abs(expected).max()
    assert error <= 1e-5, error


@pytest.mark.parametrize("grid", GRIDS)
def test_tower_equals_hf(tower, grid):
    model, config, params = tower
    rows, columns = (side * config.spatial_merge_size for side in grid)
    patches = np.random.default_rng(rows * 100 + columns).normal(size=(rows * columns, config.pixels))
    patches = patches.astype(np.float32)
    with torch.no_grad():
        theirs = model.get_image_features(torch.from_numpy(patches), torch.tensor([[1, rows, columns]]))

    layout = plan(rows, columns, config, bucket=96)
    padded = pad_patches(patches, layout)
    padded[len(patches) :] = 1e3  # what is in padding changes nothing
    given = jax.jit(encode_image, static_argnums=1)(params["vision"], config, padded, layout)
    tokens = int(layout.tokens)
    assert_close(np.asarray(given.rows)[:tokens], theirs.pooler_output[0].numpy())
    assert not np.asarray(given.rows)[tokens:].any()
    assert (given.deep is None) == (not config.deepstack_visual_indexes)
    if given.deep is not None:
        deep = np.stack([each[0].numpy() for each in theirs.deepstack_features], axis=1)
        assert given.deep.shape[1] == len(config.deepstack_visual_indexes)
        assert_close(np.asarray(given.deep)[:tokens], deep)
        assert not np.asarray(given.deep)[tokens:].any()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 48, 61])
@pytest.mark.parametrize("learned", [1, 2, 5, 48])
def test_learned_positions_are_interpolated_as_torch_does(size, learned):
    """Corners aligned; otherwise it would fail (a negative control)."""
    table = np.random.default_rng(0).normal(size=(learned, 4)).astype(np.float32)
    taps, weights = bilinear(size, learned)
    given = (table[taps] * weights[..., None]).sum(1)

    def theirs(aligned):
        maps = torch.from_numpy(table).T[None, :, :, None]
        made = torch.nn.functional.interpolate(maps, (size, 1), mode="bilinear", align_corners=aligned)
        return made[0, :, :, 0].T.numpy()

    assert_close(given, theirs(True))
    if size in (7, 61) and learned > 1:
        assert np.abs(given - theirs(False)).max() > 1e-3


@pytest.mark.parametrize("fps", [1, 2, 2.5, 3, 6.25, 10, 12.5, 24, 24000 / 1001, 25, 30000 / 1001])
@pytest.mark.parametrize("count", [1, 2, 5, 64, 501])
def test_stamps_equal_those_of_the_processor(fps, count):
    seconds = Qwen3VLProcessor._calculate_timestamps(None, list(range(count)), fps)
    times = kj.Video.at_rate(np.zeros((count, 1, 1, 3), np.uint8), fps).times
    assert stamps(times, 2) == [f"<{each:.1f} seconds>" for each in seconds]


def test_stamps_of_frames_that_were_sampled():
    indices = np.linspace(0, 899, 60).round().astype(int)
    seconds = Qwen3VLProcessor._calculate_timestamps(None, indices, 30000 / 1001)
    times = kj.Video(np.zeros((60, 1, 1, 3), np.uint8), indices / (30000 / 1001)).times
    assert stamps(times, 2) == [f"<{each:.1f} seconds>" for each in seconds]


def test_sizes_equal_those_of_the_processor():
    rng = np.random.default_rng(3)
    config = ImageConfig(min_pixels=4096, max_pixels=25165824, patch_size=16)
    small = ImageConfig(min_pixels=40_000, max_pixels=150_000, patch_size=4)
    for each in (config, small):
        factor = each.patch_size * each.merge_size
        for _ in range(500):
            frames = int(rng.integers(2, 800))
            height, width = (int(side) for side in rng.integers(1, 3000, 2))
            if max(height, width) > 150 * min(height, width):
                continue
            theirs = smart_resize(frames, height, width, 2, factor, each.min_pixels, each.max_pixels)
            assert video_size(frames, height, width, each) == theirs
