"""`kamera encode`: what a folder holds comes into a library once, however often it is asked for or interrupted."""

import json
import os

import numpy as np
import pytest
from PIL import Image

import kamera_jax as kj
from eval.commands import encode as command
from eval.commands.main import main
from eval.tiny import pages
from models import load
from tests.pictures import ENCRYPTED, PAGES, pdf, pdf_page, png_header


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, a text, and a PDF file of four pages, one of which is an image again."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(11)
    drawn = [pages.render(rng.integers(0, pages.N_CELLS, (2, 3))) for _ in range(6)]
    for i in range(3):
        drawn[i].save(folder / f"{i}.png")
    (folder / "note.md").write_text("the page is red")
    drawn[3].save(folder / "report.pdf", save_all=True, append_images=[drawn[4], drawn[5], drawn[4]], resolution=72)
    return folder


def encode(folder, library, out, *more):
    arguments = [str(folder), "--library", str(library), "--dpi", "72", "--json", str(out), *more]
    return main(["encode", *arguments])


def test_everything_comes_in_once_and_is_told(folder, tmp_path, capsys):
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    result = json.loads((tmp_path / "a.json").read_text())
    assert [item["name"] for item in result["items"]][-1] == "report.pdf, page 4"
    assert (result["encoded"], result["known"], result["failed"]) == (7, 1, 0)
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    vlm = load("kamera-tiny-gqa")
    assert {item["key"] for item in result["items"]} == set(library.keys())
    fresh = kj.encode(vlm, folder / "1.png")
    stored = library.get(fresh.key)
    assert np.array_equal(stored.kv.rot, fresh.kv.rot) and np.array_equal(stored.kv.free, fresh.kv.free)
    assert result["items"][1]["nbytes"] == fresh.nbytes and result["items"][1]["name"] == "1.png"
    assert encode(folder, tmp_path / "lib", tmp_path / "b.json") == 0
    again = json.loads((tmp_path / "b.json").read_text())
    assert (again["encoded"], again["known"]) == (0, 8)


def test_what_was_interrupted_goes_on(folder, tmp_path, monkeypatch, capsys):
    real = command.encode_segment
    count = []

    def interrupted(*arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(1)
        return real(*arguments)

    monkeypatch.setattr(command, "BATCH", 2)
    monkeypatch.setattr(command, "encode_segment", interrupted)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 130
    output = capsys.readouterr()
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["failed"], result["interrupted"]) == (3, 0, True)
    assert {item["key"] for item in result["items"]} == set(kj.ChunkLibrary.open(tmp_path / "lib").keys())
    assert output.err == f"interrupted: 3 of 8 items are in {tmp_path / 'lib'}\n" and "3 encoded" in output.out
    monkeypatch.setattr(command, "encode_segment", real)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["known"]) == (4, 4)  # one page is there twice
    assert kj.ChunkLibrary.open(tmp_path / "lib").verify().ok


@pytest.mark.parametrize("where", ["put_many", "lifetime"])
def test_an_interrupt_while_storing_or_timing_keeps_everything(folder, tmp_path, monkeypatch, capsys, where):
    calls = []
    owner = kj.ChunkLibrary if where == "put_many" else command
    real = getattr(owner, where)

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, where, interrupted)
    assert encode(folder / "note.md", tmp_path / "lib", tmp_path / "a.json") == 130
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["interrupted"], result["break_even"]) == (1, True, [])
    assert list(kj.ChunkLibrary.open(tmp_path / "lib").keys()) == [result["items"][0]["key"]]
    assert capsys.readouterr().err == f"interrupted: 1 of 1 items are in {tmp_path / 'lib'}\n"


def test_a_broken_file_is_named_and_the_others_go_on(folder, tmp_path, capsys):
    items = tmp_path / "items"
    items.mkdir()
    Image.open(folder / "0.png").save(items / "good.png")
    (items / "broken.png").write_bytes(b"no picture")
    assert encode(items, tmp_path / "lib", tmp_path / "a.json") == 1
    output = capsys.readouterr()
    assert "broken.png" in output.out and "Traceback" not in output.err
    assert len(kj.ChunkLibrary.open(tmp_path / "lib").keys()) == 1


