"""Vision towers of Kimi-VL, DeepSeek-VL, LLaVA-1.5 and InternVL3: layout, refusals and padding, without torch."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.params import is_info
from models.blocks.vit import axial_rotation, layer_norm
from models.hub.fields import Fields, MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.hub.weights import WeightTable, load_params, save_params
from models.ports.deepseek_vl import vision as deepseek
from models.ports.deepseek_vl import weights as deepseek_weights
from models.ports.internvl import vision as internvl
from models.ports.internvl import weights as internvl_weights
from models.ports.kimi_vl import vision as kimi
from models.ports.kimi_vl import weights as kimi_weights
from models.ports.llava import vision as llava
from models.ports.llava import weights as llava_weights
from tests.models.ports.test_internvl_config import LARGE, SMALL
from tests.models.ports.test_port_configs import INTERNVL

MOONVIT = kimi.VisionConfig(
    depth=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    in_channels=3,
    patch_size=4,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-5,
    out_hidden_size=24,
    init_pos_emb_height=5,
    init_pos_emb_width=8,
    spatial_merge_size=2,
)
SQUARE = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "out_hidden_size": 24,
    "image_size": 16,
}
SIGLIP = deepseek.VisionConfig(**SQUARE, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
CLIP = llava.VisionConfig(
    **SQUARE, hidden_act="quick_gelu", layer_norm_eps=1e-5, stored_depth=3, projector_act="gelu", projector_bias=True
)
PORTS = {
    "kimi": (kimi, MOONVIT),
    "deepseek": (deepseek, SIGLIP),
    "llava": (llava, CLIP),
    "internvl": (internvl, LARGE),
    "internvl, small": (internvl, SMALL),
}
ROWS = {
    "kimi": kimi_weights.vision_rows,
    "deepseek": deepseek_weights.vision_rows,
    "llava": llava_weights.vision_rows,
    "internvl": internvl_weights.vision_rows,
    "internvl, small": internvl_weights.vision_rows,
}


def random_params(port, config):
    normal = np.random.default_rng(0).normal

    def leaf(info):
        scale = info.shape[-2] ** -0.5 if info.init == "fan_in" else 0.1
        return jnp.asarray(normal(float(info.init == "ones"), scale, info.shape), jnp.float32)

    return jax.tree.map(leaf, port.vision_declaration(config), is_leaf=is_info)


@pytest.fixture(scope="module")
def moonvit():
    return random_params(kimi, MOONVIT)


def pixels(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows * columns, 48)).astype(np.float32)


moonvit_encoder = jax.jit(kimi.encode_image, static_argnums=1)


def encode_moonvit(params, patches, rows, columns, bucket=96):
    layout = kimi.plan(rows, columns, MOONVIT, bucket)
    return np.asarray(moonvit_encoder(params, MOONVIT, kimi.pad_patches(patches, layout), layout))[: layout.tokens]


# Layout of MoonViT


def test_plan_by_hand():
    layout = kimi.plan(4, 6, MOONVIT, bucket=32)
    assert layout.rows == 32 and layout.tokens == 6
    np.testing.assert_array_equal(layout.order[:12], [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11])
    np.testing.assert_array_equal(layout.order[24:], 0)
    np.testing.assert_array_equal(layout.valid, [True] * 24 + [False] * 8)
    np.testing.assert_array_equal(layout.positions[:, 4:8], [[0, 0, 1, 1], [2, 3, 2, 3]])


@pytest.mark.parametrize("grid", [(2, 2), (6, 4), (10, 14), (2, 40), (16, 16)])
@pytest.mark.parametrize("bucket", [1, 96, 256])
def test_plan_places_every_patch_once(grid, bucket):
    layout = kimi.plan(*grid, MOONVIT, bucket)
    taken = layout.order[layout.valid]
    np.testing.assert_array_equal(np.sort(taken), np.arange(grid[0] * grid[1]))
    np.testing.assert_array_equal(layout.positions[:, layout.valid], np.divmod(taken, grid[1]))
    merged = taken.reshape(-1, 4)
    np.testing.assert_array_equal(merged - merged[:, :1], np.tile([0, 1, grid[1], grid[1] + 1], (len(merged), 1)))
    assert (np.diff(merged[:, 0]) > 0).all() and layout.tokens == len(merged)
    assert layout.rows % (4 * max(1, bucket // 4)) == 0


@pytest.mark.parametrize("grid", [(2, 2), (10, 16), (30, 4)])
def test_taps_are_learned_positions_and_their_weights_sum_to_one(grid):
    layout = kimi.plan(*grid, MOONVIT, 256)
    assert layout.taps.min() >= 0 and layout.taps.max() < 5 * 8
    sums = layout.weights.sum(-1)
    np.testing.assert_allclose(sums[layout.valid], 1, atol=1e-6)
    np.testing.assert_array_equal(sums[~layout.valid], 0)


@pytest.mark.parametrize("size", [1, 3, 8, 21, 64])
@pytest.mark.parametrize("learned", [1, 3, 8, 64])
def test_bicubic_weights(size, learned):
    taps, weights = kimi.bicubic(size, learned)
    assert taps.shape == weights.shape == (size, 4) and taps.dtype == np.int32 and weights.dtype == np.float32
    assert taps.min() >= 0 and taps.max() < learned
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    matrix = np.zeros((size, learned))
    np.add.at(matrix, (np.arange(size)[:, None], taps), weights)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=2e-5)  # left is as right; positions up to 64 are f32
    if size == learned:
        np.testing.assert_array_equal(weights, np.tile([0, 1, 0, 0], (size, 1)))


def test_bicubic_by_hand():
    taps, weights = kimi.bicubic(2, 4)  # new points half-way between learned ones
    np.testing.assert_array_equal(taps, [[0, 0, 1, 2], [1, 2, 3, 3]])
    np.testing.assert_allclose(weights, np.tile([-3 / 32, 19 / 32, 19 / 32, -3 / 32], (2, 1)))


@pytest.mark.parametrize("grid", [(0, 4), (3, 4), (4, -2)])
def test_impossible_grids_are_refused(grid):
    with pytest.raises(ValueError, match="multiples of 2"):
        kimi.plan(*grid, MOONVIT)


@pytest.mark.parametrize("port", ["deepseek", "llava"])
def test_images_have_one_size(port):
    vision, config = PORTS[port]
    layout = vision.plan(4, 4, config)
    assert layout.rows == layout.tokens == 16
    with pytest.raises(ValueError, match="4 x 5 patches; expected 4 x 4: resize the image to 16 x 16"):
        vision.plan(4, 5, config)


# What the towers compute


def test_padding_changes_nothing(moonvit):
    patches = pixels(6, 10)
    tight, loose = (encode_moonvit(moonvit, patches, 6, 10, bucket) for bucket in (1, 256))
    assert np.abs(tight - loose).max() / np.abs(tight).max() <= 1e-5
    layout = kimi.plan(6, 10, MOONVIT, 256)
    noisy = kimi.pad_patches(patches, layout)
    noisy[len(patches) :] = 1e3
    given = moonvit_encoder(moonvit, MOONVIT, noisy, layout)
    np.testing.assert_array_equal(given[: layout.tokens], loose)
    assert not np.asarray(given[layout.tokens :]).any()


def test_rows_and_columns_are_told_apart(moonvit):
    patches = pixels(4, 8)
    turned = np.abs(encode_moonvit(moonvit, patches, 4, 8) - encode_moonvit(moonvit, patches, 8, 4))
    assert turned.max() > 1e-3


def test_images_of_a_bucket_share_a_program_and_batch(moonvit):
    encoder = jax.jit(partial(kimi.encode_image, moonvit, MOONVIT))  # one of its own, to count its programs
    grids = [(6, 10), (8, 8), (4, 14)]
    layouts = [kimi.plan(*grid, MOONVIT, 96) for grid in grids]
    patches = [kimi.pad_patches(pixels(*grid), layout) for grid, layout in zip(grids, layouts, strict=True)]
    alone = [encoder(*each) for each in zip(patches, layouts, strict=True)]
    assert encoder._cache_size() == 1
    batched = jax.jit(jax.vmap(partial(kimi.encode_image, moonvit, MOONVIT)))
    together = batched(np.stack(patches), jax.tree.map(lambda *x: np.stack(x), *layouts))
    for one, each in zip(alone, together, strict=True):
        assert np.abs(one - each).max() / np.abs(one).max() <= 1e-5


@pytest.mark.parametrize("port", ["deepseek", "llava", "internvl"])
def test_images_of_one_size_batch(port):
    vision, config = PORTS[port]
    params = random_params(vision, config)
    encode = partial(vision.encode_image, params, config)
    layouts = [vision.plan(4, 4, config)] * 2
    patches = [vision.pad_patches(pixels(4, 4, seed), layouts[0]) for seed in range(2)]
    together = jax.jit(jax.vmap(encode))(np.stack(patches), jax.tree.map(lambda *x: np.stack(x), *layouts))
    for one, each in zip((jax.jit(encode)(p, layouts[0]) for p in patches), together, strict=True):
        assert np.abs(one - each).max() / np.abs(one).max() <= 1e-5


@pytest.mark.parametrize("port", PORTS)
def test_bf16_stays_bf16_and_near(port):
    vision, config = PORTS[port]
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(vision, config))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    layout = vision.plan(4, 4, config)
    patches = vision.pad_patches(pixels(4, 4), layout)
    encode = jax.jit(vision.encode_image, static_argnums=1)
    given = encode(narrow, config, patches, layout)
    expected = encode(wide, config, patches, layout)
    assert given.dtype == jnp.bfloat16
    assert np.linalg.norm(given.astype(np.float32) - expected) / np.linalg.norm(expected) <= 2**-5


@pytest.mark.parametrize("port", PORTS)
def test_gradients_are_finite(port):
    vision, config = PORTS[port]
    layout = vision.plan(4, 4, config)
    patches = vision.pad_patches(pixels(4, 4), layout)
    target = np.random.default_rng(1).normal(size=config.out_hidden_size).astype(np.float32)

    def loss(params):
        return (vision.encode_image(params, config, patches, layout) @ target).sum()

    gradients = jax.jit(jax.grad(loss))(random_params(vision, config))
    assert all(np.isfinite(leaf).all() and np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_layer_norm_in_float64():
    x = np.random.default_rng(0).normal(3, 2, size=(5, 32)).astype(np.float32)
    w, b = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * w + b
    given = layer_norm({"w": jnp.asarray(w), "b": jnp.asarray(b)}, jnp.asarray(x), 1e-3)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_axial_rotation_in_float64():
    heads = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 5, 60], [0, 7, 3]], np.float32)
    angles = np.concatenate([axis[:, None] * np.array([1, 1e-2]) for axis in positions.astype(np.float64)], axis=-1)
    turned = (heads[..., :4] + 1j * heads[..., 4:]) * np.exp(1j * angles)[:, None]
    given = axial_rotation(jnp.asarray(positions), 8)(jnp.asarray(heads))
    np.testing.assert_allclose(given, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


# Weights


@pytest.mark.parametrize("transposed", [True, False])
def test_half_split_round_trips(transposed):
    config = replace(MOONVIT, hidden_size=48, num_heads=3)
    shape = (3 * 48, 48) if transposed else (3 * 48,)
    hub = np.random.default_rng(0).normal(size=shape)
    transform = kimi_weights.half_split(config, transposed=transposed)
    ours = transform.from_hub(hub)
    assert ours.shape == shape[::-1]
    np.testing.assert_array_equal(transform.to_hub(ours), hub)
    np.testing.assert_array_equal(transform.from_hub(transform.to_hub(ours)), ours)
    np.testing.assert_array_equal(ours.T[2 * 48 :], hub[2 * 48 :])  # values are not rotated


def test_half_split_by_hand():
    config = replace(MOONVIT, hidden_size=16, num_heads=2)
    ours = kimi_weights.half_split(config, transposed=False).from_hub(np.arange(48))
    np.testing.assert_array_equal(ours[:16], [2, 6, 0, 4, 3, 7, 1, 5, 10, 14, 8, 12, 11, 15, 9, 13])
    np.testing.assert_array_equal(ours[16:32], 16 + ours[:16])


@pytest.mark.parametrize("port", PORTS)
def test_what_is_saved_is_loaded(tmp_path, port):
    vision, config = PORTS[port]
    params = {"vision": random_params(vision, config)}
    table = WeightTable(rows=tuple(ROWS[port](config)))
    save_params(tmp_path, params, table, jnp.float32)
    again = load_params(tmp_path, {"vision": vision.vision_declaration(config)}, table, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_llava_ignores_the_layers_that_do_not_run():
    def ignored(config, name):
        return any(re.fullmatch(pattern, name) for pattern in llava_weights.vision_ignored(config))

    layer = "vision_tower.encoder.layers.{}.self_attn.q_proj.weight"
    assert [ignored(CLIP, layer.format(n)) for n in range(4)] == [False, False, True, False]
    every = replace(CLIP, depth=3)
    assert not any(ignored(every, layer.format(n)) for n in range(4))
    assert ignored(every, "vision_tower.post_layernorm.bias")


# Configurations

KIMI_HUB = {
    "model_type": "moonvit",
    "patch_size": 14,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "merge_kernel_size": [2, 2],
    "torch_dtype": "bfloat16",
}
DEEPSEEK_HUB = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "vision_use_head": False,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "attention_dropout": 0.0,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
LLAVA_HUB = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
HUB = {"kimi": KIMI_HUB, "deepseek": DEEPSEEK_HUB, "llava": LLAVA_HUB}
HUB |= dict.fromkeys(("internvl", "internvl, small"), INTERNVL["vision_config"])


def read(port, section=None, **top):
    fields = Fields("config.json", {"vision_config": {**HUB[port], **(section or {})}, **top})
    config = PORTS[port][0].vision_config_from_hf(fields, 2048)
    fields.close()
    return config


def test_published_configurations():
    moonvit = read("kimi")
    siglip = read("deepseek")
    clip = read("llava", image_seq_length=576)
    assert (moonvit.init_pos_emb_height, moonvit.spatial_merge_size, moonvit.layer_norm_eps) == (64, 2, 1e-5)
    assert (siglip.side, siglip.hidden_act, siglip.layer_norm_eps) == (24, "gelu", 1e-6)
    assert (clip.side, clip.depth, clip.stored_depth, clip.hidden_act) == (24, 23, 24, "quick_gelu")
    assert len({moonvit, siglip, clip, read("kimi")}) == 3  # hashable: static under jit
    assert clip.out_hidden_size == 2048


@pytest.mark.parametrize(("layer", "depth"), [(-1, 24), (-2, 23), (-24, 1), (1, 1), (24, 24)])
def test_feature_layers(layer, depth):
    assert read("llava", vision_feature_layer=layer).depth == depth


@pytest.mark.parametrize("port", PORTS)
def test_unknown_and_missing_fields_are_refused(port):
    with pytest.raises(UnknownConfigFieldError, match="window_size"):
        read(port, {"window_size": 8})
    with pytest.raises(UnsupportedConfigError, match="model_type"):
        read(port, {"model_type": "another"})
    with pytest.raises(MissingConfigFieldError, match="vision_config"):
        PORTS[port][0].vision_config_from_hf(Fields("config.json", {}), 2048)


@pytest.mark.parametrize(
    ("port", "section", "top", "message"),
    [
        ("kimi", {"merge_kernel_size": [2, 1]}, {}, r"merge_kernel_size is \[2, 1\]"),
        ("kimi", {"merge_kernel_size": [2, 2, 2]}, {}, "merge_kernel_size"),
        ("kimi", {"merge_kernel_size": [0, 0]}, {}, "merge_kernel_size"),
        ("kimi", {"num_attention_heads": 64}, {}, "head width that is a multiple of 4"),
        ("deepseek", {"num_attention_heads": 3}, {}, "3 heads of width 1024"),
        ("deepseek", {"image_size": 380}, {}, "image_size is 380; expected a multiple of patch_size, 16"),
        ("deepseek", {"image_size": [384, 384]}, {}, "image_size"),
        ("deepseek", {"hidden_act": "silu"}, {}, "hidden_act is 'silu'; expected one of"),
        ("llava", {"num_channels": 0}, {}, "num_channels"),
        ("llava", {}, {"vision_feature_layer": 0}, "vision_feature_layer is 0"),
        ("llava", {}, {"vision_feature_layer": -25}, "vision_feature_layer is -25"),
        ("llava", {}, {"vision_feature_layer": 25}, "expected 1 to 24 or -24 to -1"),
        ("llava", {}, {"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ("llava", {}, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ("llava", {}, {"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ("internvl", {"num_channels": 0}, {}, "num_channels"),
    ],
)
def test_unsupported_configurations_are_refused(port, section, top, message):
    with pytest.raises(UnsupportedConfigError, match=message):
        read(port, section, **top)
