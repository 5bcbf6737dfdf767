"""What users write says in its place what the chat template says."""

import re
from itertools import pairwise

import numpy as np
import pytest

from models import load
from models.hub.chat import IMAGE, ChatTemplate, ChatTemplateError
from tests.models.hub.test_chat import in_full
from tests.models.hub.tokenizers_of_ports import (
    CHATML,
    IMAGES,
    QUESTION,
    QWEN,
    QWEN_SPLIT,
    TEXTS,
    byte_level,
    in_one_chunk,
    placeholder_of,
)

SHAPES = [[IMAGE], [IMAGE, IMAGE], [], ["t"], ["t", "t"], ["t", "t", "t"], [IMAGE, "t"], [IMAGE, IMAGE, "t", "t"]]
MIXED = [["t", IMAGE], ["t", IMAGE, "t"], [IMAGE, "t", IMAGE, "t", "t"], ["t", IMAGE, IMAGE]]


def spelled(name, tokenizer, items, question):
    """What the template writes of a message, and where in it each item and the question begin."""
    marks = [f"@@{place}@@" for place in range(len(items))]
    pairs = list(zip(items, marks, strict=True))
    content = [{"type": "image"} if item is IMAGE else {"type": "text", "text": mark} for item, mark in pairs]
    content.append({"type": "text", "text": "@@?@@"})
    messages = [{"role": "user", "content": content}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = {mark: item for item, mark in zip([*items, question], [*marks, "@@?@@"], strict=True)}
    text = ""
    borders = []
    for part in re.split(f"(@@.@@|{re.escape(IMAGES[name])})", whole):
        if part in texts or part == IMAGES[name]:
            borders.append(len(text))
        text += texts.get(part, part)
    assert len(borders) == len(items) + 1
    return text, borders


def reaches_across(spans, borders):
    return any(start < border < end for start, end in spans for border in borders)


def cuts(name, tokenizer, text, borders):
    """The runs of text that the tokenizer makes tokens of one by one, of text in pieces: (start, end) in the whole.

    Llama's takes all between two control tokens.
    """
    if name.startswith("llava"):
        return []
    spans = []
    added = tokenizer.get_added_vocab()
    for start, end in pairwise([0, *borders, len(text)]):
        for part in re.split(f"({'|'.join(map(re.escape, added))})", text[start:end]):
            if part and part not in added:
                cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(part)
                spans += [(start + a, start + b) for _, (a, b) in cut]
            start += len(part)
    return spans


def assert_says_the_same(name, tokenizer, chat, items, question):
    """The template's own tokens, if nothing reaches across a border; its text in any case."""
    placeholder = {"image": placeholder_of(name, tokenizer)}
    pieces = [chat.content([IMAGE], placeholder) if item is IMAGE else chat.encode(item) for item in items]
    given = [*chat.preamble, *(number for piece in pieces for number in piece), *chat.tail(question)]
    text, borders = spelled(name, tokenizer, items, question)
    opened = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    expected = tokenizer(text, add_special_tokens=not opened, return_offsets_mapping=True)
    assert tokenizer.decode(given) == tokenizer.decode(expected["input_ids"])
    if reaches_across(expected["offset_mapping"], borders):
        assert given != expected["input_ids"]
        return True
    if cuts(name, tokenizer, text, borders) == cuts(name, tokenizer, text, []):
        assert given == expected["input_ids"], (items, question)
    return False


@pytest.mark.parametrize("shape", range(len(SHAPES) + len(MIXED)))
def test_a_prompt_says_what_the_template_says(port, chat, shape):
    name, tokenizer = port
    shape = [*SHAPES, *MIXED][shape]
    if shape in MIXED and name.startswith("llava"):
        content = [{"type": "text", "text": "@"}, {"type": "image"}]
        whole = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        assert whole.index("<image>") < whole.index("@")  # its template puts images first, whatever comes first
        return
    rng = np.random.default_rng(0)
    crossed = 0
    for number, text in enumerate(TEXTS * 2):
        others = iter(rng.permutation(TEXTS).tolist())
        items = [IMAGE if item is IMAGE else text if i == 0 else next(others) for i, item in enumerate(shape)]
        question = text if number % 2 or not text.strip() else QUESTION
        crossed += assert_says_the_same(name, tokenizer, chat, items, question)
    if name == "kimi_vl" and not shape:
        assert not crossed  # its texts stand between control tokens
    if all(item is IMAGE for item in shape) and shape and not name.startswith(("llava", "internvl")):
        assert not crossed  # of these a line break follows an image, and joins another


@pytest.mark.parametrize("shape", [shape for shape in [*SHAPES, *MIXED] if shape], ids=str)
def test_the_parts_of_one_chunk_are_the_templates_tokens(port, chat, shape):
    """Only the chunk's own two borders are borders of tokens: between its parts there are none."""
    name, tokenizer = port
    rng = np.random.default_rng(1)
    compared = 0
    for text in TEXTS:
        others = iter([text, *rng.permutation(TEXTS).tolist()])
        items = [IMAGE if item is IMAGE else next(others) for item in shape]
        if len(items) == 1 and items[0] is not IMAGE and not chat.encode(items[0]):
            continue
        given = in_one_chunk(name, tokenizer, chat, items, QUESTION)
        whole, borders = spelled(name, tokenizer, items, QUESTION)
        around = [borders[0], borders[-1]]
        opened = tokenizer.bos_token is not None and whole.startswith(tokenizer.bos_token)
        expected = tokenizer(whole, add_special_tokens=not opened, return_offsets_mapping=True)
        assert tokenizer.decode(given) == tokenizer.decode(expected["input_ids"]), items
        crossed = reaches_across(expected["offset_mapping"], around)
        if not crossed and cuts(name, tokenizer, whole, around) == cuts(name, tokenizer, whole, []):
            assert given == expected["input_ids"], items
            compared += 1
    # Headers that end in a space, and a space behind every text, join the chunk's borders to what stands there.
    joined = name.startswith("llava") or (name == "deepseek_vl" and shape[0] is not IMAGE)
    assert compared >= len(TEXTS) // 4 or joined


def test_llavas_template_puts_the_images_of_a_chunk_first(port, chat):
    name, tokenizer = port
    if not name.startswith("llava"):
        return
    image = tokenizer.convert_tokens_to_ids("<image>")
    given = chat.content(["the first page", IMAGE, "page", IMAGE], {"image": image})
    assert tokenizer.decode(given).replace("<image> ", "<image>") == "<image>\n<image>\nthe first page page "
    assert [number for number, token in enumerate(given) if token == image][0] == 0


@pytest.mark.parametrize("images", [1, 2, 3])
def test_images_and_a_question_are_the_templates_tokens(port, chat, images):
    name, tokenizer = port
    for question in ("what is it?", " what?", "what? ", "the page\n\nwhat", "漢字", "2024", "don't"):
        assert not assert_says_the_same(name, tokenizer, chat, [IMAGE] * images, question)


def test_a_text_is_encoded_alike_wherever_it_stands(port, chat):
    """And the tokens are those it has within a turn, so that none begins as a text of its own would."""
    name, tokenizer = port
    for text in TEXTS:
        if "ü" in text and "ü" in tokenizer.get_added_vocab():
            continue  # which a byte-level decoder does not give back
        begins = [*chat.preamble, *chat.content([IMAGE], {"image": placeholder_of(name, tokenizer)})]
        said = tokenizer.decode([*begins, *chat.encode(text)]).removeprefix(tokenizer.decode(begins))
        parting = " " if name.startswith("llava") else ""
        assert said == text + parting


def test_the_system_text_is_the_templates(port):
    name, tokenizer = port
    for text in [text for text in TEXTS if text.strip()]:
        messages = [
            {"role": "system", "content": [{"type": "text", "text": text}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        ]
        split = ChatTemplate(tokenizer, [0], system=text)
        image = split.content([IMAGE], {"image": placeholder_of(name, tokenizer)})
        assert [*split.preamble, *image, *split.tail(QUESTION)] == in_full(tokenizer, messages)


def test_a_template_that_strips_texts_is_followed():
    strips = {"": QWEN, "trim": QWEN.replace("item['text'] }}", "item['text'] | trim }}")}
    strips["left"] = QWEN.replace("item['text'] }}", "item['text'].lstrip() }}")
    for template in strips.values():
        tokenizer = byte_level(QWEN_SPLIT, CHATML, [], template)
        split = ChatTemplate(tokenizer, [0], system="  You help.\n")
        messages = [
            {"role": "system", "content": [{"type": "text", "text": "  You help.\n"}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "  what is it? \n"}]},
        ]
        image = split.content([IMAGE], {"image": tokenizer.convert_tokens_to_ids("<|image_pad|>")})
        assert [*split.preamble, *image, *split.tail("  what is it? \n")] == in_full(tokenizer, messages)
    assert split.encode(" \n") == split.encode("") == []


def test_a_system_text_that_the_template_drops_is_refused():
    template = QWEN.replace("for message in messages", "for message in messages if message['role'] != 'system'")
    tokenizer = byte_level(QWEN_SPLIT, CHATML, [], template)
    with pytest.raises(ChatTemplateError, match="system's text 0 times"):
        ChatTemplate(tokenizer, [0], system="You help.")
    raising = "{{- raise_exception('no system') if messages[0]['role'] == 'system' }}" + QWEN
    with pytest.raises(ChatTemplateError, match="no system"):
        ChatTemplate(byte_level(QWEN_SPLIT, CHATML, [], raising), [0], system="You help.")


def test_keys_tell_other_tokens_apart(monkeypatch):
    """A library of texts that were once tokenized otherwise does not serve them."""
    vlm = load("kamera-tiny-gqa")
    before = vlm.prepare("the page").content
    assert vlm.prepare("the page").content == before != vlm.prepare("the page ").content
    encode = vlm._chat.encode
    monkeypatch.setattr(vlm._chat, "encode", lambda text: [*encode(text), 12])
    assert vlm.prepare("the page").content != before
