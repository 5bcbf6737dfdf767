import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.blocks.params import ParamInfo, init_params, linear, stacked
from models.hub import tensor_files, weights
from models.hub.weights import TRANSPOSED, Row, WeightTable, flattened_kernel, load_params, revision, save_params

DECLARATION = {
    "embed": linear(2 * 3 * 3, 4),
    "layers": stacked(3, {"norm": ParamInfo((4,)), "mlp": linear(4, 6, bias=True)}),
}
TABLE = WeightTable(
    rows=(
        Row("embed.weight", "embed/w", flattened_kernel((2, 3, 3))),
        Row("layers.{}.norm.weight", "layers/norm"),
        Row("layers.{}.mlp.weight", "layers/mlp/w", TRANSPOSED),
        Row("layers.{}.mlp.bias", "layers/mlp/b"),
    ),
    renames=((r"^model\.", ""),),
    copies=(("tied.weight", "layers.0.norm.weight"),),
    ignored=(r"rope\..*",),
)


def tensors(seed=0, dtype=np.float32):
    make = np.random.default_rng(seed).normal
    layers = {}
    for layer in range(3):
        layers[f"layers.{layer}.norm.weight"] = make(size=(4,)).astype(dtype)
        layers[f"layers.{layer}.mlp.weight"] = make(size=(6, 4)).astype(dtype)
        layers[f"layers.{layer}.mlp.bias"] = make(size=(6,)).astype(dtype)
    return {"embed.weight": make(size=(4, 2, 3, 3)).astype(dtype), **layers}


def write(folder, content):
    save_file(content, folder / "model.safetensors")
    return folder


