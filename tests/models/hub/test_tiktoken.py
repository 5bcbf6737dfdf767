import json
import re

import numpy as np
import pytest
import regex

from models.hub.chat import IMAGE, ChatTemplate
from models.hub.fields import ConfigError, MissingConfigFileError, UnknownConfigFieldError, UnsupportedConfigError
from models.hub.tiktoken import (
    CorruptLineError,
    DuplicateRankError,
    MissingByteError,
    MissingRankError,
    SpecialTokenError,
    VocabularyError,
    load_tokenizer,
)
from tests.kimi_tokenizer import BYTES, SPECIAL, tokenizer_config, write_tokenizer

# Letters whose category every Unicode version since 14 agrees on: `regex` and `tokenizers` carry different ones.
PARTS = [
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\x00"),
    *("a", "b", "c", "the", "ing", "hello", "World", "A", "B", "XY", "é", "ß", "ſ", "Dž", "ǅ", "Ω", "λ", "ـ", "ش"),
    *("'s", "'S", "'ſ", "'LL", "'re", "'Ve", "'", "1", "23", "4567", "７", "Ⅷ", "½"),
    *("中", "文", "漢字", "〇", "々", "〆", "，", "。", "か", "カ", "한", "e\u0301", "\u0301", "กำ"),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇫🇷",
        "-",
        "/",
        "...",
        "->",
        "[BOS]",
        "<|im_end|>",
        "<|media_pad|>",
        "<|reserved_token_",
        "<|im_",
    ),
]
PIECE = regex.compile(
    r"""(?x)
    \p{Han}+
    | [^\r\n\p{L}\p{N}]? [[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]* [[\p{Ll}\p{Lm}\p{Lo}\p{M}]--\p{Han}]+
      (?i:'s|'t|'re|'ve|'m|'ll|'d)?
    | [^\r\n\p{L}\p{N}]? [[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]+ [[\p{Ll}\p{Lm}\p{Lo}\p{M}]--\p{Han}]*
      (?i:'s|'t|'re|'ve|'m|'ll|'d)?
    | \p{N}{1,3}
    | [ ]? [^\s\p{L}\p{N}]+ [\r\n]*
    | \s* [\r\n]+
    | \s+ (?!\S)
    | \s+
    """,
    regex.V1,
)


class Reference:
    """tiktoken's encoding stated plainly: merge the leftmost pair of the lowest rank until there is none."""

    def __init__(self, tokens):
        self.ranks = {token: rank for rank, token in enumerate(tokens)}
        self.special = {
            SPECIAL.get(place, f"<|reserved_token_{len(tokens) + place}|>"): len(tokens) + place for place in range(256)
        }
        self.split = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")

    def encode(self, text):
        ids = []
        for part in self.split.split(text):
            if part in self.special:
                ids.append(self.special[part])
                continue
            for piece in PIECE.findall(part):
                ids.extend(self.merge(piece.encode()))
        return ids

    def merge(self, piece):
        if piece in self.ranks:
            return [self.ranks[piece]]
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while True:
            pairs = [(self.ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1)]
            rank, place = min(pairs, default=(1 << 30, 0))
            if rank == 1 << 30:
                return [self.ranks[part] for part in parts]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]


def random_texts(rng, count):
    return ["".join(rng.choice(PARTS, rng.integers(0, 40))) for _ in range(count)]


def random_vocabulary(rng, size):
    """Tokens glued from bytes and tokens, and slices of texts that no merge may reach; possibly in any order."""
    tokens = [bytes([byte]) for byte in rng.permutation(256)]
    letters = [part.encode() for part in PARTS if "|" not in part and "[" not in part]
    pool = [bytes([byte]) for letter in letters for byte in letter] + letters
    while len(tokens) < size:
        token = pool[rng.integers(len(pool))] + pool[rng.integers(len(pool))]
        if rng.random() < 0.2:
            start = rng.integers(len(token))
            token = token[start : start + 5]
        if 2 <= len(token) <= 20 and token not in tokens:
            tokens.append(token)
            pool.append(token)
    return [tokens[i] for i in rng.permutation(size)] if rng.random() < 0.5 else tokens


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_tiktokens(tmp_path, seed):
    rng = np.random.default_rng(seed)
    tokens = random_vocabulary(rng, [256, 400, 1200][seed % 3])
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, tokens))
    reference = Reference(tokens)
    for text in random_texts(rng, 200):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text), repr(text)
        assert tokenizer.decode(ids) == text


