"""GGUF files: what is read of them, held against llama.cpp's own reader, and what is refused."""

import json
import os
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from kamera_jax.rope import UnsupportedRopeError, spec_from_config
from models import load
from models.errors import MissingTensorError, UnexpectedTensorError
from models.hub.gguf import errors, file
from models.hub.gguf.convert import convert
from models.hub.gguf.file import GgufFile
from models.hub.gguf.metadata import FREQUENCIES, config_of
from models.hub.gguf.tensors import HubTensors
from models.hub.gguf.tokenizer import tokenizer_of
from models.hub.refusals import UnknownModelError
from models.hub.tensor_files import open_tensors
from tests.models.hub import gguf_files
from tests.models.hub.gguf_files import HEAD, HEADS, KV_HEADS, LAYERS, WIDTH, write

QUANTISED = [Kind.F32, Kind.F16, *gguf.quants._type_traits]
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hub_name(name):
    if name.startswith("blk."):
        _, layer, module, what = name.split(".")
        return f"model.layers.{layer}.{NAMES[module]}.{what}"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }[name]


def expected(path, interleaved):
    """The hub's tensors by llama.cpp's own reader: row 2i + h of a head is row i of its half h."""
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(tensor.name.split(".")[-2])
        if heads and interleaved:
            stored = values
            values = np.empty_like(stored)
            for head in range(heads):
                for half in range(2):
                    for i in range(HEAD // 2):
                        values[head * HEAD + half * HEAD // 2 + i] = stored[head * HEAD + 2 * i + half]
        tensors[hub_name(tensor.name)] = values
    return tensors


def same(left, right):
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert values.dtype == np.float32 and np.array_equal(values, right[name]), name


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_every_type_that_the_package_dequantises(tmp_path, kind):
    path = write(tmp_path / "a.gguf", kind=kind)
    same(dict(open_tensors(convert(path, tmp_path / "hub"))), expected(path, True))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_put_back_in_llama_alone(tmp_path, arch, tied):
    path = write(tmp_path / "a.gguf", arch, Kind.Q4_K, tied=tied)
    folder = convert(path, tmp_path / "hub")
    same(dict(open_tensors(folder)), expected(path, arch == "llama"))
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied and config["dtype"] == "float32"
    assert config["model_type"] == arch and config["head_dim"] == HEAD and config["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("alignment", [8, 256, 4096])
def test_tensors_may_be_aligned_otherwise(tmp_path, alignment):
    path = write(tmp_path / "a.gguf", kind=Kind.Q4_0, alignment=alignment)
    same(dict(open_tensors(convert(path, tmp_path / "hub"))), expected(path, True))


def test_biases_of_llama_are_put_back_too(tmp_path):
    path = write(tmp_path / "a.gguf", biases=True)
    folder = convert(path, tmp_path / "hub")
    same(dict(open_tensors(folder)), expected(path, True))
    assert json.loads((folder / "config.json").read_text())["attention_bias"] is True


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    with pytest.raises(FileExistsError, match="expected a new one"):
        convert(path, taken)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(HubTensors, "__getitem__", fail)
    with pytest.raises(OSError, match="no space"):
        convert(path, tmp_path / "hub")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.gguf", "taken"]


def read(path):
    """All of a file but the values of its tensors."""
    source = GgufFile(path)
    tensors = HubTensors(source, config_of(source))
    return source, tensors, tokenizer_of(source)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("whole") / "whole.gguf", kind=Kind.Q4_1)
    return path.read_bytes()


def refused(tmp_path, content, error, *words, name="a.gguf"):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error) as raised:
        read(path)
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, errors.GgufError)
    assert all(word in str(raised.value) for word in (str(path), *words)), str(raised.value)
    with pytest.raises(error):
        convert(path, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_file_cut_anywhere(tmp_path, whole):
    start = min(info.start for info in read_tensors(tmp_path, whole).values())
    path = tmp_path / "whole.gguf"
    for cut in (len(whole) - 40, len(whole) // 2, start + 1, start, *range(start - 1, 3, -start // 60)):
        os.truncate(path, cut)
        with pytest.raises(errors.TruncatedGgufError, match="fetch the file again"):
            GgufFile(path)


def read_tensors(tmp_path, whole):
    (tmp_path / "whole.gguf").write_bytes(whole)
    return GgufFile(tmp_path / "whole.gguf").tensors


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(64), b"ggjt" + bytes(64), b'{"a": 1}' + bytes(64)])
def test_what_is_no_gguf_file(tmp_path, content):
    refused(tmp_path, content, errors.NotGgufError, "GGUF", "b'GGUF'")


