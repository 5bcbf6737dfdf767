"""Tokenizers of GGUF files: what they split and merge, and what is refused."""

import json
import re

import pytest
import regex
from gguf import GGMLQuantizationType as Kind
from tokenizers import Regex, pre_tokenizers

from models.hub.gguf import errors
from models.hub.gguf.convert import convert
from models.hub.gguf.file import GgufFile
from models.hub.gguf.pre_tokenizers import KINDS
from models.hub.gguf.tokenizer import tokenizer_of
from tests.models.hub.gguf_files import (
    CONTROL,
    TEMPLATE,
    TEXTS,
    add_byte_level,
    add_sentence_piece,
    byte_level,
    sentence_piece,
    write,
)

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
EXPRESSIONS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [WORDS],
    "smollm": [r"\p{N}", WORDS],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", WORDS, "[0-9][0-9][0-9]"],
    "llama-bpe": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}
"""As llama.cpp has them."""


def pieces(text, expressions):
    """Each expression cuts what the ones before left, into what it matches and what is between."""
    left = [text]
    for each in expressions:
        left = [part for piece in left for part in cut(piece, each)]
    return left


def cut(text, expression):
    at = 0
    for match in regex.finditer(expression, text):
        yield from filter(None, (text[at : match.start()], match.group()))
        at = match.end()
    yield from filter(None, [text[at:]])


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_texts_are_split_as_llama_cpp_does(pre):
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = KINDS[pre].build()
    for text in TEXTS:
        expected = [spelled.pre_tokenize_str(piece)[0][0] for piece in pieces(text, EXPRESSIONS[pre])]
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == expected, text


@pytest.mark.parametrize("pre", KINDS)
def test_every_kind_keeps_every_text(tmp_path, pre):
    tokenizer = tokenizer_of(GgufFile(write(tmp_path / "a.gguf", kind=Kind.F16, pre=pre)))
    tokens, _ = byte_level(pre)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() == len(tokens)
    assert [tokenizer.token_to_id(token) for token in tokens] == list(range(len(tokens)))


def test_merges_are_made_in_order_and_whole_words_first_in_llama_3(tmp_path):
    def unreachable(writer, pre):
        add_byte_level(writer, pre)
        values = writer.kv_data[0]
        # In place of the last token that is merged.
        values["tokenizer.ggml.tokens"].value = [*byte_level(pre)[0][: -len(CONTROL) - 1], "qzqz", *CONTROL]
        values["tokenizer.ggml.merges"].value = byte_level(pre)[1][:-1]

    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        path = tmp_path / f"{pre}.gguf"
        tokenizer = tokenizer_of(GgufFile(write(path, kind=Kind.F16, tokenizer=unreachable, pre=pre)))
        assert (tokenizer.encode("qzqz", add_special_tokens=False).tokens == ["qzqz"]) is whole


@pytest.mark.parametrize(
    ("pre", "bos", "opened"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("qwen2", True, True)],
)
def test_bos_opens_texts_where_the_file_or_the_kind_says_so(tmp_path, pre, bos, opened):
    source = GgufFile(write(tmp_path / "a.gguf", kind=Kind.F16, pre=pre, bos=bos))
    tokenizer = tokenizer_of(source)
    plain = tokenizer.encode("hello", add_special_tokens=False).ids
    number = source.metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizer.encode("hello").ids == ([number, *plain] if opened else plain)


def scored(text, tokens, scores):
    """SentencePiece's own procedure: merge the neighbours that make the token of the highest score, leftmost first."""
    rank = dict(zip(tokens, scores, strict=True))
    left = list(text)
    while True:
        found = [(-rank[a + b], i) for i, (a, b) in enumerate(zip(left, left[1:], strict=False)) if a + b in rank]
        if not found:
            break
        _, i = min(found)
        left[i : i + 2] = [left[i] + left[i + 1]]
    ids = {token: number for number, token in enumerate(tokens)}
    return [
        number
        for piece in left
        for number in ([ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()])
    ]


@pytest.mark.parametrize("space", [None, True, False])
def test_sentence_piece_merges_by_score_and_falls_back_to_bytes(tmp_path, space):
    tokens, scores, _ = sentence_piece()
    path = write(tmp_path / "a.gguf", kind=Kind.F16, tokenizer=add_sentence_piece, space=space)
    tokenizer = tokenizer_of(GgufFile(path))
    for text in TEXTS:
        if "<s>" in text:
            continue
        spelled = text.replace(" ", "▁")
        if space is not False and text and not spelled.startswith("▁"):
            spelled = "▁" + spelled
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == scored(spelled, tokens, scores), text
        assert tokenizer.encode(text).ids == [1, *ids]
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert decoded == (text if space is False else spelled.replace("▁", " ").removeprefix(" ")), text
    assert tokenizer.encode("a</s>b", add_special_tokens=False).tokens.count("</s>") == 1


