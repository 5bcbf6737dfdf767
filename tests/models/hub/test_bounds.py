"""Model folders that ask for too much, or say what is not so: each with its own name."""

import json
import os
import shutil
import struct
import time

import ml_dtypes
import numpy as np
import pytest

from kamera_jax.errors import NonFiniteError
from models import load
from models.errors import ConfigError, MissingTensorError, NonFiniteWeightsError, UnsupportedConfigError, WeightsError
from models.hub.chat import ChatTemplateError
from models.hub.control_tokens import TokenizerError
from models.hub.files import DEEPEST
from models.hub.gguf.errors import CorruptGgufError, NotGgufError
from models.hub.gguf.file import GgufFile
from models.hub.refusals import UnknownModelError
from models.hub.tensor_files import CorruptFileError, MissingFileError, open_tensors, write_tensors
from models.hub.tokenizers import TokenizerFilesError
from models.registry import CHECKPOINTS


@pytest.fixture
def folder(tmp_path):
    """A copy of an embedded model's folder, whose files are links, as in the hub's cache."""
    place = tmp_path / "model"
    place.mkdir()
    for path in (CHECKPOINTS / "kamera-tiny-gqa").iterdir():
        os.symlink(path, place / path.name)
    return place


def put(folder, name, content):
    """A file of its own in place of a link."""
    (folder / name).unlink(missing_ok=True)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def refused(folder, error, match):
    """Loading fails with a named error in good time."""
    began = time.process_time()
    with pytest.raises(error, match=match):
        load(folder)
    assert time.process_time() - began < 10


def test_links_are_followed(folder):
    assert load(folder).fingerprint == load("kamera-tiny-gqa").fingerprint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "special_tokens_map.json"])
def test_pipes_do_not_block(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, ConfigError, "pipe")


def test_a_pipe_in_place_of_weights(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, (ConfigError, MissingFileError), "pipe|neither")
    os.mkfifo(folder / "model.gguf")
    refused(folder / "model.gguf", NotGgufError, "pipe")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json(folder, name, opening):
    put(folder, name, opening * 100_000)
    refused(folder, ConfigError, "not JSON")
    closing = "]" if opening == "[" else "1}"
    inner = (
        opening * DEEPEST + ("1" if opening == "[" else "") + ("1}" + "}" * (DEEPEST - 1) if closing == "1}" else "")
    )
    put(folder, name, '{"a": ' + (inner if opening != "[" else "[" * DEEPEST + "]" * DEEPEST) + "}")
    refused(folder, ConfigError, f"nested more than {DEEPEST} deep")


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 10**9}, {"head_dim": 10**9}, {"num_hidden_layers": True}])
def test_far_too_many_layers(folder, sizes):
    config = json.loads((folder / "config.json").read_text())
    section = config.get("text_config", config)
    section |= sizes
    put(folder, "config.json", config)
    refused(folder, (UnsupportedConfigError, MissingTensorError), "head_dim|num_hidden_layers")


def header(folder):
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put_header(folder, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    put(folder, "model.safetensors", len(text).to_bytes(8, "little") + text + data)


def test_tensors_that_overlap(folder):
    said, data = header(folder)
    one, other, *_ = (n for n in said if n != "__metadata__" and said[n]["data_offsets"][0])
    alike = next(n for n in said if n != one and n != "__metadata__" and said[n]["shape"] == said[one]["shape"])
    said[one]["data_offsets"] = said[alike]["data_offsets"]
    put_header(folder, said, data)
    refused(folder, CorruptFileError, "expected them from")


@pytest.mark.parametrize("value", [[1.0], [True], ["1"], [-1], [10**30, 0], "1", None])
def test_shapes_that_are_none(folder, value):
    said, data = header(folder)
    name = next(n for n in said if n != "__metadata__")
    said[name]["shape"] = value
    put_header(folder, said, data)
    refused(folder, CorruptFileError, "safetensors")


@pytest.mark.parametrize(
    "text", [b'{"a": Infinity}', b'{"a": NaN}', b'{"a": {}, "a": {}}', b"[" * 10**6, b"[]", b"\xff"]
)
def test_headers_that_are_none(folder, text):
    put_header(folder, text, b"")
    refused(folder, CorruptFileError, "safetensors")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "..", "", "a/b", "pipe"])