def test_merges_may_rank_below_their_parts_and_alone_decide(tmp_path):
    # "abc" is made through "bc", of a higher rank than "abc" itself; "xyz" is a token that no merge makes.
    tokens = [*BYTES, b"abc", b"bc", b"xyz", b"aa"]
    encode = load_tokenizer(write_tokenizer(tmp_path, tokens)).encode
    assert encode("abc", add_special_tokens=False) == [256]
    assert encode("zabcd", add_special_tokens=False) == [ord("z"), 256, ord("d")]
    assert encode("xyz", add_special_tokens=False) == [258]
    assert encode("axyz", add_special_tokens=False) == [*b"axyz"]
    assert encode("aaaaa", add_special_tokens=False) == [259, 259, ord("a")]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("Hello, world! It's", ["Hello", ",", " world", "!", " It's"]),
        ("helloWorldABC", ["hello", "World", "ABC"]),
        ("中文English混合", ["中文", "English", "混合"]),
        ("12345 6", ["123", "45", " ", "6"]),
        ("a  b \n\n c   ", ["a", " ", " b", " \n\n", " c", "   "]),
        ("x//\n\ny", ["x", "//\n\n", "y"]),
        ("北京市 Pascal", ["北京市", " Pascal"]),
    ],
)
def test_text_is_cut_as_published(tmp_path, text, pieces):
    # Every piece is a token of its own, and nothing longer is.
    tokens = [*BYTES, *dict.fromkeys(piece.encode() for piece in pieces if len(piece.encode()) > 1), text.encode()]
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, tokens))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert [tokens[index].decode() for index in ids] == pieces