@pytest.mark.parametrize("version", [0x10001, 1, 4, 99])
def test_other_versions(tmp_path, whole, version):
    refused(
        tmp_path, whole[:4] + struct.pack("<I", version) + whole[8:], errors.GgufVersionError, str(version), "2 or 3"
    )


def test_version_2_is_read(tmp_path, whole):
    (tmp_path / "a.gguf").write_bytes(whole[:4] + struct.pack("<I", 2) + whole[8:])
    read(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["nothing.gguf", "a/b.gguf", "a/b/c.gguf"])
def test_files_that_are_not_there(tmp_path, name):
    with pytest.raises(UnknownModelError, match="no file"):
        load(tmp_path / name)
    with pytest.raises(UnknownModelError, match="no file"):
        load(name)
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(UnknownModelError, match="begins with"):
        load(tmp_path / "notes.txt")


def test_big_endian_files(tmp_path):
    path = write(tmp_path / "big.gguf", kind=Kind.F32, endian=gguf.GGUFEndian.BIG)
    refused(tmp_path, path.read_bytes(), errors.GgufByteOrderError, "big-endian", "gguf-convert-endian")


def replaced(whole, old, new):
    assert whole.count(old) == 1 and len(old) == len(new)
    return whole.replace(old, new)


def test_other_architectures(tmp_path, whole):
    content = replaced(whole, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma")
    refused(tmp_path, content, errors.UnknownGgufArchitectureError, "'gemma'", "qwen2")
    with pytest.raises(UnknownModelError):
        load(tmp_path / "a.gguf")


def entry(name, shape):
    """How a tensor is written in the header, up to its type."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return struct.pack("<Q", len(name)) + name.encode() + dims


KEY = entry("blk.1.attn_k.weight", (KV_HEADS * HEAD, WIDTH))


@pytest.mark.parametrize("kind", [4, 5, 31, 41, 1000, 9, 15, 24, 27, 28])
def test_types_that_are_not_dequantised(tmp_path, whole, kind):
    content = replaced(whole, KEY + struct.pack("<I", Kind.Q4_1), KEY + struct.pack("<I", kind))
    refused(tmp_path, content, errors.UnsupportedTensorTypeError, "blk.1.attn_k.weight", str(kind), "upgrade it")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((KV_HEADS * HEAD, WIDTH + 32), ["starts at byte"]),
        ((KV_HEADS * HEAD // 2, WIDTH), ["starts at byte"]),
        ((KV_HEADS * HEAD, WIDTH + 1), ["whole blocks", "Q4_1"]),
        ((KV_HEADS * HEAD * 2, WIDTH // 2), ["has the shape [128, 128]; expected [64, 256]"]),
        ((WIDTH, KV_HEADS * HEAD), ["has the shape [256, 64]; expected [64, 256]"]),
    ],
)
def test_a_tensor_whose_size_disagrees(tmp_path, whole, shape, words):
    content = replaced(whole, KEY, entry("blk.1.attn_k.weight", shape))
    refused(tmp_path, content, errors.GgufTensorSizeError, "fetch the file again", *words)


def test_tensors_that_are_missing_or_strange(tmp_path):
    path = write(tmp_path / "less.gguf", drop=("blk.1.attn_k.weight",))
    refused(tmp_path, path.read_bytes(), errors.MissingGgufTensorError, "lacks blk.1.attn_k.weight")
    path = write(tmp_path / "more.gguf", extra=[("blk.1.attn_k_norm.weight", np.ones(HEAD, np.float32))])
    refused(tmp_path, path.read_bytes(), errors.UnexpectedGgufTensorError, "has blk.1.attn_k_norm.weight")
    path = write(tmp_path / "tall.gguf", changed={"block_count": 2**31 - 1})
    refused(tmp_path, path.read_bytes(), errors.MissingGgufTensorError, "blk.2.")
    assert issubclass(errors.MissingGgufTensorError, MissingTensorError)
    assert issubclass(errors.UnexpectedGgufTensorError, UnexpectedTensorError)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"block_count": None}, "block_count"),
        ({"embedding_length": None}, "embedding_length"),
        ({"attention.head_count": 0}, "attention.head_count"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon"),
        ({"rope.dimension_count": HEAD // 2, "attention.key_length": HEAD}, "rotate whole heads"),
        ({"attention.value_length": HEAD * 2}, "attention.value_length"),
        ({"rope.scaling.type": "longrope"}, "'longrope'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 2.0}, "attn_factor"),
        ({"expert_count": 8}, "expert_count"),
        ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"attention.causal": False}, "attention.causal"),
        ({"context_length": "long"}, "context_length"),
    ],
)
def test_metadata_that_is_missing_unknown_or_not_served(tmp_path, changed, word):
    path = write(tmp_path / "odd.gguf", changed=changed)
    refused(tmp_path, path.read_bytes(), errors.GgufMetadataError, word)


def test_the_embedding_of_another_vocabulary(tmp_path):
    path = write(tmp_path / "odd.gguf", changed={"vocab_size": 421})
    refused(tmp_path, path.read_bytes(), errors.GgufTensorSizeError, "420 rows", "421")


def test_parts_of_a_split_model(tmp_path, whole):
    refused(tmp_path, whole, errors.SplitGgufError, "llama-gguf-split --merge", name="m-00001-of-00002.gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "part.gguf"), "llama")
    writer.add_uint16("split.count", 3)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    refused(tmp_path, (tmp_path / "part.gguf").read_bytes(), errors.SplitGgufError, "one part of a model")
    (tmp_path / "m-00001-of-00001.gguf").write_bytes(whole)
    read(tmp_path / "m-00001-of-00001.gguf")


def test_keys_and_tensors_that_are_there_twice(tmp_path, whole):
    twice = replaced(whole, b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id")
    refused(tmp_path, twice, errors.CorruptGgufError, "the key 'tokenizer.ggml.eos_token_id' twice")
    twice = replaced(whole, b"blk.0.attn_k.weight", b"blk.0.attn_v.weight")
    refused(tmp_path, twice, errors.CorruptGgufError, "'blk.0.attn_v.weight' twice")


def test_no_flipped_byte_of_a_header_does_anything_but_a_named_error(tmp_path, whole):
    """What is read in spite of it is another model or tokenizer, or the same."""
    random = np.random.default_rng(0)
    start = min(info.start for info in read_tensors(tmp_path, whole).values())
    keys = whole.index(b"tokenizer.ggml.tokens")
    end = whole.index(b"tokenizer.ggml.eos_token_id")
    places = [*random.integers(4, keys + 60, 80), *random.integers(keys, end, 20), *random.integers(end, start, 100)]
    refusals = 0
    with (tmp_path / "whole.gguf").open("r+b") as flipped:
        for place in map(int, places):
            flipped.seek(place)
            flipped.write(bytes([whole[place] ^ 1 << int(random.integers(8))]))
            flipped.flush()
            try:
                read(tmp_path / "whole.gguf")
            except ValueError as error:
                assert isinstance(error, errors.GgufError), (place, type(error), str(error))
                refusals += 1
            flipped.seek(place)
            flipped.write(whole[place : place + 1])
    assert refusals > 80


def test_the_package_is_named_where_it_is_missing(tmp_path, whole, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(whole)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    for cached in (file._package, file._row):
        cached.cache_clear()
    with pytest.raises(errors.GgufPackageError, match=r'pip install "kamera-jax\[gguf\]"'):
        GgufFile(tmp_path / "a.gguf")


def llama3(head_dim, theta, factor, original, low=1.0, high=4.0):
    """As llama.cpp's converter writes the factors."""
    factors = []
    for freq in 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim):
        wavelength = 2 * np.pi / freq
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


