"""Dtypes by every name that people, numpy, JAX, torch and config.json give them; what cannot be kept is refused."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.dtypes import DtypeError, floating, named
from models import load
from models.blocks.params import ParamInfo, init_params
from models.hub.fields import UnsupportedConfigError
from models.hub.tensor_files import open_tensors
from models.hub.weights import (
    Row,
    TensorDtypeError,
    TensorRangeError,
    WeightTable,
    load_params,
    save_params,
    stored_dtype,
)
from tests.models import tiny_llava

SERVED = {
    "float32": ["float32", "f32", "fp32", "float", "single", "F32", "torch.float32", "f4", ">f4", np.float32],
    "bfloat16": ["bfloat16", "bf16", "BF16", " bf16 ", "torch.bfloat16", "jnp.bfloat16", jnp.bfloat16],
    "float16": ["float16", "f16", "fp16", "half", "Half", "torch.float16", "e", np.float16, jnp.float16],
}
SERVED["float32"] += [jnp.float32, np.dtype(np.float32), jnp.zeros(1).dtype]
SERVED["bfloat16"] += [ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)]

REFUSED = {
    "float64": ["float64", "f64", "double", "torch.float64", np.float64, jnp.float64, float, np.dtype(">f8")],
    "int8": ["int8", "torch.int8", np.int8, jnp.int8],
    "int64": [int, "int64"],
    "uint8": ["uint8", np.uint8],
    "bool": [bool, "bool", np.bool_],
    "complex64": ["complex64", "F", np.complex64],
    "complex128": [complex],
    "float8_e4m3fn": ["float8_e4m3fn", "torch.float8_e4m3fn", jnp.float8_e4m3fn],
    "float8_e5m2": ["float8_e5m2"],
}
NO_DTYPE = ["quantised", "", None, 3, pytest.param(object(), id="object"), [1], "float8", "torch."]


def spec(dtype):
    """A user's own backbone's."""
    return kj.KVSpec(1, 8, 8, 1, kj.RopeSpec((1.0,), 8), dtype, "model")


def flat(cases):
    return [(name, given) for name, each in cases.items() for given in each]


@pytest.mark.parametrize("name, given", flat(SERVED), ids=str)
def test_every_name_is_understood(name, given):
    assert floating(given) == named(given) == jnp.dtype(name)
    if isinstance(given, str):
        assert spec(given).dtype == name


@pytest.mark.parametrize("name, given", flat(REFUSED), ids=str)
def test_what_cannot_be_kept_is_refused_by_name(name, given):
    for use in (floating, spec) if isinstance(given, str) else (floating,):
        with pytest.raises(DtypeError, match=rf"is {name}, which .*; expected one of float32, bfloat16, float16"):
            use(given)


@pytest.mark.parametrize("given", NO_DTYPE, ids=str)
def test_what_is_no_dtype_is_refused(given):
    with pytest.raises(DtypeError, match="which is no dtype; expected one of float32, bfloat16, float16"):
        floating(given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava.write(tmp_path_factory.mktemp("hub") / "half", np.float16, dtype="float16")


def dtypes(vlm):
    found = {str(leaf.dtype) for leaf in jax.tree.leaves(vlm.params)}
    assert found == {vlm.spec.dtype} == {str(kj.encode(vlm, "red").kv.rot.dtype)}
    return vlm.spec.dtype


@pytest.mark.parametrize("given, name", [("bf16", "bfloat16"), ("half", "float16"), ("float", "float32")])
def test_models_are_loaded_by_short_names(folder, given, name):
    vlm = load(folder, dtype=given)
    assert dtypes(vlm) == name
    assert vlm.fingerprint == load(folder, dtype=name).fingerprint == load(folder, dtype=jnp.dtype(name)).fingerprint


def test_the_checkpoints_own_dtype_is_the_default(folder):
    assert dtypes(load(folder)) == dtypes(load(folder, dtype="auto")) == "float16"


@pytest.mark.parametrize("given", [np.float64, "double", "int8", bool, "complex64", "float8_e4m3fn", "quantised"])
def test_models_are_not_loaded_in_what_cannot_be_kept(folder, given):
    with pytest.raises(DtypeError, match="expected one of float32, bfloat16, float16"):
        load(folder, dtype=given)


def with_config(folder, path, **said):
    """The same weights under another config.json."""
    path.mkdir()
    for each in folder.iterdir():
        (path / each.name).symlink_to(each)
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps({**tiny_llava.CONFIG, **said}))
    return path


@pytest.mark.parametrize(
    "said, name",
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"dtype": "auto"}, "float16"),  # what the weights are stored in
        ({"dtype": None, "torch_dtype": "auto"}, "float16"),
        ({}, "float16"),
    ],
)
def test_config_json_says_it_in_every_spelling(folder, tmp_path, said, name):
    assert load(with_config(folder, tmp_path / "said", **said)).spec.dtype == name


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("said", ["float64", "torch.float64", "float8_e4m3fn", "int8", "bool", "complex64", "q4", 4])
def test_a_checkpoint_in_what_cannot_be_kept_is_refused_with_a_way_out(folder, tmp_path, field, said):
    other = with_config(folder, tmp_path / "said", **{field: said})
    with pytest.raises(UnsupportedConfigError, match=rf'config.json: {field} is .* load\(…, dtype="float32"\)'):
        load(other)
    assert load(other, dtype="fp32").spec.dtype == "float32"


def test_weights_stored_in_float64_are_not_narrowed_without_a_word(tmp_path):
    folder = tiny_llava.write(tmp_path / "wide", np.float64)
    assert stored_dtype(folder) == np.float64
    with pytest.raises(UnsupportedConfigError, match="most of the weights are stored in is float64, which would be"):
        load(folder)
    assert load(folder, dtype="f32").spec.dtype == "float32"


TABLE = WeightTable((Row("w", "w"), Row("b", "b")))
DECLARATION = {"w": ParamInfo((4, 3)), "b": ParamInfo((3,), "zeros", "float32")}


def test_parameters_are_made_saved_and_read_by_short_names(tmp_path):
    for given, name in (("bf16", "bfloat16"), ("half", "float16"), ("float", "float32")):
        params = init_params(DECLARATION, jax.random.key(0), given)
        assert str(params["w"].dtype) == name and params["b"].dtype == jnp.float32
        save_params(tmp_path / name, params, TABLE, given)
        assert {str(tensor.dtype) for tensor in open_tensors(tmp_path / name).values()} == {name}
        read = load_params(tmp_path / name, DECLARATION, TABLE, given)
        jax.tree.map(np.testing.assert_array_equal, read, params)
    for given in (np.float64, "int8", bool, "complex64", None):
        with pytest.raises(DtypeError):
            init_params(DECLARATION, jax.random.key(0), given)
        with pytest.raises(DtypeError):
            load_params(tmp_path / "float32", DECLARATION, TABLE, given)
    for given in ("int8", bool, None, "quantised"):
        with pytest.raises(TensorDtypeError, match="cannot store"):
            save_params(tmp_path / "other", params, TABLE, given)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stored, largest", [(np.float32, 1e5), (ml_dtypes.bfloat16, 7e4), (np.float64, 1e300)])
def test_weights_that_float16_does_not_reach_are_named(tmp_path, stored, largest):
    params = {"w": np.full((4, 3), 2.0), "b": np.zeros(3)}
    params["w"][1, 2] = -largest
    save_params(tmp_path, params, TABLE, stored)
    with pytest.raises(TensorRangeError, match=r"w has values up to .*, and float16 ends at 6\.55e\+04; use bfloat16"):
        load_params(tmp_path, DECLARATION, TABLE, "half")
    with pytest.raises(TensorRangeError, match="float16 ends at"):
        save_params(tmp_path / "half", params, TABLE, "half")
    assert not (tmp_path / "half" / "model.safetensors").exists()
    if stored != np.float64:
        assert np.isfinite(np.asarray(load_params(tmp_path, DECLARATION, TABLE, "f32")["w"])).all()
    params["w"][1, 2] = 65504
    save_params(tmp_path, params, TABLE, np.float32)
    assert load_params(tmp_path, DECLARATION, TABLE, "half")["w"][1, 2] == 65504
