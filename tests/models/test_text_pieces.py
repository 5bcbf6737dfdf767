"""Long texts as chunks, and what is said of texts that end in white space."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from models import load
from models.hub import borders
from models.hub.borders import TrailingSpaceWarning
from models.preprocessor import Preprocessed, PreprocessedError
from tests.models import tiny_ports
from tests.models.hub.test_text_chat import CASES

TEXT = "the page is red and the cell is blue. a star.\n\nwhat colour is the moon ? it is a red moon. " * 4


@pytest.fixture(scope="module", params=BACKBONES)
def vlm(request, tmp_path_factory):
    """An embedded model with random weights; its tokens are words, whatever white space there is."""
    return load(tiny_ports.write(tmp_path_factory.mktemp("hub") / request.param, request.param))


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """One with a byte-level tokenizer, as most language models have, and a template that copies texts."""
    folder = tiny_ports.write(tmp_path_factory.mktemp("hub") / "spaced", "mha")
    whole = load(folder)
    vlm = whole.with_params(whole.params, revision="spaced")
    from models.hub.chat import ChatTemplate

    tokenizer = CASES["SmolLM2"]
    chat = ChatTemplate(tokenizer, [tokenizer.eos_token_id], kinds=())
    vlm._chat = chat
    vlm.preprocess._chat = chat
    return vlm


def ids(segment):
    return np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()


@pytest.mark.parametrize("tokens", [1, 7, 32])
def test_a_long_text_is_several_chunks(vlm, tokens, tmp_path):
    parts = vlm.cut(TEXT, tokens=tokens)
    assert all(isinstance(part, Preprocessed) for part in parts) and "".join(part.text for part in parts) == TEXT
    segments = [vlm.prepare(part) for part in parts]
    assert [number for each in segments for number in ids(each)] == ids(vlm.prepare(TEXT))
    assert max(int(each.length) for each in segments) <= tokens < 2 * max(int(each.length) for each in segments)
    # Each is the text that it shows: of one content, and so of one key.
    assert [each.content for each in segments] == [vlm.prepare(part.text).content for part in parts]
    if tokens == 32:
        chunks = kj.encode_all(vlm, TEXT, tokens=tokens)
        assert [chunk.key for chunk in chunks] == [kj.encode(vlm, part.text).key for part in parts]
        path = tmp_path / "text.md"
        path.write_text(TEXT, encoding="utf-8")
        for same in (path, [TEXT], (path,)):
            assert [vlm.prepare(part).content for part in vlm.cut(same, tokens=tokens)] == [
                each.content for each in segments
            ]


def test_what_needs_no_cut_stays_what_it_is(vlm, tmp_path):
    for item in ("a red star.", ["a red star."], ["a star.", "a moon."]):
        (part,) = vlm.cut(item, tokens=64)
        assert part is item
    (part,) = vlm.cut(["a star."] * 9, tokens=2)  # what stands in one chunk is not cut
    assert part == ["a star."] * 9
    assert [chunk.key for chunk in kj.encode_all(vlm, "a red star.")] == [kj.encode(vlm, "a red star.").key]
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="the text is empty"):
            vlm.cut(empty, tokens=4)


def test_pieces_go_between_processes_and_to_no_other_model(vlm, spaced):
    *_, part = vlm.cut(TEXT, tokens=7)
    assert pickle.loads(pickle.dumps(part)).text == part.text
    assert vlm.cut(part, tokens=1) == (part,)
    if vlm.spec.layers == spaced.spec.layers and vlm.preprocess.identity != spaced.preprocess.identity:
        with pytest.raises(PreprocessedError):
            spaced.cut(part, tokens=1)


def test_a_text_that_ends_in_white_space_is_warned_of_once_a_place(spaced, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the page ", encoding="utf-8")
    items = ("the page ", "the cell ", ["the first", "the page "], path)
    for item in items:
        borders._WARNED.clear()
        with pytest.warns(TrailingSpaceWarning, match="move the white space to the beginning of the next text") as seen:
            spaced.prepare(item)
        assert [Path(each.filename) for each in seen] == [Path(__file__)] and len(seen) == 1
    with pytest.raises(TrailingSpaceWarning):
        spaced.prepare("the page ")  # tests take warnings for errors, and an error is no warning that was given
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for item in items:
            kj.encode(spaced, item)
            spaced.preprocess(item)
    assert len(seen) == 2 and {Path(each.filename) for each in seen} == {Path(__file__)}


def test_other_texts_are_not_warned_of(spaced, vlm):
    """Tests take warnings for errors."""
    for item in ("the page", " the page", "\n\nthe page", "the page\n", ["the page ", "the first"]):
        spaced.prepare(item)
    spaced.tail("what is it? ")
    spaced.follow_up("what is it? ")
    for item in ("the page ", "the page\n\n"):  # to whose tokens white space is nothing
        vlm.prepare(item)


def test_the_pieces_of_a_text_end_in_no_white_space(spaced):
    text = "The first page.\n\nIt is red, and so is the cell.   What is it?\n    an indented page" * 6
    parts = spaced.cut(text, tokens=11)
    segments = [spaced.prepare(part) for part in parts]
    assert [number for each in segments for number in ids(each)] == ids(spaced.prepare(text))
    assert "".join(part.text for part in parts) == text
    for part, segment in zip(parts, segments, strict=True):
        assert int(segment.length) <= 11 and ids(spaced.prepare(part.text)) == ids(segment)
    with pytest.warns(TrailingSpaceWarning) as seen:
        kj.encode_all(spaced, "the first page and " * 9, tokens=11)
    assert len(seen) == 1
