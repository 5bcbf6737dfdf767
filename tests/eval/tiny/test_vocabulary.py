"""The tokenizer of the embedded model as `transformers` loads it."""

import hashlib
import json
import subprocess
import sys

import jinja2
import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoTokenizer

from eval.tiny import pages
from eval.tiny.backbones import BACKBONES
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from eval.tiny.vocabulary import SPECIAL_TOKENS, VOCABULARY, build_tokenizer

PREAMBLE = ["<|im_start|>", "system", "you", "read", "pages", "<|im_end|>", "<|im_start|>", "user"]
PAGE = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
HEADER = ["<|im_end|>", "<|im_start|>", "assistant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(BACKBONES["gqa"].preprocessing))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def templated(tokenizer, messages, **options):
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


def test_ids_are_stable(tokenizer):
    assert len(VOCABULARY) == len(set(VOCABULARY)) == len(tokenizer) <= 160
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(VOCABULARY)}
    assert VOCABULARY[:9] == ("[UNK]", *SPECIAL_TOKENS)
    golden = {"<|im_end|>": 3, "<|image_pad|>": 7, "star": 9, "sword": 56, "red": 57, "pink": 64, "system": 65}
    assert {word: VOCABULARY.index(word) for word in golden} == golden
    assert hashlib.sha256(" ".join(VOCABULARY).encode()).hexdigest()[:16] == "2a152ed7ca9eeb62"


def test_names_are_single_tokens(tokenizer):
    for name in NAMES + COLOUR_NAMES:
        for text in (name, name.upper(), f"{name}."):
            assert tokenizer.encode(text)[0] == tokenizer.convert_tokens_to_ids(name) != tokenizer.unk_token_id
        assert len(tokenizer.encode(name)) == 1
        assert tokenizer.decode(tokenizer.encode(name)) == name


def test_special_tokens(tokenizer):
    assert tokenizer.is_fast
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<|endoftext|>", "<|im_end|>", "[UNK]")
    for token in SPECIAL_TOKENS:
        assert tokenizer.tokenize(f"red{token}red") == ["red", token, "red"]
    ids = tokenizer.encode("red<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "red"


@pytest.mark.parametrize(
    "text",
    [
        "what colour is the star?",
        "the star is red. the moon is blue; the sun, yellow.",
        "tell me, please: what is the colour of the hourglass?",
        pages.describe(pages.fact(0, 0)),
        pages.describe(pages.reference(0, 1)),
    ],
)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    if "→" not in text:
        assert tokenizer.decode(ids).replace(" :", ":").replace(" ;", ";") == text


def test_unknown_words_and_line_breaks(tokenizer):
    assert tokenizer.tokenize("What\ncolour\n\nis the XYLOPHONE ?") == ["what", "colour", "is", "the", "[UNK]", "?"]


def test_template(tokenizer):
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what colour is the star?"}]
    question = ["what", "colour", "is", "the", "star", "?"]
    tokens = templated(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)
    assert tokens == PREAMBLE + PAGE + PAGE + question + HEADER


def test_template_of_a_conversation(tokenizer):
    content = [{"type": "video"}, {"type": "text", "text": "red"}, {"type": "text", "text": "star"}]
    messages = [
        {"role": "system", "content": "look"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "yes."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nlook<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>red\nstar<|im_end|>\n"
        "<|im_start|>assistant\nyes.<|im_end|>\n"
    )
    with pytest.raises(jinja2.exceptions.TemplateError, match="expected image, video or text"):
        templated(tokenizer, [{"role": "user", "content": [{"type": "audio"}]}])


def test_image_processor(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    cells = np.arange(12).reshape(3, 4)
    batch = processor(images=pages.render(cells), return_tensors="np")
    np.testing.assert_array_equal(batch["image_grid_thw"], [[1, 6, 8]])
    # Each cell is four consecutive patches; channels, two equal frames and pixels follow.
    patches = np.asarray(batch["pixel_values"]).reshape(12, 2, 2, 3, 2, 14, 14)
    got = patches[:, :, :, :, 0].transpose(0, 1, 4, 2, 5, 3).reshape(12, 28, 28, 3)
    np.testing.assert_allclose(got, pages.all_cells()[:12] / 127.5 - 1, atol=1e-6)


def test_loads_without_torch(folder):
    script = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from transformers import AutoImageProcessor, AutoTokenizer
assert AutoTokenizer.from_pretrained({str(folder)!r}).encode("red")
print(type(AutoImageProcessor.from_pretrained({str(folder)!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Qwen2VLImageProcessorPil"
