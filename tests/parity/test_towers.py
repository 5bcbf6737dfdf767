"""Vision towers and projectors of Kimi-VL, DeepSeek-VL and LLaVA-1.5 against transformers, through files."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

from models.hub.fields import Fields
from models.hub.tensor_files import SINGLE
from models.hub.weights import UnexpectedTensorError, WeightTable, load_params, save_params
from models.ports.deepseek_vl import vision as deepseek
from models.ports.deepseek_vl import weights as deepseek_weights
from models.ports.kimi_vl import vision as kimi
from models.ports.kimi_vl import weights as kimi_weights
from models.ports.llava import vision as llava
from models.ports.llava import weights as llava_weights
from tests.parity.tiny_hf import randomize, save_hub_folder

pytestmark = pytest.mark.parity

TEXT = r"(model\.)?(language_model|lm_head)\..*"
"""The language model's tensors, which these tables leave to the rest of the port."""

LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 50,
    "hidden_size": 40,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}


def load_tower(folder, port, rows, renames=(), ignored=()):
    """The port's reading of a folder's config.json and weights, text left aside."""
    top = Fields("config.json", json.loads((folder / "config.json").read_text()))
    config = port.vision_config_from_hf(top, out_hidden_size=LLAMA["hidden_size"])
    ignored = ignored(config) if callable(ignored) else ignored
    table = WeightTable(rows=tuple(rows(config)), renames=renames, ignored=(*ignored, TEXT))
    params = load_params(folder, {"vision": port.vision_declaration(config)}, table, jnp.float32)
    return config, params, table


def raster_patches(image, patch):
    """An image f32[C, H, W] as raster patches f32[P, C * patch * patch]."""
    channels, height, width = image.shape
    blocks = image.reshape(channels, height // patch, patch, width // patch, patch)
    return blocks.transpose(1, 3, 0, 2, 4).reshape(-1, channels * patch**2)


def assert_close(given, expected):
    assert given.shape == expected.shape
    error = np.abs(given - expected).max() / np.abs(expected).max()
    assert error <= 1e-5, error


def assert_same_tensors(given, expected):
    """Every tensor that was saved is the original's, to the bit."""
    assert given and given.keys() <= expected.keys()
    for name, tensor in given.items():
        np.testing.assert_array_equal(tensor, expected[name])


# Kimi-VL ------------------------------------------------------------------------------------------------------------

MOONVIT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "patch_size": 4,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
}
MOONVIT_VARIATIONS = {
    "small": {},
    "narrow heads": {"num_attention_heads": 8, "num_hidden_layers": 1, "pos_emb_height": 3, "pos_emb_width": 3},
    "real patches": {"patch_size": 14, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3},
    "merge 3": {"merge_kernel_size": [3, 3], "pos_emb_height": 64, "pos_emb_width": 64},
}
GRIDS = [(1, 1), (1, 7), (4, 4), (5, 3), (2, 9), (11, 6)]
"""Heights and widths in merged tokens: below, at and above the learned positions."""


