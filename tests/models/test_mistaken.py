"""What a user hands in that is no item, or a file's name where the file is meant."""

import base64
import warnings
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

import kamera_jax as kj
from models import load
from models.media.mistaken import PathAsTextWarning
from models.preprocessor import ItemError


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to stand in, with two files."""
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(tmp_path / "my star.png")
    (tmp_path / "notes").write_text("red star", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = ["china.jpg", "a/b/page.PNG", "./report.pdf", "clip.mp4", "notes.txt", " china.jpg ", "https://here/a.png"]
TEXTS = ["red star", "see page.png for that", "e.g.", "red.\nchina.jpg", "version 3.14", "a.b", "setup.py", "/", "."]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_looks_like_a_file_s_name_is_encoded_with_a_warning(vlm, here, name):
    with pytest.warns(PathAsTextWarning, match="looks like the name of a file, and is encoded as text") as caught:
        chunk = kj.encode(vlm, name)
    assert chunk.length and caught[0].filename == __file__
    expected = "download it first" if "://" in name else f"pathlib.Path({name.strip()!r})"
    assert expected in str(caught[0].message) and "PathAsTextWarning" in str(caught[0].message)


@pytest.mark.parametrize("name", ["my star.png", "notes"])
def test_a_text_that_names_a_file_that_is_there_is_encoded_with_a_warning(vlm, here, name):
    with pytest.warns(PathAsTextWarning, match="names a file, and is encoded as text"):
        kj.encode(vlm, name)
    with pytest.warns(PathAsTextWarning, match="names a file"):
        kj.encode(vlm, str(here / name))


@pytest.mark.parametrize(
    "add",
    [
        lambda vlm, name: kj.Session(vlm, 256).add(name),
        lambda vlm, name: kj.prefill(vlm, [name]),
        lambda vlm, name: kj.encode(vlm, [name, "what is this?"]),
        lambda vlm, name: kj.encode_all(vlm, name),
        lambda vlm, name: vlm.preprocess(name),
    ],
    ids=["session", "prefill", "parts", "encode_all", "preprocess"],
)
def test_it_is_said_wherever_items_are_taken(vlm, here, add):
    with pytest.warns(PathAsTextWarning, match=r"china\.jpg"):
        add(vlm, "china.jpg")


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_are_texts(vlm, here, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PathAsTextWarning)
        kj.encode(vlm, text)


def test_an_image_in_a_url_is_said_to_be_one(vlm):
    url = "data:image/png;base64," + base64.b64encode(bytes(30)).decode()
    with pytest.warns(PathAsTextWarning, match=r"data:image/png.*b64decode"):
        kj.encode(vlm, url)


def test_the_content_of_a_file_is_no_name(vlm, here):
    (here / "notes.txt").write_text("china.jpg", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PathAsTextWarning)
        kj.encode(vlm, here / "notes.txt")


def test_an_empty_file_is_named(vlm, here):
    (here / "empty.txt").write_bytes(b"")
    with pytest.raises(ItemError, match=r"empty\.txt: the text is empty"):
        kj.encode(vlm, here / "empty.txt")


def test_what_is_no_item_says_what_to_do(vlm):
    chunk = kj.encode(vlm, "red star")
    window = kj.append(kj.Window.empty(vlm, 128), chunk)
    patch = kj.form_patch(vlm, chunk, context=window)
    for item, message in {
        3: "of type int; this model reads text",
        None: "of type NoneType",
        b"\x89PNG": r"of type bytes.*PIL\.Image\.open\(io\.BytesIO\(data\)\)",
        PurePosixPath("a.png"): r"pathlib\.Path\(item\)",
        chunk: r"of type Chunk.*append\(window, chunk\)",
        patch: r"of type Patch.*append\(window, chunk, patch\)",
        window: r"of type Window.*generate\(vlm, window, question\)",
        vlm: r"the model stands first, as in encode\(vlm, item\)",
    }.items():
        with pytest.raises(ItemError, match=message):
            kj.encode(vlm, item)
