"""Hub folders of every port, in every spelling: read to the bit, and written so that transformers reads them again."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.hub.tensor_files import SINGLE
from models.hub.weights import UnexpectedTensorError, load_params, revision, save_params
from models.registry import ARCHITECTURES
from tests.parity.kimi_hub import hub_state, save_kimi_vl
from tests.parity.tiny_hf import (
    save_experts,
    save_hub_folder,
    tiny_deepseek_vl,
    tiny_internvl,
    tiny_kimi_k25,
    tiny_llava,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
    tiny_qwen3_vl_moe,
)

pytestmark = pytest.mark.parity

MODELS = {
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "qwen3_vl_moe": tiny_qwen3_vl_moe,
    "deepseek_vl": tiny_deepseek_vl,
    "llava": tiny_llava,
    "internvl": tiny_internvl,
}
"""Those that transformers saves under hub names; Kimi-VL it does not know."""


def read(folder, dtype=jnp.float32):
    config, port = config_of(folder)
    return load_params(folder, port.declaration(config), port.weight_table(config), dtype)


def config_of(folder):
    mapping = json.loads((folder / "config.json").read_text())
    port = ARCHITECTURES[mapping["model_type"]]
    return port.config_from_hf(mapping), port


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", MODELS)
def test_every_layout_holds_the_same_parameters(tmp_path, name):
    model = MODELS[name](seed=3)
    single = save_hub_folder(model, tmp_path / "single")
    sharded = save_hub_folder(model, tmp_path / "sharded", sharded=True)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    in_memory = tmp_path / "in_memory"
    model.config.save_pretrained(in_memory)
    save_file(model.state_dict(), in_memory / "model.safetensors")

    params = read(single)
    assert_same(params, read(sharded))
    assert_same(params, read(in_memory))
    assert revision(single) == revision(sharded)
    attention = model.model.language_model.layers[2].self_attn
    keys = params["text"]["moe_layers" if name == "qwen3_vl_moe" else "layers"]["attn"]["k"]
    np.testing.assert_array_equal(keys["w"][2], attention.k_proj.weight.detach().numpy().T)
    assert ("b" in keys) == (name in ("qwen2_5_vl", "internvl"))
    if "b" in keys:
        np.testing.assert_array_equal(keys["b"][2], attention.k_proj.bias.detach().numpy())


def test_bf16_is_read_without_rounding(tmp_path):
    model = tiny_qwen2_5_vl(seed=4).to(torch.bfloat16)
    folder = save_hub_folder(model, tmp_path)
    expected = model.lm_head.weight.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16).T
    given = read(folder, jnp.bfloat16)["text"]["head"]["w"]
    assert given.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(given), expected)
    np.testing.assert_array_equal(read(folder)["text"]["head"]["w"], expected.astype(np.float32))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_transformers_loads(tmp_path, name, tied):
    model = MODELS[name](seed=5, tie_word_embeddings=tied)
    folder = save_hub_folder(model, tmp_path / "hf")
    params = read(folder)
    assert ("head" in params["text"]) != tied

    ours = tmp_path / "ours"
    (config, port) = config_of(folder)
    save_params(ours, params, port.weight_table(config), jnp.float32)
    model.config.save_pretrained(ours)
    assert_same(params, read(ours))
    again, report = type(model).from_pretrained(ours, output_loading_info=True)
    # A tower's last block and pooling head may not run: then the port does not read them, and cannot write them.
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    unused = report["missing_keys"]
    assert all("vision" in key for key in unused) and (name in ("deepseek_vl", "llava") or not any(report.values())), (
        report
    )
    state = again.state_dict()
    assert all(torch.equal(a, state[key]) for key, a in model.state_dict().items() if key not in unused)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shared", [0, 2])
def test_kimi_vl_is_saved_as_it_was(tmp_path, tied, shared):
    model = tiny_kimi_k25(5, text={"n_shared_experts": shared, "q_lora_rank": 24}, tie_word_embeddings=tied)
    folder = save_kimi_vl(model, tmp_path / "hf")
    params = read(folder)
    (config, port) = config_of(folder)
    assert ("head" in params["text"]) != tied and ("shared" in params["text"]["moe_layers"]["mlp"]) == bool(shared)
    experts = params["text"]["moe_layers"]["mlp"]["experts"]
    fused = model.model.language_model.layers[2].mlp.experts
    gate, up = np.split(fused.gate_up_proj[5].detach().numpy().T, 2, axis=1)
    np.testing.assert_array_equal(experts["gate"][1, 5], gate)
    np.testing.assert_array_equal(experts["up"][1, 5], up)
    np.testing.assert_array_equal(experts["down"][1, 5], fused.down_proj[5].detach().numpy().T)

    save_params(tmp_path / "ours", params, port.weight_table(config), jnp.float32)
    given = load_file(tmp_path / "ours" / SINGLE)
    expected = load_file(folder / SINGLE)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)


@pytest.mark.parametrize("layout", ["memory", "hub", "apart"])
def test_experts_are_read_from_every_layout(tmp_path, layout):
    model = tiny_qwen3_vl_moe(5, text={"mlp_only_layers": [0]})
    folder = save_hub_folder(model, tmp_path)
    if layout != "memory":
        save_experts(folder, layout)
    params = read(folder)["text"]
    experts = params["moe_layers"]["mlp"]["experts"]
    assert experts["gate"].shape == (3, 6, 64, 24) and "mlp" in params["layers"]
    fused = model.model.language_model.layers[2].mlp.experts
    gate, up = np.split(fused.gate_up_proj[5].detach().numpy().T, 2, axis=1)
    np.testing.assert_array_equal(experts["gate"][1, 5], gate)
    np.testing.assert_array_equal(experts["up"][1, 5], up)
    np.testing.assert_array_equal(experts["down"][1, 5], fused.down_proj[5].detach().numpy().T)


@pytest.mark.parametrize("layout", ["memory", "hub"])
def test_square_experts_are_told_apart_by_their_other_tensor(tmp_path, layout):
    """Twice the inner width is the width, so that one tensor fits both layouts, and the other one of them."""
    model = tiny_qwen3_vl_moe(5, text={"moe_intermediate_size": 32})
    folder = save_hub_folder(model, tmp_path)
    if layout == "hub":
        save_experts(folder, layout)
    experts = read(folder)["text"]["moe_layers"]["mlp"]["experts"]
    gate_up = model.model.language_model.layers[1].mlp.experts.gate_up_proj[3].detach().numpy()
    np.testing.assert_array_equal(experts["gate"][1, 3], gate_up[:32].T)


def test_kimi_vl_in_bf16_keeps_what_sways_the_router_in_f32(tmp_path):
    folder = save_kimi_vl(tiny_kimi_k25(5), tmp_path)
    exact = read(folder)
    low = read(folder, jnp.bfloat16)
    routers = [params["text"]["moe_layers"]["mlp"]["router"] for params in (exact, low)]
    np.testing.assert_array_equal(*[router["bias"] for router in routers])
    assert routers[1]["w"].dtype == low["text"]["embed"]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", [*MODELS, "kimi_vl"])
def test_a_tied_head_saved_again_must_be_the_embeddings(tmp_path, name):
    if name == "kimi_vl":
        model = tiny_kimi_k25(6, tie_word_embeddings=True)
        head = "language_model.lm_head.weight"
        save_kimi_vl(model, tmp_path)
        state = hub_state(model)
    else:
        model = MODELS[name](seed=6, tie_word_embeddings=True)
        head = "lm_head.weight"
        model.config.save_pretrained(tmp_path)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save_file(state, tmp_path / SINGLE)
    assert "head" not in read(tmp_path)["text"]
    state[head][0, 0] += 1
    save_file(state, tmp_path / SINGLE)
    with pytest.raises(UnexpectedTensorError, match="tie_word_embeddings"):
        read(tmp_path)