def hub_names(state, heads):
    """kimi_k25's state dict under Kimi-VL's names: q, k and v in one tensor, members of a rotated pair side by side."""

    def interleaved(tensor):
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    hub = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        name = name.replace("patch_embed.pos_emb.position_embeddings", "patch_embed.pos_emb.weight")
        name = re.sub(r"^vision_tower\.(layers|final_layernorm)", r"vision_tower.encoder.\1", name)
        name = name.replace("encoder.layers.", "encoder.blocks.").replace("attn.proj", "wo")
        name = re.sub(r"(norm|mlp\.fc)([12])", lambda match: f"{match[1]}{int(match[2]) - 1}", name)
        name = name.replace("mm_projector.in_proj", "multi_modal_projector.linear_1")
        name = name.replace("mm_projector.out_proj", "multi_modal_projector.linear_2")
        name = name.replace("mm_projector.pre_norm", "multi_modal_projector.pre_norm")
        hub[name] = tensor
    for name in [name for name in hub if "attn.q_proj" in name]:
        q, k, v = (hub.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv")
        hub[name.replace("attn.q_proj", "wqkv")] = torch.cat([interleaved(q), interleaved(k), v])
    return {name: tensor.contiguous() for name, tensor in hub.items()}


def kimi_model(seed, variation):
    vision = {**MOONVIT, **variation}
    config = transformers.Kimi_K25Config(
        text_config=DEEPSEEK_V3, vision_config=vision, projection_hidden_size=vision["hidden_size"]
    )
    torch.manual_seed(seed)
    return randomize(transformers.Kimi_K25ForConditionalGeneration(config).eval(), seed)


def kimi_folder(model, path):
    path.mkdir()
    vision = model.config.vision_config
    same = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "patch_size")
    section = {"model_type": "moonvit", **{name: getattr(vision, name) for name in same}}
    section |= {f"init_{name}": getattr(vision, name) for name in ("pos_emb_height", "pos_emb_width")}
    section |= {"merge_kernel_size": list(vision.merge_kernel_size), "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps({"vision_config": section}))
    state = {
        name: tensor for name, tensor in model.state_dict().items() if "language" not in name and "lm_" not in name
    }
    save_file(hub_names(state, vision.num_attention_heads), path / SINGLE)
    return path


@pytest.fixture(scope="module", params=MOONVIT_VARIATIONS)
def moonvit(request, tmp_path_factory):
    model = kimi_model(len(request.param), MOONVIT_VARIATIONS[request.param])
    folder = kimi_folder(model, tmp_path_factory.mktemp("kimi") / "hub")
    return (model, folder, *load_tower(folder, kimi, kimi_weights.vision_rows))


@pytest.mark.parametrize("grid", GRIDS)
def test_moonvit_equals_hf(moonvit, grid):
    model, _, config, params, _ = moonvit
    rows, columns = (side * config.spatial_merge_size for side in grid)
    size = (3, rows * config.patch_size, columns * config.patch_size)
    image = np.random.default_rng(rows * 100 + columns).normal(size=size)
    patches = raster_patches(image.astype(np.float32), config.patch_size)
    pixels = torch.from_numpy(patches).reshape(-1, 3, config.patch_size, config.patch_size)
    with torch.no_grad():
        expected = model.model.get_image_features(pixels, torch.tensor([[1, rows, columns]])).pooler_output[0].numpy()

    encode = jax.jit(kimi.encode_image, static_argnums=1)
    for bucket in (1, 100):
        layout = kimi.plan(rows, columns, config, bucket)
        padded = kimi.pad_patches(patches, layout)
        padded[len(patches) :] = 1e3  # what is in padding changes nothing
        given = np.asarray(encode(params["vision"], config, padded, layout))
        assert_close(given[: layout.tokens], expected)
        assert not given[layout.tokens :].any()


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (5, 21), (40, 7)])
@pytest.mark.parametrize("learned", [(8, 8), (3, 5), (64, 64)])
def test_learned_positions_are_interpolated_as_torch_does(size, learned):
    table = np.random.default_rng(0).normal(size=(*learned, 4)).astype(np.float32)
    maps = torch.from_numpy(table).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(maps, size, mode="bicubic")[0].permute(1, 2, 0).numpy()
    (row_taps, row_weights), (column_taps, column_weights) = map(kimi.bicubic, size, learned)
    gathered = table[row_taps[:, None, :, None], column_taps[None, :, None, :]]
    given = np.einsum("hwrce,hr,wc->hwe", gathered, row_weights, column_weights)
    assert_close(given, expected)


def test_moonvit_is_saved_as_it_was(moonvit, tmp_path):
    _, folder, _, params, table = moonvit
    save_params(tmp_path, params, table, jnp.float32)
    given = load_file(tmp_path / SINGLE)
    expected = load_file(folder / SINGLE)
    assert given.keys() == expected.keys()
    assert_same_tensors(given, expected)


def test_pairs_are_interleaved_as_transformers_saves_them(tmp_path):
    model = kimi_model(5, {})
    ours = load_file(kimi_folder(model, tmp_path / "ours") / SINGLE)
    theirs = load_file(save_hub_folder(model, tmp_path / "theirs") / SINGLE)
    names = [name for name in ours if "wqkv" in name]
    assert len(names) == 4
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name])


# DeepSeek-VL and LLaVA: images of one size ---------------------------------------------------------------------------

