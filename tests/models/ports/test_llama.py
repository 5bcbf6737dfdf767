"""Text-only language models from their folders, without torch: what they read, refuse and keep."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models import load
from models.blocks.params import is_info
from models.hub.weights import MissingTensorError, UnexpectedTensorError, save_params
from models.ports.llama.config import config_from_hf
from models.ports.llama.port import ARCHITECTURES
from models.preprocessor import ItemError

FIRST = "the first is the last."
SECOND = "two pages show the same glyph."
QUESTION = "which colour is the cell on the page?"
CAPACITY = 128
BASE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dtype": "float32",
}
KINDS = {
    "llama": {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 4096},
    "mistral": {"sliding_window": 64},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
}


def write(folder, kind, **fields):
    """A random model whose attention binds, as a hub folder."""
    mapping = {"model_type": kind, **BASE, **KINDS[kind], **fields}
    rng = np.random.default_rng(11)

    def leaf(info):
        size = {"fan_in": info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.1, "embedding": 0.5}
        return np.float32(info.init == "ones") + size.get(info.init, 0.1) * rng.standard_normal(info.shape, np.float32)

    config = config_from_hf(mapping)
    port = next(each for each in ARCHITECTURES if each.name == kind)
    params = jax.tree.map(leaf, port.declaration(config), is_leaf=is_info)
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(mapping))
    save_params(folder, params, port.weight_table(config), np.float32)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("hub") / request.param, request.param)


@pytest.fixture(scope="module")
def nope(tmp_path_factory):
    """Two of its four layers have no RoPE."""
    return load(write(tmp_path_factory.mktemp("hub") / "nope", "smollm3"))


def test_a_folder_without_preprocessing_is_loaded_and_asked(folder):
    vlm = load(folder)
    assert vlm.architecture.media == () and vlm.params.keys() == {"text"}
    session = kj.Session(vlm, capacity=CAPACITY, policy=kj.ReusePolicy(fallback="patch"))
    keys = [session.add(item) for item in (FIRST, [SECOND, FIRST])]
    assert len(set(keys)) == 2 and session.ask(QUESTION, max_new_tokens=3).tokens
    with pytest.raises(ItemError, match="reads text alone"):
        session.add(Image.new("RGB", (8, 8)))


def test_full_rank_patches_give_back_prefill_in_both_modes(folder):
    vlm = load(folder)
    reference = kj.query(vlm, kj.prefill(vlm, [FIRST, SECOND], capacity=CAPACITY // 2), QUESTION)
    chunks = [kj.encode(vlm, text) for text in (FIRST, SECOND)]
    patch = kj.form_patch(vlm, chunks[1], antecedents=chunks[:1], rank=1000)
    for mode in ("materialise", "in_place"):
        window = kj.append(kj.Window.empty(vlm, CAPACITY // 2, mode=mode), chunks[0])
        blind, patched = (kj.query(vlm, kj.append(window, chunks[1], each), QUESTION) for each in (None, patch))
        np.testing.assert_allclose(patched, reference, atol=2e-5 * float(np.abs(reference).max()))
        assert np.abs(blind - reference).max() > 1e-3


def test_tensors_are_those_of_the_configuration(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(MissingTensorError, match=name.replace(".", r"\.")):
        load(tmp_path)
    more = "model.layers.1.self_attn.sinks"
    save_file({**tensors, more: tensors[name]}, tmp_path / "model.safetensors")
    with pytest.raises(UnexpectedTensorError, match=more.replace(".", r"\.")):
        load(tmp_path)


def test_positions_past_a_sliding_window_are_refused(tmp_path):
    vlm = load(write(tmp_path, "mistral"))
    assert vlm.spec.max_positions == 64
    with pytest.raises(kj.ModelLengthError, match="64"):
        kj.prefill(vlm, [FIRST] * 12, capacity=256)


def test_chat_template_variables_and_system_text(folder):
    tail = load(folder).tail(QUESTION)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template + "{{ 'yes' if enable_thinking is defined else '' }}")
    try:
        asked = load(folder, chat_template_kwargs={"enable_thinking": False}, system="tell me")
    finally:
        (folder / "chat_template.jinja").write_text(template)
    assert int(asked.tail(QUESTION).length) == int(tail.length) + 1
    assert "tell me" in asked.decode(np.asarray(asked.preamble.inputs["tokens"]).tolist())


def test_keys_without_rope_stand_where_they_will(nope):
    spec = nope.spec
    assert spec.rope.unrotated == (1, 3)
    chunk = kj.encode(nope, FIRST)
    for mode in ("materialise", "in_place"):
        window = kj.append(kj.append(kj.Window.empty(nope, CAPACITY, mode=mode), kj.encode(nope, SECOND)), chunk)
        moved = kj.reorder(window, [1, 0])
        assert np.abs(kj.query(nope, moved, QUESTION) - kj.query(nope, window, QUESTION)).max() > 1e-4
        if mode == "materialise":
            rows = np.asarray(window.state.rot)[:, window.entries[1].slot :][:, : chunk.length]
            kept = np.asarray(chunk.kv.rot)[:, : chunk.length]
            assert [np.array_equal(*each) for each in zip(rows, kept, strict=True)] == [False, True, False, True]


def test_a_patch_is_not_stale_where_it_was_formed(nope):
    """In every layer, of which two have no RoPE: the queries of the sketch read what they read then."""
    chunks = [kj.encode(nope, text) for text in (FIRST, SECOND)]
    sketch = kj.SketchSpec(layers=(0, 1, 2, 3), tokens=4)
    patch = kj.form_patch(nope, chunks[1], antecedents=chunks[:1], rank=1000, sketch=sketch)
    for mode in ("materialise", "in_place"):
        window = kj.append(kj.Window.empty(nope, CAPACITY, mode=mode), chunks[0])
        assert kj.staleness(window, chunks[1], patch).change < 1e-4
        assert kj.staleness(kj.Window.empty(nope, CAPACITY, mode=mode), chunks[1], patch).change > 1e-2


def test_layers_without_rope_are_stored_and_named(nope, tmp_path):
    library = kj.ChunkLibrary.open(tmp_path / "lib", mode="a")
    chunk = kj.encode(nope, FIRST)
    key = library.put(chunk)
    assert library.get(key).spec == nope.spec and library.get(key).spec.rope.unrotated == (1, 3)
    turned = replace(nope.spec, rope=replace(nope.spec.rope, unrotated=()))
    assert nope.spec.differences(turned) == ("RoPE (unrotated)",)
    assert "unrotated" not in turned.rope.plain and nope.spec.rope.plain["unrotated"] == (1, 3)


def test_the_first_layers_alone(nope):
    cut = nope.leading(2)
    window = kj.prefill(cut, [FIRST], capacity=CAPACITY)
    whole = kj.prefill(nope, [FIRST], capacity=CAPACITY)
    np.testing.assert_array_equal(np.asarray(window.state.rot), np.asarray(whole.state.rot)[:2])