def write_shards(folder, content, shards=2):
    files = [f"model-{i}.safetensors" for i in range(shards)]
    placed = {name: files[i % shards] for i, name in enumerate(content)}
    for file in files:
        save_file({name: content[name] for name in content if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def load(folder, dtype=jnp.float32):
    return load_params(folder, DECLARATION, TABLE, dtype)


def test_every_leaf_holds_its_tensors(tmp_path):
    content = tensors()
    params = load(write(tmp_path, content))
    np.testing.assert_array_equal(params["embed"]["w"], content["embed.weight"].reshape(4, -1).T)
    np.testing.assert_array_equal(params["layers"]["mlp"]["w"][1], content["layers.1.mlp.weight"].T)
    np.testing.assert_array_equal(params["layers"]["mlp"]["b"][2], content["layers.2.mlp.bias"])
    np.testing.assert_array_equal(params["layers"]["norm"][0], content["layers.0.norm.weight"])


def test_shards_and_other_spellings_are_the_same_model(tmp_path):
    content = tensors()
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one = load(write(tmp_path / "one", content))
    two = load(write_shards(tmp_path / "two", content))
    three = load(write(tmp_path / "three", {f"model.{name}": tensor for name, tensor in content.items()}))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    jax.tree.map(np.testing.assert_array_equal, one, three)
    assert revision(tmp_path / "one") == revision(tmp_path / "two")


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_casts_to_the_asked_dtype(tmp_path, stored, dtype):
    content = tensors(dtype=stored)
    params = load(write(tmp_path, content), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(
        np.asarray(params["layers"]["norm"][1]), content["layers.1.norm.weight"].astype(dtype)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_save_is_the_inverse_of_load(tmp_path, dtype):
    params = init_params(DECLARATION, jax.random.key(0), dtype)
    save_params(tmp_path / "new", params, TABLE, dtype)
    jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "new", dtype))
    stored = load_file(tmp_path / "new" / "model.safetensors")  # safetensors itself reads it
    assert {name: tensor.shape for name, tensor in stored.items()} == {n: t.shape for n, t in tensors().items()}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_saving_is_deterministic(tmp_path):
    params = init_params(DECLARATION, jax.random.key(0))
    for name in ("a", "b"):
        save_params(tmp_path / name, params, TABLE, jnp.float32)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_failed_save_leaves_what_was_there(tmp_path):
    params = init_params(DECLARATION, jax.random.key(0))
    save_params(tmp_path, params, TABLE, jnp.float32)
    before = (tmp_path / "model.safetensors").read_bytes()
    broken = {**params, "embed": {"w": np.array([["x"] * 4] * 18)}}
    with pytest.raises(ValueError):
        save_params(tmp_path, broken, TABLE, jnp.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_copies_and_buffers_may_be_there(tmp_path):
    content = tensors()
    extra = {"tied.weight": content["layers.0.norm.weight"].copy(), "rope.inv_freq": np.arange(3)}
    load(write(tmp_path, {**content, **extra}))
    with pytest.raises(weights.UnexpectedTensorError, match="tied.weight differs"):
        load(write(tmp_path, {**content, "tied.weight": content["layers.1.norm.weight"].copy()}))


def test_tensors_the_model_does_not_know(tmp_path):
    with pytest.raises(weights.UnexpectedTensorError, match="adapter.weight"):
        load(write(tmp_path, {**tensors(), "adapter.weight": np.ones(3)}))
    with pytest.raises(weights.UnexpectedTensorError, match="layers.3.norm.weight"):
        load(write(tmp_path, {**tensors(), "layers.3.norm.weight": np.ones(4)}))
    with pytest.raises(weights.UnexpectedTensorError, match="twice"):
        load(write(tmp_path, {**tensors(), "model.layers.0.norm.weight": np.ones(4)}))


def test_tensors_that_are_missing(tmp_path):
    content = tensors()
    del content["layers.1.mlp.bias"]
    with pytest.raises(weights.MissingTensorError, match="layers.1.mlp.bias"):
        load(write(tmp_path, content))


def test_tensors_of_another_shape_or_dtype(tmp_path):
    content = tensors()
    transposed = {**content, "layers.1.mlp.weight": np.ones((4, 6), np.float32)}
    with pytest.raises(weights.TensorShapeError, match=r"layers.1.mlp.weight is \[4, 6\]; .* \[6, 4\]"):
        load(write(tmp_path, transposed))
    quantised = {**content, "layers.1.mlp.weight": np.ones((6, 4), np.int8)}
    with pytest.raises(weights.TensorDtypeError, match="int8.*not quantised"):
        load(write(tmp_path, quantised))


def test_table_and_declaration_must_agree(tmp_path):
    write(tmp_path, tensors())
    with pytest.raises(weights.MissingTensorError, match="layers/mlp/b"):
        load_params(tmp_path, DECLARATION, WeightTable(TABLE.rows[:-1]), jnp.float32)
    with pytest.raises(weights.UnexpectedTensorError, match="head/w"):
        load_params(tmp_path, DECLARATION, WeightTable((*TABLE.rows, Row("head", "head/w"))), jnp.float32)
    with pytest.raises(weights.TensorDtypeError, match="int32"):
        save_params(tmp_path, init_params(DECLARATION, jax.random.key(0)), TABLE, jnp.int32)


def test_no_weights(tmp_path):
    with pytest.raises(tensor_files.MissingFileError, match="model.safetensors"):
        load(tmp_path)
    assert issubclass(tensor_files.MissingFileError, FileNotFoundError) and issubclass(
        tensor_files.MissingFileError, ValueError
    )


def test_missing_shard(tmp_path):
    write_shards(tmp_path, tensors())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(tensor_files.MissingFileError, match="model-1.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 8, 200, -1])
def test_truncated_file(tmp_path, kept):
    file = write(tmp_path, tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(tensor_files.TruncatedFileError, match="bytes"):
        load(tmp_path)
    with pytest.raises(tensor_files.TruncatedFileError):
        revision(tmp_path)


def test_longer_file(tmp_path):
    file = write(tmp_path, tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(tensor_files.CorruptFileError, match="only"):
        load(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F31", "shape": [0], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, 0], "data_offsets": [0, 0]}}',
    ],
)
def test_corrupt_header(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(tensor_files.CorruptFileError):
        load(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "not json",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": "../model-0.safetensors"}}',
        '{"weight_map": {"a": 1}}',
    ],
)
def test_corrupt_index(tmp_path, index):
    (write_shards(tmp_path, tensors()) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(tensor_files.CorruptFileError):
        load(tmp_path)


def test_index_and_shards_must_agree(tmp_path):
    index = write_shards(tmp_path, tensors()) / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**placed, "more": "model-0.safetensors"}}))
    with pytest.raises(tensor_files.CorruptFileError, match="more"):
        load(tmp_path)
    placed.pop("embed.weight")
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(tensor_files.CorruptFileError, match="embed.weight"):
        load(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_revision_sees_content_names_and_shapes(tmp_path, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(weights, "WHOLE_BYTES", 0)
    seen = set()
    base = tensors() | {"big": np.zeros(100_000, np.float32)}
    last = base | {"big": np.r_[np.zeros(99_999), 1].astype(np.float32)}
    bit = base | {"embed.weight": np.nextafter(base["embed.weight"], 9)}
    named = {name.replace("embed", "embedding"): tensor for name, tensor in base.items()}
    shaped = base | {"embed.weight": base["embed.weight"].reshape(2, 4, 3, 3)}
    rows = np.random.default_rng(3).standard_normal((300, 256)).astype(np.float32)
    moved = [rows, rows[::-1].copy(), np.roll(rows, 1, axis=1), rows.copy(), rows.copy()]
    moved[3][[7, 211]] = moved[3][[211, 7]]  # two rows of an embedding
    moved[4][123, 45] = np.nextafter(moved[4][123, 45], 9)  # one bit, in the middle of a page
    for content in (base, last, bit, named, shaped, tensors(seed=1), *(base | {"rows": each} for each in moved)):
        seen.add(revision(write(tmp_path, content)))
    assert len(seen) == 11
    assert all(len(each) == 64 for each in seen)