def test_the_folder_says_what_ends_an_answer(tmp_path):
    folder = convert(write(tmp_path / "a.gguf", kind=Kind.F16), tmp_path / "hub")
    described = json.loads((folder / "tokenizer_config.json").read_text())
    assert described["chat_template"] == TEMPLATE and described["eos_token"] == "<|im_end|>"
    assert described["model_max_length"] == 512
    # The end of a turn by the metadata, and the end of a text by its name.
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [419, 417]}


def odd(**changed):
    """A byte-level tokenizer with other metadata; a key that is None is left out."""

    def add(writer):
        add_byte_level(writer)
        values = writer.kv_data[0]
        for name, value in changed.items():
            key = f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}"
            if value is None:
                del values[key]
            else:
                values[key].value = value

    return add


TOKENS, MERGES = byte_level("qwen2")


@pytest.mark.parametrize(
    ("changed", "error", "word"),
    [
        ({"pre": "martian"}, errors.UnknownPreTokenizerError, "the tokenizer.ggml.pre 'martian'"),
        ({"pre": None}, errors.UnknownPreTokenizerError, "no tokenizer.ggml.pre"),
        ({"pre": ""}, errors.UnknownPreTokenizerError, "''"),
        ({"model": "t5"}, errors.GgufTokenizerError, "'t5'"),
        ({"model": None}, errors.GgufTokenizerError, "None"),
        ({"tokens": None}, errors.GgufTokenizerError, "tokenizer.ggml.tokens"),
        ({"merges": None}, errors.GgufTokenizerError, "tokenizer.ggml.merges"),
        ({"merges": [*MERGES, "nospace"]}, errors.GgufTokenizerError, "'nospace'"),
        ({"merges": [*MERGES, "zzz yyy"]}, errors.GgufTokenizerError, "cannot be built"),
        ({"tokens": [TOKENS[0], *TOKENS[:-1]]}, errors.GgufTokenizerError, "twice"),
        ({"token_type": [1, 2]}, errors.GgufTokenizerError, "2 token types"),
        ({"token_type": None, "tokens": None}, errors.GgufTokenizerError, "tokenizer.ggml.tokens"),
        ({"eos_token_id": 420}, errors.GgufTokenizerError, "eos_token_id is 420"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path, changed, error, word):
    path = write(tmp_path / "a.gguf", kind=Kind.F16, tokenizer=odd(**changed))
    with pytest.raises(error, match=re.escape(word)) as raised:
        convert(path, tmp_path / "hub")
    assert isinstance(raised.value, ValueError) and str(path) in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == ["a.gguf"]


def test_sentence_piece_has_roles_that_the_file_need_not_name(tmp_path):
    def add(writer):
        add_sentence_piece(writer)
        for name in ("bos", "eos", "unknown"):
            del writer.kv_data[0][f"tokenizer.ggml.{name}_token_id"]

    sizes = {"vocab_size": len(sentence_piece()[0])}
    path = write(tmp_path / "a.gguf", kind=Kind.F16, tokenizer=add, changed=sizes, vocab=sizes["vocab_size"])
    described = json.loads((convert(path, tmp_path / "hub") / "tokenizer_config.json").read_text())
    assert [described[f"{role}_token"] for role in ("unk", "bos", "eos")] == ["<unk>", "<s>", "</s>"]
    assert described["add_bos_token"]


@pytest.mark.parametrize("scores", [None, [0.0], ["high"]])
def test_sentence_piece_without_scores(tmp_path, scores):
    def add(writer):
        add_sentence_piece(writer)
        if scores is None:
            del writer.kv_data[0]["tokenizer.ggml.scores"]
        else:
            writer.kv_data[0]["tokenizer.ggml.scores"].value = scores * (1 if scores == [0.0] else 420)

    sizes = {"vocab_size": len(sentence_piece()[0])}
    path = write(tmp_path / "a.gguf", kind=Kind.F16, tokenizer=add, changed=sizes)
    with pytest.raises(errors.GgufTokenizerError, match="a score for each"):
        tokenizer_of(GgufFile(path))


def test_every_expression_is_one():
    for kind in KINDS.values():
        for each in kind.splits:
            Regex(each)
            regex.compile(each)