SQUARE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SIGLIP_VARIATIONS = {
    "small": {},
    "no head": {"vision_use_head": False, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
    "tiny model": {"image_size": 280, "patch_size": 28, "hidden_size": 64, "num_hidden_layers": 2},
    "grey": {"num_channels": 1, "num_attention_heads": 4, "hidden_act": "quick_gelu"},
}
CLIP_VARIATIONS = {
    "layer -2": ({}, {}),
    "layer -1": ({"num_attention_heads": 4, "layer_norm_eps": 1e-3}, {"vision_feature_layer": -1}),
    "layer 1": (
        {"image_size": 42, "patch_size": 14},
        {"vision_feature_layer": 1, "projector_hidden_act": "quick_gelu"},
    ),
    "no bias": ({"hidden_act": "gelu"}, {"vision_feature_layer": -3, "multimodal_projector_bias": False}),
    "layer -4": ({"num_hidden_layers": 12, "hidden_act": "gelu_pytorch_tanh"}, {"vision_feature_layer": -4}),
}


def assert_square_tower_equals_hf(model, port, config, params):
    image = np.random.default_rng(0).normal(size=(2, config.in_channels, config.image_size, config.image_size))
    image = image.astype(np.float32)
    with torch.no_grad():
        expected = model.model.get_image_features(torch.from_numpy(image)).pooler_output
    layout = port.plan(config.side, config.side, config, bucket=256)
    encode = jax.jit(port.encode_image, static_argnums=1)
    for one, features in zip(image, expected, strict=True):
        patches = port.pad_patches(raster_patches(one, config.patch_size), layout)
        given = np.asarray(encode(params["vision"], config, patches, layout))
        assert len(given) == layout.rows == layout.tokens
        assert_close(given, features.numpy())


def deepseek_model(seed, variation):
    config = transformers.DeepseekVLConfig(
        text_config=LLAMA,
        vision_config={"model_type": "siglip_vision_model", **SQUARE, **variation},
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return randomize(transformers.DeepseekVLForConditionalGeneration(config).eval(), seed)


def llava_model(seed, variation, top):
    config = transformers.LlavaConfig(
        text_config=LLAMA, vision_config={"model_type": "clip_vision_model", **SQUARE, **variation}, **top
    )
    torch.manual_seed(seed)
    return randomize(transformers.LlavaForConditionalGeneration(config).eval(), seed)


def load_deepseek(folder):
    rows = deepseek_weights.vision_rows
    renames = deepseek_weights.VISION_RENAMES
    return load_tower(folder, deepseek, rows, renames, deepseek_weights.VISION_IGNORED)


def load_llava(folder):
    rows = llava_weights.vision_rows
    renames = llava_weights.VISION_RENAMES
    return load_tower(folder, llava, rows, renames, llava_weights.vision_ignored)


@pytest.mark.parametrize("name", SIGLIP_VARIATIONS)
def test_siglip_equals_hf(tmp_path, name):
    model = deepseek_model(len(name), SIGLIP_VARIATIONS[name])
    folder = save_hub_folder(model, tmp_path / "hub")
    config, params, table = load_deepseek(folder)
    assert_square_tower_equals_hf(model, deepseek, config, params)
    save_params(tmp_path / "ours", params, table, jnp.float32)
    assert_same_tensors(load_file(tmp_path / "ours" / SINGLE), load_file(folder / SINGLE))


@pytest.mark.parametrize("name", CLIP_VARIATIONS)
def test_clip_equals_hf(tmp_path, name):
    model = llava_model(len(name), *CLIP_VARIATIONS[name])
    folder = save_hub_folder(model, tmp_path / "hub")
    config, params, table = load_llava(folder)
    assert_square_tower_equals_hf(model, llava, config, params)
    save_params(tmp_path / "ours", params, table, jnp.float32)
    assert_same_tensors(load_file(tmp_path / "ours" / SINGLE), load_file(folder / SINGLE))


@pytest.mark.parametrize("port", ["deepseek", "llava"])
def test_names_of_other_versions_hold_the_same_tower(tmp_path, port):
    model, load = (deepseek_model(3, {}), load_deepseek) if port == "deepseek" else (llava_model(3, {}, {}), load_llava)
    params = load(save_hub_folder(model, tmp_path / "hub"))[1]
    written = load_file(tmp_path / "hub" / SINGLE)
    tower = "model.vision_model." if port == "deepseek" else "vision_tower."
    published = {
        re.sub(rf"^{re.escape(tower)}", f"{tower}vision_model.", name): torch.from_numpy(tensor)
        for name, tensor in written.items()
    }
    published[f"{tower}vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    for version, state in {"published": published, "in memory": model.state_dict()}.items():
        folder = tmp_path / version
        model.config.save_pretrained(folder)
        save_file(state, folder / SINGLE)
        jax.tree.map(np.testing.assert_array_equal, load(folder)[1], params)


def test_only_what_does_not_run_is_ignored(tmp_path):
    model = llava_model(3, {}, {})
    folder = save_hub_folder(model, tmp_path)
    written = {name: torch.from_numpy(tensor) for name, tensor in load_file(folder / SINGLE).items()}
    for name in ("vision_tower.encoder.layers.3.layer_norm1.weight", "vision_tower.encoder.layers.2.adapter.weight"):
        save_file({**written, name: torch.ones(32)}, folder / SINGLE)
        with pytest.raises(UnexpectedTensorError, match=re.escape(name)):
            load_llava(folder)
