"""Small tokenizers of the kinds that the ports have, with their chat templates, and texts to try them with."""

import json
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.hub.tiktoken import load_tokenizer
from tests.internvl_files import NAMES, TEMPLATE
from tests.kimi_tokenizer import BYTES, SPECIAL, write_tokenizer
from tests.models.hub.test_chat import DEEPSEEK, LLAVA

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
    "internvl": "<IMG_CONTEXT>\n",
}
CONTROLS = {
    "qwen2_5_vl": [*CHATML, "<tool_call>"],
    "kimi_vl": list(SPECIAL.values()),
    "deepseek_vl": ["<|end|>", "<image_placeholder>"],
    "llava": ["<s>", "</s>", "<unk>", "<image>"],
    "llava, metaspace": ["<s>", "</s>", "<unk>", "<image>"],
    "internvl": ["<|im_end|>", "<|im_start|>", *NAMES.values()],
}

TEXTS = [
    *("the first page", "page", " leading", "trailing ", "  two  spaces  ", "a   ", "   b", "tab\t", "\ttab"),
    *("\nnewline", "newline\n", "\n\n", " ", "\n \n", "a\n\nb", "a\n\n\n", "\r\n", "one\n  indented\n\n"),
    *("123", "2024 4567", "'s", "don't", "!?", "...", ": it", "-", "café naïve", "漢字 かな", "😀", "é", "ü ÷"),
    *("USER: what", "user\nwhat", "Assistant:", "x", ".", "1", "the page " * 20),
]


def tokenizer_of(name, folder):
    """The tokenizer of a port, a key of `IMAGES`; what it reads from files is written to the folder."""
    makers = {
        "qwen2_5_vl": lambda: byte_level(QWEN_SPLIT, CHATML, ["<tool_call>", "ü"], QWEN),
        "kimi_vl": lambda: kimi(folder),
        "deepseek_vl": lambda: byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>", "ü", "÷"], DEEPSEEK),
        "llava": lambda: llama(LLAVA),
        "llava, metaspace": lambda: llama(LLAVA, metaspace=True),
        "internvl": lambda: byte_level(QWEN_SPLIT, CONTROLS["internvl"], ["<tool_call>", "ü"], TEMPLATE),
    }
    return makers[name]()


def placeholder_of(name, tokenizer):
    return tokenizer.convert_tokens_to_ids(re.search(r"<\|\w+_pad\|>|<image\w*>|<IMG_CONTEXT>", IMAGES[name])[0])


def control_ids(name, tokenizer):
    return {tokenizer.convert_tokens_to_ids(control) for control in CONTROLS[name]}


def in_one_chunk(name, tokenizer, chat, items, question):
    """The prompt with all items in one chunk."""
    content = chat.content(items, {"image": placeholder_of(name, tokenizer)})
    return [*chat.preamble, *content, *chat.tail(question)]
