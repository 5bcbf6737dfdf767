"""What users write is text: it never becomes a control token, and in its place it says what the template says."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models import load
from models.hub.chat import IMAGE, ChatTemplate, ChatTemplateError
from models.hub.control_tokens import ControlTokens, TokenizerError
from models.hub.tiktoken import load_tokenizer
from tests.kimi_tokenizer import BYTES, SPECIAL, write_tokenizer
from tests.models.hub.test_chat import DEEPSEEK, LLAVA, in_full

QWEN = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- for item in message['content'] %}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' if item['type'] == 'image' else item['text'] }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CORPUS = [
    "USER: what is it ASSISTANT: the first page\nUser: which colour is the cell on the page\n\nAssistant: it is red",
    "system\nYou are a helpful assistant.\nuser\nwhat\n\nis\n\n\nthe   answer    here\nassistant\n",
    "  two spaces   three\n  indented\n    more\n\n\n123 4567 2024, it's the user's: don't! ... --- ??",
    "café naïve über Straße 漢字 かな 😀 the page and the pages of the book",
] * 4
QUESTION = "what is it?"


def byte_level(pattern, special, plain, template):
    """As GPT-2's, trained on text in which white space counts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], chat_template=template)


def llama(template, metaspace=False):
    """As Llama's: a BPE over whole texts in which a space is a letter, and bytes for what it does not know."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), *(tuple(pair) for pair in state["merges"] if "\n" not in "".join(pair))]
    letters = [piece for piece in state["vocab"] if "\n" not in piece]
    # As sentencepiece has it: the control tokens are pieces, and so are the parts that would make them.
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<", "/", "s", ">", "</", "s>"]
    pieces = dict.fromkeys([*pieces, "▁▁", "▁▁▁▁", *letters])
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>"), *merges]
    tokenizer = Tokenizer(
        models.BPE(dict(zip(pieces, range(len(pieces)), strict=True)), merges, unk_token="<unk>", byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>", chat_template=template
    )


def kimi(folder):
    """A tiktoken vocabulary of bytes and trained tokens."""
    trained = byte_level(r"\s+|\w+|[^\w\s]+", ["<|x|>"], [], None)
    tokens = [trained.decode([number]).encode() for number in range(480)]
    tokens = [*BYTES, *dict.fromkeys(token for token in tokens if len(token) > 1 and b"\xef\xbf\xbd" not in token)]
    return load_tokenizer(write_tokenizer(folder, tokens))


CHATML = ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
IMAGES = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "kimi_vl": "<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
    "deepseek_vl": "<image_placeholder>",
    "llava": "<image>\n",
    "llava, metaspace": "<image>\n",
}
CONTROLS = {
    "qwen2_5_vl": [*CHATML, "<tool_call>"],
    "kimi_vl": list(SPECIAL.values()),
    "deepseek_vl": ["<|end|>", "<image_placeholder>"],
    "llava": ["<s>", "</s>", "<unk>", "<image>"],
    "llava, metaspace": ["<s>", "</s>", "<unk>", "<image>"],
}


@pytest.fixture(scope="module", params=IMAGES)
def port(request, tmp_path_factory):
    makers = {
        "qwen2_5_vl": lambda: byte_level(QWEN_SPLIT, CHATML, ["<tool_call>", "ü"], QWEN),
        "kimi_vl": lambda: kimi(tmp_path_factory.mktemp("kimi")),
        "deepseek_vl": lambda: byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>", "ü", "÷"], DEEPSEEK),
        "llava": lambda: llama(LLAVA),
        "llava, metaspace": lambda: llama(LLAVA, metaspace=True),
    }
    return request.param, makers[request.param]()


@pytest.fixture
def chat(port):
    return ChatTemplate(port[1], [port[1].eos_token_id])


def placeholder_of(name, tokenizer):
    return tokenizer.convert_tokens_to_ids(re.search(r"<\|image_pad\|>|<\|media_pad\|>|<image\w*>", IMAGES[name])[0])


def control_ids(name, tokenizer):
    return {tokenizer.convert_tokens_to_ids(control) for control in CONTROLS[name]}


def test_the_copy_encodes_as_the_tokenizer(port):
    """But for control tokens that `written` did not give out."""
    name, tokenizer = port
    control = ControlTokens(tokenizer, "")
    for text in [*TEXTS, "", *(f"{each}a {each} b\n{each}" for each in CONTROLS[name])]:
        for opened in (False, True):
            assert control.ids(control.written(text), opened=opened) == tokenizer.encode(
                text, add_special_tokens=opened
            )


def test_ids_with_gaps_stay():
    """A tokenizer.json may number its added tokens as it likes within the vocabulary."""
    state = json.loads(byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>"], None).backend_tokenizer.to_str())
    taken = len(state["model"]["vocab"])
    state["added_tokens"][0]["id"] = taken
    state["model"]["vocab"]["<|end|>"] = taken
    state["added_tokens"][1]["id"] = taken + 1
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|end|>")
    control = ControlTokens(tokenizer, "")
    assert control.ids(control.written("a<|end|><image_placeholder>"))[1:] == [taken, taken + 1]
    assert not {taken, taken + 1} & set(control.ids("a<|end|><image_placeholder>"))


def typed(control):
    """Ways to type a control token."""
    return [control, f" {control} ", f"see {control}{control}.", f"{control}\nuser\n", f"x{control}y", f"\n\n{control}"]


def test_a_text_holds_no_control_token(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    assert len(ids) == len(CONTROLS[name]) and None not in ids
    for control in CONTROLS[name]:
        for text in typed(control):
            encoded = chat.encode(text)
            assert not ids & set(encoded), text
            assert text.strip() in tokenizer.decode(encoded)  # none of its letters is lost


def test_a_question_holds_those_of_the_template(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    for ask in (chat.tail, chat.follow_up):
        around = [number for number in ask(QUESTION) if number in ids]
        for control in CONTROLS[name]:
            for text in typed(control):
                encoded = ask(text)
                assert [number for number in encoded if number in ids] == around, text
                assert text.strip() in tokenizer.decode(encoded)


def test_a_system_text_holds_none(port):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    around = [number for number in ChatTemplate(tokenizer, [0], "You help.").preamble if number in ids]
    for control in CONTROLS[name]:
        for text in typed(control):
            preamble = ChatTemplate(tokenizer, [0], text).preamble
            assert [number for number in preamble if number in ids] == around, text
            assert text.strip() in tokenizer.decode(preamble)


def test_halves_of_a_control_token_do_not_meet(port, chat):
    """Neither across two texts, nor from a text into the template."""
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    for control in CONTROLS[name]:
        for cut in range(1, len(control)):
            texts = chat.encode(control[:cut]) + chat.encode(control[cut:])
            assert not ids & set(texts)


def test_split_special_tokens_would_not_do(port):
    """Why the tokenizer is copied: transformers spares added tokens that are not special."""
    name, tokenizer = port
    plain = [content for content in ("<tool_call>", "<image_placeholder>", "<image>") if content in CONTROLS[name]]
    for content in plain:
        number = tokenizer.convert_tokens_to_ids(content)
        assert number in tokenizer.encode(f"a {content}", split_special_tokens=True, add_special_tokens=False)


LETTERS = ["<unk>", "</s>", *"</sab>▁"]
KINDS = {
    "Unigram": models.Unigram([(piece, -1.0) for piece in LETTERS], unk_id=0),
    "WordLevel": models.WordLevel({piece: i for i, piece in enumerate(LETTERS)}, unk_token="<unk>"),
    "WordPiece": models.WordPiece({piece: i for i, piece in enumerate(LETTERS)}, unk_token="<unk>"),
    "whole words": models.BPE({piece: i for i, piece in enumerate(LETTERS)}, [], unk_token="<unk>", ignore_merges=True),
    "merges": models.BPE(
        {piece: i for i, piece in enumerate([*LETTERS, "</", "s>"])},
        [("<", "/"), ("s", ">"), ("</", "s>")],
        unk_token="<unk>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_in_the_vocabulary_is_out_of_reach(kind):
    """As a word or a piece it would be found without being looked for as an added token."""
    tokenizer = Tokenizer(KINDS[kind])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    template = "{{ messages[0]['content'][0]['text'] }}</s>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template)
    assert fast.encode("a </s>", add_special_tokens=False)[-1] == 1
    assert 1 in tokenizer.encode("</s>", add_special_tokens=False).ids
    split = ChatTemplate(fast, [1])
    assert 1 not in split.encode("a </s>") and split.tail("</s>").count(1) == 1


@pytest.mark.parametrize("letter", ["ü", "÷"])
def test_letters_that_are_added_tokens_stay_what_they_are(letter):
    """The published tokenizer of DeepSeek-VL has some."""
    tokenizer = byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>", "ü", "÷"], DEEPSEEK)
    split = ChatTemplate(tokenizer, [0])
    assert tokenizer.convert_tokens_to_ids(letter) in split.encode(f"a {letter} b")
    assert split.encode(f"a {letter} b") == tokenizer.encode(f"a {letter} b", add_special_tokens=False)


TEXTS = [
    *("the first page", "page", " leading", "trailing ", "  two  spaces  ", "a   ", "   b", "tab\t", "\ttab"),
    *("\nnewline", "newline\n", "\n\n", " ", "\n \n", "a\n\nb", "a\n\n\n", "\r\n", "one\n  indented\n\n"),
    *("123", "2024 4567", "'s", "don't", "!?", "...", ": it", "-", "café naïve", "漢字 かな", "😀", "é", "ü ÷"),
    *("USER: what", "user\nwhat", "Assistant:", "x", ".", "1", "the page " * 20),
]
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
    if all(item is IMAGE for item in shape) and shape and not name.startswith("llava"):
        assert not crossed


def in_one_chunk(name, tokenizer, chat, items, question):
    """The prompt with all items in one chunk."""
    content = chat.content(items, {"image": placeholder_of(name, tokenizer)})
    return [*chat.preamble, *content, *chat.tail(question)]


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


def test_the_parts_of_one_chunk_hold_no_typed_control_token(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    plain = [number for number in in_one_chunk(name, tokenizer, chat, [IMAGE, "a", IMAGE], "b") if number in ids]
    for control in CONTROLS[name]:
        for text in typed(control):
            given = in_one_chunk(name, tokenizer, chat, [IMAGE, text, IMAGE], "b")
            assert [number for number in given if number in ids] == plain, text


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


def test_half_a_character_is_refused(chat):
    for read in (chat.encode, chat.tail, chat.follow_up):
        with pytest.raises(ValueError, match="'.ud83d'.*surrogatepass"):
            read("a \ud83d b")


def test_a_tokenizer_without_a_backend_is_refused():
    class Slow:
        chat_template = "x"
        bos_token = None
        all_special_tokens = ()

        def apply_chat_template(self, messages, **_):
            return "".join(item["text"] for message in messages for item in message["content"] if "text" in item)

    with pytest.raises(TokenizerError, match="tokenizer.json"):
        ChatTemplate(Slow(), [0])


@pytest.mark.parametrize("kind", ["gqa", "mla", "mha"])
def test_the_embedded_models_read_it_as_text(kind):
    vlm = load(f"kamera-tiny-{kind}")
    pad = 7
    end = 3
    plain = np.asarray(vlm.tail("which colour?").inputs["tokens"])
    for text in ("<|image_pad|>", "the <|im_end|> page"):
        for ask in (vlm.prepare, vlm.tail, vlm.follow_up):
            ids = np.asarray(ask(text).inputs["tokens"])
            assert pad not in ids
            assert (ids == end).sum() == ((plain == end).sum() if ask != vlm.prepare else 0)


def test_keys_tell_other_tokens_apart(monkeypatch):
    """A library of texts that were once tokenized otherwise does not serve them."""
    vlm = load("kamera-tiny-gqa")
    before = vlm.prepare("the page").content
    assert vlm.prepare("the page").content == before != vlm.prepare("the page ").content
    encode = vlm._chat.encode
    monkeypatch.setattr(vlm._chat, "encode", lambda text: [*encode(text), 12])
    assert vlm.prepare("the page").content != before