@pytest.mark.parametrize(
    ("theta", "factor", "original"), [(500000.0, 8.0, 8192), (500000.0, 32.0, 8192), (10000.0, 4.0, 2048)]
)
def test_the_frequencies_of_llama_3_1(tmp_path, theta, factor, original):
    factors = llama3(HEAD, theta, factor, original)
    path = write(
        tmp_path / "a.gguf",
        extra=[(FREQUENCIES, factors)],
        changed={"rope.freq_base": theta, "context_length": 131072},
    )
    source, tensors, _ = read(path)
    assert FREQUENCIES not in tensors.shapes and len(tensors.shapes) == 3 + 9 * LAYERS
    scaling = config_of(source)["rope_scaling"]
    assert scaling["rope_type"] == "llama3" and scaling["factor"] == factor
    spec = spec_from_config({**scaling, "rope_theta": theta}, head_dim=HEAD, max_positions=131072)
    plain = 1.0 / theta ** (np.arange(0, HEAD, 2, dtype=np.float64) / HEAD)
    np.testing.assert_allclose(spec.inv_freq, plain / factors, rtol=1e-5)


def test_frequencies_of_another_kind_are_refused(tmp_path):
    for factors in (np.linspace(1, 9, HEAD // 2, dtype=np.float32), np.full(HEAD // 2, np.nan, np.float32)):
        path = write(tmp_path / "odd.gguf", extra=[(FREQUENCIES, factors)])
        refused(tmp_path, path.read_bytes(), errors.GgufMetadataError, FREQUENCIES)
    path = write(tmp_path / "odd.gguf", extra=[(FREQUENCIES, np.ones(HEAD, np.float32))])
    refused(tmp_path, path.read_bytes(), errors.GgufMetadataError, f"expected {HEAD // 2}")
    path = write(tmp_path / "none.gguf", extra=[(FREQUENCIES, np.ones(HEAD // 2, np.float32))])
    assert "rope_scaling" not in config_of(GgufFile(path))


@pytest.mark.parametrize(
    ("changed", "scaling"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.finetuned": True,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_scaled_positions(tmp_path, changed, scaling):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", "qwen2", changed=changed)))
    assert config.get("rope_scaling") == scaling
    if scaling:
        spec_from_config({**scaling, "rope_theta": 1e4}, head_dim=HEAD, max_positions=512)
    with pytest.raises(UnsupportedRopeError):
        spec_from_config({"rope_type": "odd", "rope_theta": 1e4}, head_dim=HEAD, max_positions=512)


def test_a_sliding_window_is_mistrals(tmp_path):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", changed={"attention.sliding_window": 128})))
    assert config["model_type"] == "mistral" and config["sliding_window"] == 128 and "attention_bias" not in config


def test_the_head_width_may_be_its_own(tmp_path):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", changed={"attention.key_length": HEAD})))
    assert config["head_dim"] == HEAD
    config = config_of(GgufFile(write(tmp_path / "b.gguf", changed={"rope.dimension_count": None})))
    assert config["head_dim"] == WIDTH // HEADS
    assert gguf_files.HEAD * HEADS == WIDTH
