"""Texts in pieces: together they are the text and its token ids, whatever the tokenizer, and none is too long."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tiny.vocabulary import build_tokenizer
from models.hub.borders import pieces
from models.hub.chat import ChatTemplate
from tests.models.hub.test_text_chat import CASES
from tests.models.hub.tokenizers_of_ports import CORPUS, IMAGES, TEXTS, tokenizer_of

WORDS = [
    "the",
    "page",
    "colour",
    "12345",
    "it's",
    "end.",
    "(a)",
    "漢字",
    "かな",
    "café",
    "e\u0301",
    "😀",
    "👩‍👩‍👧",
    "ü",
    "x" * 40,
    "aa" * 33,
]
SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\n    ", " \n\n ", "     ", "\u2003", ""]
LETTERS = "ab .,\n\t\r é漢😀1"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Chat templates by name, of all kinds of tokenizers."""
    made = {}
    for name in IMAGES:
        tokenizer = tokenizer_of(name, tmp_path_factory.mktemp("tokenizer"))
        made[name] = ChatTemplate(tokenizer, [tokenizer.eos_token_id])
    for name, tokenizer in CASES.items():
        made[name] = ChatTemplate(tokenizer, [tokenizer.eos_token_id], kinds=())
    folder = tmp_path_factory.mktemp("embedded")
    build_tokenizer(folder)
    made["embedded"] = ChatTemplate.load(folder)
    return made


NAMES = [*IMAGES, *CASES, "embedded"]

texts = st.one_of(
    st.lists(st.sampled_from(WORDS + SPACES), min_size=1, max_size=30).map("".join),
    st.text(LETTERS, min_size=1, max_size=60),
    st.text("\n \t\r\u3000", min_size=1, max_size=40),
    st.sampled_from([*TEXTS, *CORPUS]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
)


def check(chat, text, tokens):
    """The pieces of a text, which are what they should be."""
    whole = chat.encode(text)
    if not whole:
        return None
    cut = chat.cut(text, tokens)
    stripped = chat._strip(text)
    assert "".join(piece.text for piece in cut) == stripped and all(piece.text for piece in cut)
    assert [number for piece in cut for number in piece.ids] == whole and all(piece.ids for piece in cut)
    for number, piece in enumerate(cut):
        if number < len(cut) - 1:
            assert chat._in_turn(piece.text) == piece.ids  # what it has alone
        if len(piece.ids) > tokens:  # it cannot be cut
            for end in range(1, len(piece.text)):
                own = chat._in_turn(piece.text[:end])
                assert not 0 < len(own) <= tokens or own != piece.ids[: len(own)]
    return cut


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(text=texts, tokens=st.integers(1, 24))
def test_pieces_are_the_text_and_its_ids(chats, name, text, tokens):
    check(chats[name], text, tokens)


PROSE = (
    "The first page. It is red,\nand so is the cell (of 12).\n\nWhat is it? The answer:\n\n\n    an indented page\nend."
)


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_cut_before_white_space(chats, name):
    """No piece ends in white space but where the tokenizer joins a line break to what stands before it."""
    chat = chats[name]
    for tokens in range(8, 60, 3):
        cut = check(chat, PROSE * 3, tokens)
        assert len(cut) > 2 or len(chat.encode(PROSE * 3)) <= 2 * tokens
        for piece, following in zip(cut, cut[1:], strict=False):
            if chat._strip(" x") == " x":
                assert following.text[0].isspace() or piece.text[-1] in "\n" or len(piece.ids) > tokens // 2
            assert not piece.text.endswith(" ") or following.text[0].isspace()
            if piece.text[-1] == "\n":
                before = len(piece.text.rstrip())
                own = chat._in_turn(piece.text[:before])
                assert own != piece.ids[: len(own)] or following.text[0].isspace() or len(own) > tokens


def words(text):
    """A token a word, with the white space before it."""
    return [hash(each) for each in re.findall(r"\s*\S+|\s+$", text)]


def test_a_paragraph_break_in_the_second_half_is_taken():
    text = "a b c d e\n\nf g h i j k l\n\nm n\n\no p q r s t u v"
    assert [piece.text for piece in pieces(text, words(text), words, 8)] == [
        "a b c d e",
        "\n\nf g h i j k l",
        "\n\nm n\n\no p q r s t",  # the next break is too early
        " u v",
    ]
    assert [piece.text for piece in pieces("a b", words("a b"), words, 8)] == ["a b"]


def test_what_cannot_be_cut_stays_whole():
    """A tokenizer that makes one thing of a text has no borders."""

    def letters_of_the_whole(text):
        return [hash((len(text), i)) for i in range(len(text))]

    text = "a long text " * 100
    whole = letters_of_the_whole(text)
    (piece,) = pieces(text, whole, letters_of_the_whole, 8)
    assert (piece.text, piece.ids) == (text, whole)


def test_a_long_text_takes_few_looks():
    """As many letters as some readings of the whole, however long it is."""
    seen = []

    def counted(text):
        seen.append(len(text))
        return words(text)

    text = "word " * 20_000
    cut = pieces(text, words(text), counted, 256)
    assert len(cut) >= 20_000 // 256 and sum(seen) < 30 * len(text)


@pytest.mark.parametrize("name", NAMES)
def test_which_ends_are_joined_to_what_follows(chats, name):
    """Said of a text whose ids with a word behind it do not begin with its own, and of no other."""
    chat = chats[name]
    for text in [
        "the page",
        "the page.",
        " the page",
        "the page ",
        "the page\n",
        "the page\n\n",
        "the page.\n\n",
        "page\t",
        " ",
    ]:
        alone = chat.encode(text)
        joined = chat.encode(f"{text}answer")
        part = chat._parting or chat._strip(text) != text
        assert chat.ends_open(text) == (not part and joined[: len(alone)] != alone), text
    if name in ("deepseek_vl", "SmolLM2", "Qwen2.5", "Zephyr"):
        assert chat.ends_open("the page ") and not chat.ends_open("the page") and not chat.ends_open(" the page")
    if name == "embedded":
        assert not chat.ends_open("the page ")
