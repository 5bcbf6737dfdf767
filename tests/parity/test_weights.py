import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from models.qwen2_5_vl.config import config_from_hf
from models.qwen2_5_vl.modeling import text_declaration
from models.qwen2_5_vl.vision import vision_declaration
from models.qwen2_5_vl.weights import weight_table
from models.weights import UnexpectedTensorError, load_params, revision, save_params
from tests.parity.tiny_hf import save_hub_folder, tiny_qwen2_5_vl

pytestmark = pytest.mark.parity


def read(folder, dtype=jnp.float32):
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    declaration = {"text": text_declaration(config.text), "vision": vision_declaration(config.vision)}
    return load_params(folder, declaration, weight_table(config), dtype)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_layout_holds_the_same_parameters(tmp_path):
    model = tiny_qwen2_5_vl(seed=3)
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
    np.testing.assert_array_equal(
        params["text"]["layers"]["attn"]["k"]["w"][2], attention.k_proj.weight.detach().numpy().T
    )
    np.testing.assert_array_equal(params["text"]["layers"]["attn"]["k"]["b"][2], attention.k_proj.bias.detach().numpy())


def test_bf16_is_read_without_rounding(tmp_path):
    model = tiny_qwen2_5_vl(seed=4).to(torch.bfloat16)
    folder = save_hub_folder(model, tmp_path)
    expected = model.lm_head.weight.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16).T
    given = read(folder, jnp.bfloat16)["text"]["head"]["w"]
    assert given.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(given), expected)
    np.testing.assert_array_equal(read(folder)["text"]["head"]["w"], expected.astype(np.float32))


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_transformers_loads(tmp_path, tied):
    model = tiny_qwen2_5_vl(seed=5, tie_word_embeddings=tied)
    folder = save_hub_folder(model, tmp_path / "hf")
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    params = read(folder)
    assert ("head" in params["text"]) != tied

    ours = tmp_path / "ours"
    save_params(ours, params, weight_table(config), jnp.float32)
    model.config.save_pretrained(ours)
    assert_same(params, read(ours))
    again, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_tied_head_saved_again_must_be_the_embeddings(tmp_path):
    model = tiny_qwen2_5_vl(seed=6, tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert "head" not in read(tmp_path)["text"]
    state["lm_head.weight"][0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UnexpectedTensorError, match="tie_word_embeddings"):
        read(tmp_path)