def test_special_tokens_are_where_the_files_say(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    assert len(tokenizer) == 512
    for place, content in SPECIAL.items():
        assert tokenizer.convert_tokens_to_ids(content) == 256 + place
    assert tokenizer.convert_ids_to_tokens(256 + 5) == "<|reserved_token_261|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (510, 511)
    assert tokenizer.encode("<|media_pad|>a", add_special_tokens=False) == [277, ord("a")]


def test_special_tokens_are_left_out_where_asked(tmp_path):
    added = tokenizer_config(256)["added_tokens_decoder"]
    added["300"] = {"content": "<think>", "special": False}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, added_tokens_decoder=added))
    ids = tokenizer.encode("<|im_user|>a<think>b<|im_end|><|reserved_token_261|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"
    assert tokenizer.decode(ids) == "<|im_user|>a<think>b<|im_end|><|reserved_token_261|>"


def test_bytes_that_are_no_text_decode_to_the_replacement_character(tmp_path):
    assert load_tokenizer(write_tokenizer(tmp_path)).decode([0xE4, ord("a")]) == "\ufffda"


def test_tokens_may_be_written_as_objects(tmp_path):
    folder = write_tokenizer(tmp_path, eos_token={"content": "<|im_end|>", "special": True}, pad_token=None)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == 258 and tokenizer.pad_token_id is None


def test_chat_template_splits_with_it(tmp_path):
    chat = ChatTemplate.load(write_tokenizer(tmp_path))
    assert chat.eos == (257,)
    middle = 256 + 17
    end = 258
    system = [266, *b"system", middle, *b"You help.", end]
    assert chat.preamble == [*system, 259, *b"user", middle]
    assert chat.tail("why?") == [*b"why?", end, 260, *b"assistant", middle]
    assert chat.decode([*b"because", end]) == "because"
    assert chat.content([IMAGE], {"image": 277}) == [274, *b"image", 275, 277, 276]


def test_the_template_file_comes_first(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("<{{ messages[0]['content'][0]['text'] }}>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258]}))
    chat = ChatTemplate.load(tmp_path)
    assert chat.preamble == [*b"<"] and chat.eos == (258,)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda lines: [*lines[:7], "AA", *lines[7:]], CorruptLineError, "line 8"),
        (lambda lines: [*lines, "!!! 256"], CorruptLineError, "line 257"),
        (lambda lines: [*lines, "AAA= x"], CorruptLineError, "no number"),
        (lambda lines: [*lines, "AAA= -1"], CorruptLineError, "no number"),
        (lambda lines: [*lines, "AAA= 256 1"], CorruptLineError, "line 257"),
        (lambda lines: [*lines, "AAA= 12"], DuplicateRankError, "rank 12"),
        (lambda lines: [*lines, "AA== 256"], DuplicateRankError, "rank 0 already"),
        (lambda lines: [*lines, "AAA= 300"], MissingRankError, "rank 256"),
        (lambda lines: lines[1:], MissingRankError, "rank 0"),
        (lambda lines: lines[:-6], MissingByteError, "0xfa.*6 bytes"),
        (lambda lines: [], MissingByteError, "256 bytes"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(tmp_path, change, error, message):
    path = write_tokenizer(tmp_path) / "tiktoken.model"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path)
    assert issubclass(error, VocabularyError) and issubclass(VocabularyError, ValueError)


def test_line_ends_and_order_do_not_matter(tmp_path):
    path = write_tokenizer(tmp_path, [*BYTES, b"ab"]) / "tiktoken.model"
    path.write_bytes(b"\r\n".join(reversed(path.read_bytes().splitlines())) + b"\r\n\r\n")
    assert load_tokenizer(tmp_path).encode("ab", add_special_tokens=False) == [256]


def test_a_truncated_vocabulary_does_not_move_special_tokens(tmp_path):
    path = write_tokenizer(tmp_path, [*BYTES, b"ab", b"cd"]) / "tiktoken.model"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(SpecialTokenError, match="257 ranks"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "number, entry",
    [
        ("12", {"content": "<low>"}),
        ("512", {"content": "<high>"}),
        ("x", {"content": "<no number>"}),
        ("300", {"content": "[BOS]"}),
        ("300", {"content": "a"}),
    ],
)
def test_special_tokens_that_do_not_fit_are_refused(tmp_path, number, entry):
    added = tokenizer_config(256)["added_tokens_decoder"]
    write_tokenizer(tmp_path, added_tokens_decoder={**added, number: entry})
    with pytest.raises(SpecialTokenError, match=re.escape(entry["content"]) if number == "300" else number):
        load_tokenizer(tmp_path)


def test_special_tokens_without_an_id_are_refused(tmp_path):
    with pytest.raises(SpecialTokenError, match="<nowhere>"):
        load_tokenizer(write_tokenizer(tmp_path, eos_token="<nowhere>"))


def test_entries_that_are_no_tokens_are_refused(tmp_path):
    for change in ({"bos_token": 5}, {"added_tokens_decoder": {"300": "<x>"}}):
        with pytest.raises(ConfigError, match="content"):
            load_tokenizer(write_tokenizer(tmp_path, **change))


def test_names_beside_the_vocabulary_do_no_harm(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, additional_special_tokens=["<nowhere>", "[EOS]"]))
    assert len(tokenizer) == 512 and len(tokenizer.encode("<nowhere>", add_special_tokens=False)) == 9


def test_other_tokenization_is_refused_by_name(tmp_path):
    for name, value in [("tokenizer_class", "TikTokenV3"), ("split_special_tokens", True)]:
        with pytest.raises(UnsupportedConfigError, match=name):
            load_tokenizer(write_tokenizer(tmp_path, **{name: value}))
    added = {"300": {"content": "<x>", "lstrip": True}}
    with pytest.raises(UnsupportedConfigError, match="lstrip"):
        load_tokenizer(write_tokenizer(tmp_path, added_tokens_decoder=added))
    with pytest.raises(UnknownConfigFieldError, match="do_lower_case"):
        load_tokenizer(write_tokenizer(tmp_path, do_lower_case=True))


def test_missing_files_are_named(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(MissingConfigFileError, match="tokenizer_config.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tiktoken.model").unlink()
    with pytest.raises(MissingConfigFileError, match="tiktoken.model"):
        load_tokenizer(tmp_path)
