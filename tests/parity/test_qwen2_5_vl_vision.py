import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from models.hub.weights import load_params
from models.ports.qwen2_5_vl.config import config_from_hf
from models.ports.qwen2_5_vl.port import ARCHITECTURE
from models.ports.qwen2_5_vl.vision import encode_image, pad_patches, plan
from models.ports.qwen2_5_vl.weights import weight_table
from tests.parity.tiny_hf import save_hub_folder, tiny_qwen2_5_vl

pytestmark = pytest.mark.parity

VARIATIONS = {
    "mixed": {},
    "full": {"fullatt_block_indexes": [0, 1, 2]},
    "windows": {"fullatt_block_indexes": []},
    "one token per window": {"fullatt_block_indexes": [], "window_size": 8},
    "wide": {
        "depth": 4,
        "hidden_size": 48,
        "num_heads": 3,
        "window_size": 24,
        "fullatt_block_indexes": [1, 3],
        "patch_size": 2,
    },
    "merge 3": {"spatial_merge_size": 3, "window_size": 24, "temporal_patch_size": 1, "num_heads": 4},
}
GRIDS = [(1, 1), (1, 7), (3, 4), (5, 3), (4, 4), (9, 2)]
"""Heights and widths in merged tokens: less than a window, ragged, and exact."""


@pytest.fixture(scope="module", params=VARIATIONS)
def pair(request, tmp_path_factory):
    model = tiny_qwen2_5_vl(seed=len(request.param), vision=VARIATIONS[request.param])
    folder = save_hub_folder(model, tmp_path_factory.mktemp("hub"), sharded=request.param == "mixed")
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    params = load_params(folder, ARCHITECTURE.declaration(config), weight_table(config), jnp.float32)
    return model.model.visual, config, params


@pytest.mark.parametrize("grid", GRIDS)
def test_tower_equals_hf(pair, grid):
    tower, config, params = pair
    vision = config.vision
    rows, columns = (side * vision.spatial_merge_size for side in grid)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = np.random.default_rng(rows * 100 + columns).normal(size=(rows * columns, width)).astype(np.float32)
    with torch.no_grad():
        expected = tower(torch.from_numpy(patches), torch.tensor([[1, rows, columns]])).pooler_output.numpy()

    layout = plan(rows, columns, vision, bucket=96)
    given = jax.jit(encode_image, static_argnums=1)(params["vision"], vision, pad_patches(patches, layout), layout)
    given, padding = np.asarray(given[: layout.tokens]), np.asarray(given[layout.tokens :])

    assert given.shape == expected.shape
    error = np.abs(given - expected).max() / np.abs(expected).max()
    assert error <= 1e-5, error
    assert not padding.any()