def test_shards_elsewhere(folder, shard):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    os.mkfifo(folder / "pipe.x")
    os.rename(folder / "pipe.x", folder / "pipe") if shard == "pipe" else os.unlink(folder / "pipe.x")
    (folder / "model.safetensors").unlink()
    put(folder, "model.safetensors.index.json", {"weight_map": {"a": shard}})
    with pytest.raises(WeightsError, match="names the shard"):
        open_tensors(folder)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(folder, dtype, value):
    """Whatever they are cast to; the largest and the smallest numbers are some."""
    from models.blocks.params import ParamInfo
    from models.hub.weights import Row, WeightTable, load_params

    table = WeightTable((Row("w", "w"),))
    largest = float(ml_dtypes.finfo(dtype).max)
    values = np.asarray([[0.0, -0.0, largest], [-largest, 1e-30, -1.0]], dtype)
    kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[np.dtype(dtype).name]
    write_tensors(folder.parent / "w", kind, {"w": (2, 3)}, [values])
    declared = {"w": ParamInfo((2, 3))}
    assert np.array_equal(np.asarray(load_params(folder.parent / "w", declared, table, dtype)["w"]), values)
    for place in np.ndindex(2, 3):
        broken = values.copy()
        broken[place] = value
        write_tensors(folder.parent / "w", kind, {"w": (2, 3)}, [broken])
        for wanted in (dtype, np.float32):
            with pytest.raises(NonFiniteWeightsError, match=r"w has 1 of 6 values that are NaN or infinite") as raised:
                load_params(folder.parent / "w", declared, table, wanted)
            assert isinstance(raised.value, NonFiniteError)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% for i in range(10**12) %}{% endfor %}", "too large"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "times; expected once"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% nothing %}", "nothing"),
        ("x" * 300_000, "characters"),
    ],
)
def test_templates_that_are_none(folder, template, match):
    put(folder, "chat_template.jinja", template)
    refused(folder, ChatTemplateError, match)


def test_vocabularies_that_are_none(folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    for changed, error, match in (
        ({"model": {}}, TokenizerFilesError, "cannot be read"),
        ({"model": {**whole["model"], "vocab": {f"t{n}": n for n in range(600_000)}}}, TokenizerFilesError, "600000"),
        ({"model": {**whole["model"], "vocab": {"x": 0}}}, (TokenizerFilesError, TokenizerError), "tokenizer"),
        ({"pre_tokenizer": {"type": "Nothing"}}, TokenizerFilesError, "cannot be read"),
    ):
        put(folder, "tokenizer.json", whole | changed)
        refused(folder, error, match)


def test_a_tokenizer_of_a_larger_model(folder):
    """Its ids are no rows of the embedding, where others would be read in their place."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    largest = max(each["id"] for each in whole["added_tokens"])
    for each in whole["added_tokens"]:
        if each["content"] == "<|im_start|>":
            each["id"] = 10**6
    whole["model"]["vocab"] = {
        name: 10**6 if name == "<|im_start|>" else number for name, number in whole["model"]["vocab"].items()
    }
    assert largest < 10**6
    put(folder, "tokenizer.json", whole)
    refused(folder, TokenizerError, "the token 1000000, and the model has 160")


def gguf(tmp_path, *parts):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + b"".join(parts))
    return path


def test_gguf_arrays_that_are_too_long(tmp_path):
    text = struct.pack("<Q", 1) + b"a"
    array = text + struct.pack("<I", 9)
    for body, match in (
        (array + struct.pack("<IQ", 9, 9_000_000) + struct.pack("<IQ", 4, 0) * 9_000_000, "at most"),
        (array + struct.pack("<IQ", 4, 2**62) + bytes(100), "goes on to|at most"),
        (text + struct.pack("<IQ", 8, 2**21) + b"x" * 2**21, "text of"),
    ):
        with pytest.raises(ValueError, match=match):
            GgufFile(gguf(tmp_path, struct.pack("<QQ", 0, 1), body))
    with pytest.raises(CorruptGgufError, match="tensors"):
        GgufFile(gguf(tmp_path, struct.pack("<QQ", 2**40, 0), bytes(100)))


@pytest.mark.parametrize("named", [".", "..", "/", "kamera-smol-vl", 7, None, "x" * 1000])
def test_a_tower_names_a_language_model_that_is_known(folder, named):
    put(folder, "config.json", {"model_type": "kamera_smol_vl", "language_model": named})
    refused(folder, (UnknownModelError, ConfigError), "language_model|language model|no model")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "a/" * 5000, "nothing/" + "x" * 1000])
def test_names_that_are_none(name):
    with pytest.raises(UnknownModelError, match="no model"):
        load(name)
