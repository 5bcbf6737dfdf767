"""Tensors of the hub that are several parameters, or a stack of one: written here, read, and written back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.blocks.params import ParamInfo, linear, stacked
from models.hub import weights
from models.hub.weights import TRANSPOSED, Either, Row, WeightTable, load_params, save_params

LAYERS = 3
EXPERTS = 5
WIDTH = 6
INNER = 4
QKV = {"q": 8, "k": 4, "v": 2}
HEADS = ("embed", "heads")
DECLARATION = {
    "attn": stacked(LAYERS, {name: linear(WIDTH, size, bias=True, axes=HEADS) for name, size in QKV.items()}),
    "experts": {
        "gate": ParamInfo((LAYERS, EXPERTS, WIDTH, INNER), axes=("layers", "experts", "embed", "mlp")),
        "up": ParamInfo((LAYERS, EXPERTS, WIDTH, INNER), axes=("layers", "experts", "embed", "mlp")),
        "down": ParamInfo((LAYERS, EXPERTS, INNER, WIDTH), axes=("layers", "experts", "mlp", "embed")),
    },
}
"""Unequal sizes, so that a part taken for another does not fit."""

ONE_BY_ONE = (
    *(Row(f"layers.{{}}.{name}.weight", f"attn/{name}/w", TRANSPOSED) for name in QKV),
    *(Row(f"layers.{{}}.{name}.bias", f"attn/{name}/b") for name in QKV),
    *(Row(f"layers.{{}}.experts.{{}}.{name}.weight", f"experts/{name}", TRANSPOSED) for name in ("gate", "up", "down")),
)
FUSED = (
    Row("layers.{}.qkv.weight", tuple(f"attn/{name}/w" for name in QKV), TRANSPOSED),
    Row("layers.{}.qkv.bias", tuple(f"attn/{name}/b" for name in QKV)),
)
STACKED = (
    Row("layers.{}.experts.gate_up_proj", ("experts/gate", "experts/up"), axis=-1),
    Row("layers.{}.experts.down_proj", "experts/down"),
)
TURNED = (
    Row("layers.{}.experts.gate_up_proj", ("experts/gate", "experts/up"), TRANSPOSED, axis=1),
    Row("layers.{}.experts.down_proj", "experts/down", TRANSPOSED),
)
EITHER = Either((STACKED, TURNED, ONE_BY_ONE[6:]))


def one_by_one(seed=0):
    """A checkpoint with a tensor for each projection, layer and expert."""
    make = np.random.default_rng(seed).standard_normal
    content = {}
    for layer in range(LAYERS):
        for name, size in QKV.items():
            content[f"layers.{layer}.{name}.weight"] = make((size, WIDTH), np.float32)
            content[f"layers.{layer}.{name}.bias"] = make(size, np.float32)
        for expert in range(EXPERTS):
            for name, shape in {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}.items():
                content[f"layers.{layer}.experts.{expert}.{name}.weight"] = make(shape, np.float32)
    return content


def fused(content):
    """The same weights with q, k and v in one tensor, as Phi-3 and InternViT store them."""
    rest = {name: tensor for name, tensor in content.items() if name.split(".")[2] not in QKV}
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            rest[f"layers.{layer}.qkv.{kind}"] = np.concatenate([content[f"layers.{layer}.{p}.{kind}"] for p in QKV])
    return rest


def stacked_experts(content, *, turned=False):
    """The same weights with a layer's experts in one tensor, as the hub has Qwen3-VL-MoE: to multiply from the right.

    ``turned`` as transformers 5 has them in memory: [experts, out, in].
    """
    rest = {name: tensor for name, tensor in content.items() if "experts" not in name}
    for layer in range(LAYERS):
        gate, up, down = (
            np.stack([content[f"layers.{layer}.experts.{i}.{name}.weight"] for i in range(EXPERTS)])
            for name in ("gate", "up", "down")
        )
        both = np.concatenate([gate, up], axis=1)
        rest[f"layers.{layer}.experts.gate_up_proj"] = both if turned else both.swapaxes(1, 2).copy()
        rest[f"layers.{layer}.experts.down_proj"] = down if turned else down.swapaxes(1, 2).copy()
    return rest


LAYOUTS = {
    "one by one": (ONE_BY_ONE, lambda content: content),
    "fused": ((*FUSED, *ONE_BY_ONE[6:]), fused),
    "stacked": ((*ONE_BY_ONE[:6], *STACKED), stacked_experts),
    "stacked, turned": ((*ONE_BY_ONE[:6], *TURNED), lambda content: stacked_experts(content, turned=True)),
    "either, stacked": ((*ONE_BY_ONE[:6], EITHER), stacked_experts),
    "either, turned": ((*ONE_BY_ONE[:6], EITHER), lambda content: stacked_experts(content, turned=True)),
    "either, one by one": ((*ONE_BY_ONE[:6], EITHER), lambda content: content),
}


def read(folder, rows, declaration=DECLARATION, shardings=None):
    return load_params(folder, declaration, WeightTable(tuple(rows)), jnp.float32, shardings)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_parameters(tmp_path, layout):
    rows, arranged = LAYOUTS[layout]
    content = one_by_one()
    save_file(arranged(content), tmp_path / "model.safetensors")
    params = read(tmp_path, rows)
    np.testing.assert_array_equal(params["attn"]["v"]["w"][1], content["layers.1.v.weight"].T)
    np.testing.assert_array_equal(params["attn"]["k"]["b"][2], content["layers.2.k.bias"])
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal(
            params["experts"][name][2, 4], content[f"layers.2.experts.4.{name}.weight"].T, err_msg=name
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_what_was_read(tmp_path, layout):
    """Byte for byte, under the same names; of several layouts the first."""
    rows, arranged = LAYOUTS[layout]
    content = one_by_one()
    given = arranged(content)
    save_file(given, tmp_path / "model.safetensors")
    save_params(tmp_path / "again", read(tmp_path, rows), WeightTable(tuple(rows)), jnp.float32)
    wanted = stacked_experts(content) if layout.startswith("either") else given
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(again[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_placed_where_it_is_to_be(tmp_path, layout):
    rows, arranged = LAYOUTS[layout]
    save_file(arranged(one_by_one()), tmp_path / "model.safetensors")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda info: device, DECLARATION, is_leaf=lambda leaf: isinstance(leaf, ParamInfo))
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path, rows, shardings=shardings), read(tmp_path, rows))


def test_layouts_that_cannot_be_distinguished_are_refused(tmp_path):
    """A square matrix looks the same turned: which it is decides what the model computes."""
    declaration = {"experts": {name: ParamInfo((1, 2, 6, 3)) for name in ("gate", "up")}}
    rows = [
        Either(
            tuple(
                (Row("layers.{}.gate_up_proj", ("experts/gate", "experts/up"), transform, axis=axis),)
                for transform, axis in ((weights.AS_IS, -1), (TRANSPOSED, 1))
            )
        )
    ]
    save_file({"layers.0.gate_up_proj": np.ones((2, 6, 6), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(weights.TensorShapeError, match=r"layers.0.gate_up_proj is \[2, 6, 6\], which fits two layouts"):
        read(tmp_path, rows, declaration)


def test_a_folder_of_no_layout_says_what_the_nearest_lacks(tmp_path):
    rows = LAYOUTS["either, stacked"][0]
    content = stacked_experts(one_by_one())
    del content["layers.1.experts.down_proj"]
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(weights.MissingTensorError, match="lacks layers.1.experts.down_proj"):
        read(tmp_path, rows)
    content = one_by_one() | {"layers.1.experts.2.up.weight": np.ones((2, 2), np.float32)}
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(weights.TensorShapeError, match=r"layers.1.experts.2.up.weight is \[2, 2\]; .* \[4, 6\]"):
        read(tmp_path, rows)


@pytest.mark.parametrize(("change", "sizes"), [(-1, "[13, 6]; the configuration asks for [14, 6]"), (1, "[15, 6]")])
def test_a_fused_tensor_of_another_size_is_refused(tmp_path, change, sizes):
    content = fused(one_by_one())
    content["layers.2.qkv.weight"] = np.ones((14 + change, 6), np.float32)
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(weights.TensorShapeError) as error:
        read(tmp_path, LAYOUTS["fused"][0])
    assert f"layers.2.qkv.weight is {sizes}" in str(error.value)


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    save_file(one_by_one() | stacked_experts(one_by_one()), tmp_path / "model.safetensors")
    with pytest.raises(weights.UnexpectedTensorError, match="experts.0.gate.weight"):
        read(tmp_path, LAYOUTS["either, stacked"][0])


def test_tables_that_do_not_fit_the_parameters_are_refused(tmp_path):
    save_file(one_by_one(), tmp_path / "model.safetensors")
    with pytest.raises(weights.UnexpectedTensorError, match="several rows for attn/q/w"):
        read(tmp_path, (*ONE_BY_ONE, Row("more", "attn/q/w")))
    with pytest.raises(weights.MissingTensorError, match="no row for experts/up"):
        read(tmp_path, (*ONE_BY_ONE[:6], Either((ONE_BY_ONE[6:], (ONE_BY_ONE[6], ONE_BY_ONE[8])))))
    across = Row("qkv", ("attn/q/w", "attn/k/w", "attn/v/w"), TRANSPOSED, axis=-1)
    with pytest.raises(weights.WeightsError, match="one after the other along axis -1.*in the length of that axis"):
        read(tmp_path, (across, *ONE_BY_ONE[3:]))


def test_an_overflow_in_a_part_names_the_parameter(tmp_path):
    content = fused(one_by_one())
    content["layers.1.qkv.weight"][9, 3] = 1e30
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(weights.TensorRangeError, match=r"attn/k/w\[1\] has values up to 1e\+30"):
        load_params(tmp_path, DECLARATION, WeightTable(tuple(LAYOUTS["fused"][0])), jnp.float16)
