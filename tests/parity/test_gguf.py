"""GGUF files against transformers' own reader: tensors, configuration, tokens and logits."""

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import kamera_jax as kj
from models import load
from models.hub.gguf.convert import convert, hub_folder
from models.hub.gguf.packaged import packaged
from models.hub.tensor_files import open_tensors
from tests.models.hub.gguf_files import HEAD, TEXTS, add_byte_level, add_sentence_piece, write

pytestmark = pytest.mark.parity

KINDS = [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ2_XXS]


def theirs(path):
    """Its model by transformers, without the package accelerate, which its ``from_pretrained`` wants."""
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type == "qwen3":
        config.head_dim = HEAD  # which transformers does not read of this architecture
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    lacking, strange = model.load_state_dict(tensors, strict=False)
    assert not strange and set(lacking) <= {"lm_head.weight"}
    model.tie_weights()
    return model, tensors


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_tensors_are_equal(tmp_path, arch, kind):
    path = write(tmp_path / "a.gguf", arch, kind, tied=kind is Kind.Q8_0)
    own = dict(open_tensors(convert(path, tmp_path / "hub")))
    _, tensors = theirs(path)
    assert own.keys() == tensors.keys()
    for name, values in own.items():
        assert np.array_equal(values, tensors[name].numpy()), name


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_the_model_is_the_same(tmp_path, arch, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write(tmp_path / "a.gguf", arch, Kind.Q8_0)
    vlm = load(path)
    model, _ = theirs(path)
    read = transformers.AutoConfig.from_pretrained(convert(path, tmp_path / "hub"))
    for name in ("hidden_size", "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters"):
        if getattr(model.config, name, None) is not None:
            assert getattr(read, name) == getattr(model.config, name), name
    window = kj.append(kj.Window.empty(vlm, capacity=256), kj.encode(vlm, "a lazy dog, 12 years old"))
    question = vlm.tail("how old?")
    chunks = [vlm.preamble, vlm.prepare("a lazy dog, 12 years old"), question]
    ids = np.concatenate([np.asarray(each.inputs["tokens"])[: int(each.length)] for each in chunks])
    with torch.no_grad():
        expected = model(torch.tensor(ids[None], dtype=torch.long)).logits[0, -1].double().numpy()
    full = np.asarray(kj.query(vlm, kj.prefill(vlm, ["a lazy dog, 12 years old"]), "how old?"), np.float64)
    assert np.linalg.norm(full - expected) <= 1e-5 * np.linalg.norm(expected)
    assert np.isfinite(np.asarray(kj.query(vlm, window, "how old?"))).all()


def tokenizers(path, folder):
    given = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return given, transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def same_tokens(path, folder, texts=TEXTS):
    expected, own = tokenizers(path, folder)
    for text in texts:
        ids = own.encode(text, add_special_tokens=False)
        assert ids == expected.encode(text, add_special_tokens=False), text
        assert own.decode(ids) == expected.decode(ids), text
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "chat_template"):
        assert getattr(own, name) == getattr(expected, name), name
    turns = [{"role": "user", "content": "Hi 123"}]
    rendered = (each.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for each in (own, expected))
    assert next(rendered) == next(rendered)
    return own, expected


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "starcoder"])
def test_byte_level_tokens_are_equal(tmp_path, pre):
    path = write(tmp_path / "a.gguf", kind=Kind.F16, pre=pre, tokenizer=add_byte_level, bos=pre == "llama-bpe")
    own, expected = same_tokens(path, convert(path, tmp_path / "hub"))
    for text in TEXTS:
        if pre != "tekken":  # which llama.cpp opens with BOS where the file does not say, and transformers does not
            assert own.encode(text) == expected.encode(text), text


@pytest.mark.parametrize("space", [None, True])
def test_sentence_piece_tokens_are_equal(tmp_path, space):
    path = write(tmp_path / "a.gguf", kind=Kind.F16, tokenizer=add_sentence_piece, space=space)
    own, expected = same_tokens(path, convert(path, tmp_path / "hub"))
    assert all(own.encode(text) == expected.encode(text) for text in TEXTS)


def test_the_tokens_of_smollm2_are_equal():
    path = packaged("smollm2")
    with hub_folder(path) as folder:
        # transformers does not split digits of this kind, which ASCII's own merges do not show.
        same_tokens(path, folder, [text for text in TEXTS if not any(c.isnumeric() and c > "9" for c in text)])
