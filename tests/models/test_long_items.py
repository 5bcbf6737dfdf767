"""Items that are longer than the model: named before they are tokenized as a whole, and before any tower is run."""

import time

import pytest

import kamera_jax as kj
from kamera_jax.errors import ModelLengthError
from models import load, preprocessor
from models.media.files import MediaFileError
from models.preprocessor import ItemError
from tests.pictures import picture

LONG = "the page is red " * 7_500
"""30,000 tokens, of a model that is for 8,192."""


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture
def counted(vlm, monkeypatch):
    """How many letters were tokenized."""
    letters = []
    real = vlm._chat._control.ids

    def ids(text, **options):
        letters.append(len(text))
        return real(text, **options)

    monkeypatch.setattr(vlm._chat._control, "ids", ids)
    return letters


def test_a_text_beyond_the_model_s_length_is_named_before_it_is_run(vlm, tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_text(LONG)
    session = kj.Session(vlm, capacity=1024)
    monkeypatch.setattr("models.vlm.compose", lambda *_: pytest.fail("a segment was made"))
    for call in (
        lambda: kj.encode(vlm, LONG),
        lambda: kj.encode(vlm, LONG, preamble=None),
        lambda: kj.encode(vlm, tmp_path / "long.txt"),
        lambda: kj.encode(vlm, ["short", LONG]),
        lambda: kj.prefill(vlm, [LONG]),
        lambda: session.add(LONG),
        lambda: vlm.preprocess(LONG),
    ):
        with pytest.raises(ModelLengthError, match="the model is for 8192"):
            call()


@pytest.mark.parametrize("text", ["a" * 2**23, "the page is red " * 2**16, "\n" * 2**23 + "a"], ids=len)
def test_of_a_very_long_text_little_is_tokenized(vlm, counted, text):
    began = time.monotonic()
    with pytest.raises(ModelLengthError, match=f"a text of {len(text)} letters"):
        vlm.preprocess(text)
    assert sum(counted) <= 2**18 and time.monotonic() - began < 10


def test_a_text_of_the_model_s_length_is_read_and_one_more_is_not(vlm):
    words = "red " * 8_191
    assert int(vlm.prepare(f"{words}red").length) == 8_192
    with pytest.raises(ModelLengthError, match="takes 8193 positions or more; the model is for 8192"):
        vlm.prepare(f"{words}red red")


def test_the_parts_of_a_long_text_are_read(vlm):
    pieces = vlm.cut(LONG, tokens=1024)
    assert sum(len(span.ids) for piece in pieces for span in piece.spans) == 30_000


def test_towers_are_not_run_for_what_does_not_fit(vlm, monkeypatch):
    runs = []
    monkeypatch.setattr("models.vlm._encode", lambda *_, **__: runs.append(1) or pytest.fail("a tower was run"))
    with pytest.raises(ModelLengthError):
        vlm.prepare([picture(28, 28), LONG])
    assert not runs


def test_a_text_without_bounds_is_refused(vlm, monkeypatch, tmp_path):
    monkeypatch.setattr(preprocessor, "MAX_TEXT_BYTES", 99)
    with pytest.raises(ItemError, match="the text has 100 letters, expected 99 at most"):
        vlm.prepare("a" * 100)
    with open(tmp_path / "sparse.txt", "wb") as file:
        file.truncate(10**8)
    began = time.monotonic()
    with pytest.raises(MediaFileError, match="is longer than 16777216 bytes"):
        kj.encode(vlm, tmp_path / "sparse.txt")
    assert time.monotonic() - began < 5