def test_whatever_is_wrong_with_files_the_others_are_stored(folder, tmp_path, capsys):
    items = tmp_path / "items"
    items.mkdir()
    (items / "folder.pdf").mkdir()
    Image.open(folder / "0.png").save(items / "folder.pdf" / "good.png")
    Image.open(folder / "1.png").save(items / "z.png")
    (items / "bomb.png").write_bytes(png_header(50_000, 50_000))
    (items / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (items / "dangling.png").symlink_to(tmp_path / "nowhere")
    (items / "loop.png").symlink_to(items / "loop.png")
    (items / "device.txt").symlink_to("/dev/zero")
    (items / "long.txt").write_text("the page is red " * 10_000)
    os.mkfifo(items / "pipe.png")
    (items / "ring.pdf").write_bytes(pdf(PAGES, b"<</Type/Pages/Kids[2 0 R]/Count 1>>"))
    (items / "zero.pdf").write_bytes(pdf(PAGES, b"<</Type/Pages/Kids[]/Count 0>>"))
    locked = pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(100, 100))
    (items / "locked.pdf").write_bytes(locked.replace(b"/Root 1 0 R", b"/Root 1 0 R" + ENCRYPTED))
    (items / "huge.pdf").write_bytes(pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(14_400, 72)))
    with open(os.fsencode(items) + b"/a\xff\n.txt", "w") as file:
        file.write("the page is red")
    assert encode(items, tmp_path / "lib", tmp_path / "a.json") == 1
    result = json.loads((tmp_path / "a.json").read_text())
    status = {item["name"]: item["status"] for item in result["items"]}
    good = {"good.png", "z.png", "huge.pdf, page 1", "a\udcff\n.txt"}
    assert {name for name, each in status.items() if each == "encoded"} == good
    bad = {"folder.pdf", "bomb.png", "cut.png", "dangling.png", "loop.png", "device.txt", "long.txt", "pipe.png"}
    assert {name for name, each in status.items() if each == "failed"} == bad | {"ring.pdf, page 1", "zero.pdf"} | {
        "locked.pdf"
    }
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    assert {item["key"] for item in result["items"] if item["key"]} == set(library.keys()) and len(library.keys()) == 4
    output = capsys.readouterr()
    assert all(f"failed: {name}" in output.out for name in bad) and "11 of 15 items" in output.err
    assert "a\\udcff\\n.txt" in output.out and "Traceback" not in output.err


def test_a_library_that_fails_keeps_its_count(folder, tmp_path, monkeypatch, capsys):
    """As where its folder is moved away: what was put before is counted, and the rest is not tried."""
    real = kj.ChunkLibrary.put_many
    calls = []

    def put_many(self, chunks, **options):
        calls.append(len(chunks))
        if len(calls) == 2:
            raise OSError("gone")
        return real(self, chunks, **options)

    monkeypatch.setattr(command, "BATCH", 2)
    monkeypatch.setattr(kj.ChunkLibrary, "put_many", put_many)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 1
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["failed"]) == (2, 2) and calls == [2, 2]
    assert "takes no more (gone); 2 of 8 items are in it" in capsys.readouterr().err


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    rng = np.random.default_rng(12)
    path = tmp_path_factory.mktemp("film") / "film.tiff"
    drawn = [pages.render(rng.integers(0, pages.N_CELLS, (2, 3))) for _ in range(3)]
    drawn[0].save(path, save_all=True, append_images=drawn[1:])
    return path, drawn


def test_the_first_frame_is_read_and_that_is_said(film, tmp_path, capsys):
    path, drawn = film
    assert encode(path, tmp_path / "lib", tmp_path / "a.json") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "only the first of 3 frames is read, with --frames all each: film.tiff" in shown
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["frames_left_out"] == {str(path): 2} and [item["name"] for item in result["items"]] == ["film.tiff"]
    assert result["items"][0]["key"] == kj.encode(load("kamera-tiny-gqa"), drawn[0]).key


def test_all_frames_are_read_where_asked_for(film, tmp_path, capsys):
    path, drawn = film
    assert encode(path, tmp_path / "lib", tmp_path / "a.json", "--frames", "all") == 0
    assert "only the first" not in capsys.readouterr().out
    result = json.loads((tmp_path / "a.json").read_text())
    vlm = load("kamera-tiny-gqa")
    assert [item["name"] for item in result["items"]] == [f"film.tiff, page {i}" for i in (1, 2, 3)]
    assert [item["key"] for item in result["items"]] == [kj.encode(vlm, page).key for page in drawn]
    assert result["frames_left_out"] == {}


def test_nothing_to_encode_is_named(tmp_path, capsys):
    assert encode(tmp_path / "missing", tmp_path / "lib", tmp_path / "a.json") == 1
    assert "missing" in capsys.readouterr().err and not (tmp_path / "lib").exists()
