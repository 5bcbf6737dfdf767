"""Corpora, and the passages that are cut from them: the same tokens as in the whole text, always the same passages."""

import platform
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.tasks.text import corpus
from eval.tasks.text.reader import BREAK, CorpusTooSmallError, Reader
from eval.tasks.tokens import ids_of
from kamera_jax.backbone import BackboneBase
from kamera_jax.kv import Segment
from models.hub.borders import TrailingSpaceWarning

WORDS = "a red star . a blue moon ? the tree of the sun , one two three flowers 12 345".split()


class Merges(BackboneBase):
    """Reads text as GPT-2's tokenizers do: white space splits it first, merges were learned from the text itself."""

    def __init__(self, texts):
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self.tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        self.tokenizer.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        )

    def prepare(self, text):
        ids = np.asarray(self.tokenizer.encode(text).ids, np.int32)
        return Segment({"tokens": ids}, np.zeros((1, len(ids)), np.float32), len(ids))

    def decode(self, tokens):
        return self.tokenizer.decode(list(tokens))


def text(rng, paragraphs):
    """Paragraphs of random words, some indented, some lines ending in spaces, breaks of several lines."""
    parts = []
    for _ in range(paragraphs):
        lines = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(rng.integers(1, 4))]
        indent = rng.choice(["", "   "])
        parts += [
            indent + (rng.choice(["", "  "]) + "\n" + indent).join(lines),
            rng.choice(["\n\n", "\n\n\n", " \n  \n"]),
        ]
    return "".join(parts) + "é 🙂\n"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [text(rng, 30) for _ in range(4)]


@pytest.fixture(scope="module")
def reader(texts):
    own = corpus._corpus("made up", iter(texts), {})
    return Reader(Merges(own.documents), own)


def test_ids_are_those_of_the_whole_document(reader):
    """A paragraph that is read with the breaks behind it, and not before, has other ids: a negative control."""
    for piece, document in zip(reader.documents, reader.corpus.documents, strict=True):
        assert piece.ids.tolist() == reader.ids(BREAK + document)
        assert piece.ids.tolist() != [i for part in document.split(BREAK) for i in reader.ids(part + BREAK)]
    assert reader.whole.ids.tolist() == [i for piece in reader.documents for i in piece.ids.tolist()]


def test_a_paragraph_begins_where_a_passage_needs_one(reader):
    beginnings = {part.lstrip()[:6] for document in reader.corpus.documents for part in document.split(BREAK)}
    passages = reader.passages(20, lead=5)
    assert len(passages) > 10 and all(len(passage) == 20 for passage in passages)
    for passage in passages:
        assert reader.text(passage[5:]).lstrip()[:6] in beginnings
        assert reader.text(passage[:5]).rstrip(" ").endswith("\n\n")


def test_passages_do_not_overlap_and_stay_in_their_document(reader):
    for across in (False, True):
        whole = ",".join(map(str, reader.whole.ids.tolist())) + ","
        place = 0
        for passage in reader.passages(17, across=across):
            text = ",".join(map(str, passage.tolist())) + ","
            place = whole.index(text, place) + len(text)
    longest = max(len(piece.ids) for piece in reader.documents)
    assert not reader.passages(longest + 1) and reader.passages(longest + 1, across=True)


def test_what_a_seed_draws_is_always_the_same(reader, texts):
    again = Reader(reader.vlm, corpus._corpus("made up", iter(texts), {}))
    first, second, other = (own.chosen(seed, 20) for own, seed in ((reader, 3), (again, 3), (reader, 4)))
    assert [each.tolist() for each in first] == [each.tolist() for each in second]
    assert [each.tolist() for each in first] != [each.tolist() for each in other]
    assert sorted(each.tolist() for each in first) == sorted(each.tolist() for each in other)


def test_a_corpus_that_is_too_small_says_how_much_there_is_and_how_much_is_needed(reader):
    there = len(reader.passages(40))
    reader.check(there, 40)
    tokens = len(reader.whole.ids)
    longest = max(len(piece.ids) for piece in reader.documents)
    with pytest.raises(
        CorpusTooSmallError,
        match=f"made up has {tokens} tokens .* 4 documents, and {there} passages of 40 tokens .*longest has {longest}"
        f".*{there + 1} passages, {40 * (there + 1)} tokens, are needed",
    ):
        reader.check(there + 1, 40)


def test_every_machine_has_the_built_in_corpora():
    pydoc = corpus.read("pydoc")
    assert len(pydoc.documents) > 50 and sum(map(len, pydoc.documents)) > 200_000
    assert pydoc.sources["python"] == platform.python_version() and len(pydoc.sources["sha256"]) == 64
    strings = corpus.read("docstrings")
    assert len(strings.documents) > 300 and min(map(len, strings.documents)) > 1000
    assert {"numpy", "jax"} <= strings.sources.keys()
    assert corpus._corpus("pydoc", corpus._topics(), {}).sources["sha256"] == pydoc.sources["sha256"]
    assert not any(line.endswith((" ", "\t")) for text in pydoc.documents for line in text.split("\n"))


def test_a_folder_of_texts_is_a_corpus(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "b.md").write_text("second \r\n\r\ntext\r\n", encoding="utf-8")
    (tmp_path / "below" / "a.TXT").write_text("thïrd", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first\n", encoding="utf-8")
    (tmp_path / "again.txt").write_text("first", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89")
    found = corpus.read(str(tmp_path))
    assert found.documents == ("first", "second\n\ntext", "thïrd")
    assert found.sources["documents"] == "3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no corpus .* neither pydoc nor docstrings, nor a folder"),
        ({}, r"has no .txt or .md files"),
        ({"a.txt": b" \n\n"}, "no text"),
        ({"a.txt": b"\xff\xfe\x00"}, r"a.txt cannot be read as a UTF-8 text"),
    ],
)
def test_folders_that_are_no_corpus_are_refused(tmp_path, content, message):
    folder = tmp_path / "texts"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(corpus.CorpusError, match=message):
        corpus.read(str(folder))


def test_a_token_that_is_no_text_by_itself_is_spelled_by_its_number(reader):
    ids = reader.ids("🙂")
    assert len(ids) > 1 and reader.spelling(ids[0]) == f"<token {ids[0]}>"
    assert reader.spelling(reader.ids("a")[0]) == "a"


def test_texts_that_are_cut_here_are_read_without_a_warning_of_their_ends():
    class Spaced:
        spec = params = fingerprint = preamble = eos = None

        def tail(self, text): ...
        def decode(self, tokens): ...
        def forward(self, params, segment, state, *, logits_at=None, collect=()): ...

        def prepare(self, text):
            if text != text.rstrip():
                warnings.warn("the text ends in white space", TrailingSpaceWarning, stacklevel=2)
            return SimpleNamespace(inputs={"tokens": np.array([len(text), 7, 0])}, length=2)

    assert ids_of(Spaced(), "a paragraph\n\n") == [13, 7]
