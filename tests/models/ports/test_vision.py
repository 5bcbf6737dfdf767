from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.params import init_params
from models.hub.fields import UnsupportedConfigError
from models.ports.qwen2_5_vl.config import VisionConfig
from models.ports.qwen2_5_vl.vision import encode_image, pad_patches, plan, vision_declaration

CONFIG = VisionConfig(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    in_channels=3,
    patch_size=4,
    temporal_patch_size=2,
    spatial_merge_size=2,
    window_size=16,
    fullatt_block_indexes=(1,),
    out_hidden_size=24,
)
ALONE = replace(CONFIG, fullatt_block_indexes=(), window_size=8)
"""One merged token per window, and nothing that sees further."""


@pytest.fixture(scope="module")
def params():
    """Of every configuration here: neither windows nor full blocks change the parameters."""
    start = init_params(vision_declaration(CONFIG), jax.random.key(0))
    noise = np.random.default_rng(0).normal
    return jax.tree.map(lambda x: x + np.float32(0.1) * noise(size=x.shape).astype(np.float32), start)


def pixels(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows * columns, 96)).astype(np.float32)


encoder = jax.jit(encode_image, static_argnums=1)


def encode(params, config, patches, rows, columns, bucket=96):
    layout = plan(rows, columns, config, bucket)
    return np.asarray(encoder(params, config, pad_patches(patches, layout), layout))[: layout.tokens]


def test_plan_by_hand():
    layout = plan(6, 4, CONFIG, bucket=1)  # 3 x 2 merged tokens in windows of 2 x 2: two windows, the second half full
    assert layout.order.shape == (2, 16) and layout.rows == 32 and layout.tokens == 6
    np.testing.assert_array_equal(layout.order[0], np.arange(16))
    np.testing.assert_array_equal(layout.order[1], [*range(16, 24), *[0] * 8])
    np.testing.assert_array_equal(layout.valid, [[True] * 16, [True] * 8 + [False] * 8])
    np.testing.assert_array_equal(layout.inverse, [0, 1, 2, 3, 4, 5, 0, 0])
    np.testing.assert_array_equal(layout.positions[:, :8], [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]])


@pytest.mark.parametrize("grid", [(2, 2), (6, 4), (10, 14), (16, 16)])
@pytest.mark.parametrize("bucket", [1, 96, 512])
def test_plan_places_every_patch_once(grid, bucket):
    layout = plan(*grid, CONFIG, bucket)
    taken = layout.order[layout.valid]
    np.testing.assert_array_equal(np.sort(taken), np.arange(grid[0] * grid[1]))
    merged = layout.order.reshape(-1, 4)[layout.inverse[: layout.tokens]]
    np.testing.assert_array_equal(merged.reshape(-1), np.arange(grid[0] * grid[1]))
    assert layout.rows % (16 * max(1, bucket // 16)) == 0


@pytest.mark.parametrize("grid", [(0, 4), (3, 4), (4, -2)])
def test_impossible_grids_are_refused(grid):
    with pytest.raises(ValueError, match="multiples of 2"):
        plan(*grid, CONFIG)


@pytest.mark.parametrize("change", [{"window_size": 7}, {"num_heads": 16}, {"fullatt_block_indexes": (3,)}])
def test_impossible_towers_are_refused(change):
    with pytest.raises(UnsupportedConfigError, match="vision_config"):
        replace(CONFIG, **change)


@pytest.mark.parametrize("config", [CONFIG, ALONE, replace(CONFIG, fullatt_block_indexes=(0, 1, 2))])
def test_padding_changes_nothing(params, config):
    patches = pixels(6, 10)
    tight = encode(params, config, patches, 6, 10, bucket=1)
    loose = encode(params, config, patches, 6, 10, bucket=512)
    assert np.abs(tight - loose).max() / np.abs(tight).max() <= 1e-5
    layout = plan(6, 10, config, 512)
    noisy = pad_patches(patches, layout)
    noisy[len(patches) :] = 1e3
    given = encoder(params, config, noisy, layout)
    np.testing.assert_array_equal(given[: layout.tokens], loose)
    assert not np.asarray(given[layout.tokens :]).any()


def test_a_lone_window_sees_only_itself(params):
    patches = pixels(6, 10)
    other = pixels(6, 10)
    other[4:8] += 1  # the second merged token
    given = encode(params, ALONE, patches, 6, 10)
    changed = encode(params, ALONE, other, 6, 10)
    np.testing.assert_array_equal(np.flatnonzero((given != changed).any(-1)), [1])


def test_a_full_block_sees_everything(params):
    patches = pixels(6, 10)
    other = pixels(6, 10)
    other[4:8] += 1
    given = encode(params, CONFIG, patches, 6, 10)
    changed = encode(params, CONFIG, other, 6, 10)
    assert (given != changed).any(-1).all()


def test_rows_and_columns_are_told_apart(params):
    patches = pixels(4, 8)
    assert np.abs(encode(params, CONFIG, patches, 4, 8) - encode(params, CONFIG, patches, 8, 4)).max() > 1e-3


def test_images_of_a_bucket_share_a_program_and_batch(params):
    encoder = jax.jit(partial(encode_image, params, CONFIG))  # one of its own, to count its programs
    grids = [(6, 10), (8, 8), (4, 14)]
    layouts = [plan(*grid, CONFIG, 96) for grid in grids]
    patches = [pad_patches(pixels(*grid), layout) for grid, layout in zip(grids, layouts, strict=True)]
    alone = [encoder(*each) for each in zip(patches, layouts, strict=True)]
    assert encoder._cache_size() == 1
    batched = jax.jit(jax.vmap(partial(encode_image, params, CONFIG)))
    together = batched(np.stack(patches), jax.tree.map(lambda *x: np.stack(x), *layouts))
    for one, each in zip(alone, together, strict=True):
        assert np.abs(one - each).max() / np.abs(one).max() <= 1e-5


def test_bf16_stays_bf16_and_near(params):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    given = encode(narrow, CONFIG, pixels(6, 10), 6, 10)
    expected = encode(wide, CONFIG, pixels(6, 10), 6, 10)
    assert given.dtype == jnp.bfloat16
    assert np.linalg.norm(given.astype(np.float32) - expected) / np.linalg.norm(expected) <= 2**-5


@pytest.mark.parametrize("config", [CONFIG, ALONE])
def test_gradients_are_finite(params, config):
    layout = plan(6, 10, config, 256)
    patches = pad_patches(pixels(6, 10), layout)
    gradients = jax.jit(jax.grad(lambda p: encode_image(p, config, patches, layout).sum()))(params)
    assert all(np.isfinite(leaf).all() and np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
