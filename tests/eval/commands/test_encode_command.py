"""`kamera encode`: what a folder holds comes into a library once, however often it is asked for or interrupted."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

import kamera_jax as kj
from eval.commands import encoding, paying, worth
from eval.commands.main import main
from eval.commands.names import shortened
from eval.tiny import pages
from kamera_jax.backbone import forward_flops
from kamera_jax.patch.size import default_width
from models import load
from tests.kamera_jax.library.made import SPEC
from tests.models.media.clips import write
from tests.pictures import ENCRYPTED, PAGES, pdf, pdf_page, pdf_text, png_header


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
    real = encoding.encode_segment
    count = []

    def interrupted(*arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(1)
        return real(*arguments)

    monkeypatch.setattr(encoding, "BATCH", 2)
    monkeypatch.setattr(encoding, "encode_segment", interrupted)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 130
    output = capsys.readouterr()
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["failed"], result["interrupted"]) == (3, 0, True)
    assert {item["key"] for item in result["items"]} == set(kj.ChunkLibrary.open(tmp_path / "lib").keys())
    assert (
        output.err.splitlines()[1:] == [f"interrupted: 3 of 8 items are in {tmp_path / 'lib'}"]
        and "3 encoded" in output.out
    )
    monkeypatch.setattr(encoding, "encode_segment", real)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["known"]) == (4, 4)  # one page is there twice
    assert kj.ChunkLibrary.open(tmp_path / "lib").verify().ok


@pytest.mark.parametrize("where", ["put_many", "lifetime"])
def test_an_interrupt_while_storing_or_timing_keeps_everything(folder, tmp_path, monkeypatch, capsys, where):
    calls = []
    owner = kj.ChunkLibrary if where == "put_many" else paying
    real = getattr(owner, where)

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, where, interrupted)
    assert encode(folder / "note.md", tmp_path / "lib", tmp_path / "a.json", "--measure") == 130
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["encoded"], result["interrupted"]) == (1, True)
    assert result["break_even"] == [] and result["break_even_is"] == "measured"
    assert list(kj.ChunkLibrary.open(tmp_path / "lib").keys()) == [result["items"][0]["key"]]
    assert capsys.readouterr().err.splitlines()[1:] == [f"interrupted: 1 of 1 items are in {tmp_path / 'lib'}"]


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

    monkeypatch.setattr(encoding, "BATCH", 2)
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


def test_nothing_is_timed_where_nobody_asks(folder, tmp_path, monkeypatch, capsys):
    """What a patch saves is computed; the same twice, and as `kamera_jax.planning` counts."""
    monkeypatch.setattr(paying, "lifetime", None)
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("The embedded model knows only its own pages") and "ms" not in shown.out.split()
    assert "Computed from FLOPs" in shown.out and max(map(len, shown.out.splitlines())) <= 80
    result = json.loads((tmp_path / "a.json").read_text())
    vlm = load("kamera-tiny-gqa")
    assert result["break_even_is"] == "computed from FLOPs" and result["break_even"]
    for row in result["break_even"]:
        assert row == worth.computed(vlm, row["tokens"])
        behind = row["tokens"] + vlm.preamble.length
        assert row["reprefill_flops"] == forward_flops(vlm, row["tokens"], int(behind))
        assert 1 < row["break_even"] < 3 and f"{row['tokens']:5} tokens: " in shown.out


def test_it_is_timed_where_asked_for(folder, tmp_path, capsys):
    assert encode(folder / "0.png", tmp_path / "lib", tmp_path / "a.json", "--measure") == 0
    shown = capsys.readouterr().out
    [row] = json.loads((tmp_path / "a.json").read_text())["break_even"]
    assert row["break_even"] == pytest.approx(row["form_ms"] / (row["reprefill_ms"] - row["apply_ms"]))
    assert f"a prefill {row['reprefill_ms']:.1f} ms" in shown and "Computed from FLOPs" not in shown


def test_the_fit_is_counted_as_it_is_done():
    """By XLA's own count of the compiled fit, of which eigenvectors are no part that it knows: within a factor."""
    import jax
    import jax.numpy as jnp

    from kamera_jax.patch import subspace

    spec = dataclasses.replace(SPEC, layers=2, rot_dim=256, free_dim=256)
    for tokens in (64, 1024):
        width = default_width(2, tokens, 512, 2)
        change = jax.ShapeDtypeStruct((2, tokens, 512), jnp.float32)
        compiled = jax.jit(lambda x, width=width: subspace.components(x, width)).lower(change).compile()
        counted = compiled.cost_analysis()["flops"]
        assert 0.5 < worth.fit_flops(spec, tokens) / counted < 10, tokens


def test_items_are_stored_with_where_they_came_from(folder, film, tmp_path):
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json") == 0
    assert encode(film[0], tmp_path / "lib", tmp_path / "b.json", "--frames", "all") == 0
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    origins = [item.origin for item in library.items()]
    assert all(origin.encoded.startswith("20") and origin.time is None for origin in origins)
    wanted = {(str(folder / name), None) for name in ("0.png", "1.png", "2.png", "note.md")}
    wanted |= {(str(folder / "report.pdf"), page) for page in (1, 2, 3)}  # the fourth is the second again
    wanted |= {(str(film[0]), page) for page in (1, 2, 3)}
    assert {(origin.file, origin.page) for origin in origins} == wanted
    items = json.loads((tmp_path / "a.json").read_text())["items"]
    assert (items[-1]["origin"]["page"], items[-1]["status"]) == (4, "known")
    assert items[-1]["origin"]["encoded"] is None
    assert library.info(items[-1]["key"]).origin.page == 2


def test_rows_keep_the_page_within_80_columns(tmp_path, capsys):
    rng = np.random.default_rng(13)
    drawn = [pages.render(rng.integers(0, pages.N_CELLS, (2, 3))) for _ in range(12)]
    path = tmp_path / ("the report on all that was sold " + "日本語" * 8 + ".pdf")
    drawn[0].save(path, save_all=True, append_images=drawn[1:], resolution=72)
    assert encode(path, tmp_path / "lib", tmp_path / "a.json") == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if " encoded " in row and "tokens" in row]
    assert [row.rpartition(", page ")[2] for row in rows] == [str(page) for page in range(1, 13)]
    assert all(cell_len(row) <= 80 and "…" in row and ".pdf, page" in row for row in rows)


@pytest.mark.parametrize(
    ("name", "columns", "short"),
    [
        ("report.pdf, page 12", 30, "report.pdf, page 12"),
        ("report.pdf, page 12", 18, "re…rt.pdf, page 12"),
        ("report.pdf, page 12", 3, "…, page 12"),
        ("a long name of a picture.png", 16, "a lon…icture.png"),
        ("clip of a holiday.mp4, 12.5 s", 20, "cli…iday.mp4, 12.5 s"),
        ("日本語日本語.png, page 3", 17, "日…語.png, page 3"),
        ("a\nb\x1b[2J.png", 40, r"a\nb\x1b[2J.png"),
        ("", 5, ""),
    ],
)
def test_names_are_shortened_in_their_middle(name, columns, short):
    found = shortened(name, columns)
    assert cell_len(found) <= max(columns, cell_len("…, page 12")) and found.endswith(short[-6:])
    assert found == short


def test_rows_are_chosen_where_the_model_is(folder, tmp_path):
    """A library alone cannot: what is encoded keeps them, and is packed behind that."""
    name = "kvzip:0.5+merge:pivot+kivi:4"
    assert encode(folder, tmp_path / "lib", tmp_path / "a.json", "--storage", name) == 0
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    vlm = load("kamera-tiny-gqa")
    fresh = kj.encode(vlm, folder / "1.png")
    stored = library.get(fresh.key)
    packed = kj.compress(vlm, fresh, name)
    assert stored == packed.restore() and stored.codec == name and stored.length == fresh.length // 2
    np.testing.assert_allclose(stored.kv.rot, packed.restore().kv.rot, atol=1e-5)
    for wrong, more in (("kvzip:0.5", ["--share-frames", "0.9"]), ("merge:pivot", []), ("kivi", [])):
        assert encode(folder, tmp_path / "other", tmp_path / "b.json", "--storage", wrong, *more) != 0
    assert not (tmp_path / "other").exists()


def test_frames_of_a_video_share_rows(tmp_path, capsys):
    """Of a still picture every token has one row for all frames; images, texts, and all by default keep their rows."""
    (tmp_path / "items").mkdir()
    still = pages.render(np.arange(6).reshape(2, 3) % pages.N_CELLS)
    write(tmp_path / "items/clip.mp4", 96, 12, size=(56, 84), still=True)
    still.save(tmp_path / "items/page.png")
    options = ["--segment", "4s", "--share-frames", "0.9"]
    assert encode(tmp_path / "items", tmp_path / "lib", tmp_path / "a.json", *options) == 0
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= 80
    first, second, page = json.loads((tmp_path / "a.json").read_text())["items"]
    assert page["rows"] == page["tokens"]
    assert first["rows"] == second["rows"] == first["tokens"] - 18 and first["nbytes"] < page["nbytes"] * 3
    total = first["tokens"] + second["tokens"] + page["tokens"]
    assert f"{total - 36} rows of {total} tokens are kept" in shown
    assert f"{first['rows']} rows of {first['tokens']} tokens" in shown
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    chunk = library.get(first["key"])
    assert chunk.codec == "shared:0.9" and chunk.length == first["rows"] and library.get(page["key"]).codec == "exact"
    assert main(["library", "ls", str(tmp_path / "lib")]) == 0
    listed = capsys.readouterr().out
    assert "shared:0.9" in listed and f"{first['rows']} of {first['tokens']}" in listed
    assert main(["library", "info", str(tmp_path / "lib"), first["key"]]) == 0
    assert "shared:0.9" in capsys.readouterr().out
    assert encode(tmp_path / "items", tmp_path / "whole", tmp_path / "b.json", "--segment", "4s") == 0
    for item in json.loads((tmp_path / "b.json").read_text())["items"]:
        assert (
            item["rows"] == item["tokens"] and kj.ChunkLibrary.open(tmp_path / "whole").get(item["key"]).counts is None
        )


@pytest.mark.parametrize("wrong", ["0", "1.1", "-0.5", "nan", "much"])
def test_a_cosine_that_is_none(folder, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        encode(folder, tmp_path / "lib", tmp_path / "a.json", f"--share-frames={wrong}")
    assert "expected a cosine above 0 and at most 1, as in 0.95" in capsys.readouterr().err


def test_pages_with_their_texts_and_a_dtype(folder, tmp_path, capsys):
    path = tmp_path / "text.pdf"
    path.write_bytes(pdf_text([b"the page is red"], []))
    assert encode(path, tmp_path / "lib", tmp_path / "a.json") == 0
    assert encode(path, tmp_path / "lib", tmp_path / "b.json", "--with-text") == 0
    assert "text.pdf, page 2: it has no text; its image alone is read" in capsys.readouterr().out
    alone, both = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert [item["status"] for item in both["items"]] == ["encoded", "known"]
    assert [item["note"] is None for item in both["items"]] == [True, False]
    assert alone["items"][0]["key"] != both["items"][0]["key"] and both["dtype"] == "float32"
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    assert library.info(both["items"][0]["key"]).origin.name == "text.pdf, page 1, with its text"
    assert library.info(alone["items"][0]["key"]).origin.name == "text.pdf, page 1"
    assert main(["library", "ls", str(tmp_path / "lib"), "with its text"]) == 0
    assert "with its text" in capsys.readouterr().out
    assert encode(folder / "0.png", tmp_path / "lib", tmp_path / "c.json", "--with-text") == 1
    assert "--with-text is about pages of PDF files; among the items (0.png) is none" in capsys.readouterr().err
    assert encode(path, tmp_path / "lib", tmp_path / "c.json", "--dtype", "bf16") == 0
    low = json.loads((tmp_path / "c.json").read_text())
    assert low["dtype"] == "bfloat16" and 2 * low["items"][0]["nbytes"] == alone["items"][0]["nbytes"]
    assert encode(path, tmp_path / "new", tmp_path / "d.json", "--dtype", "f7") == 1
    assert "--dtype" in capsys.readouterr().err and not (tmp_path / "new").exists()
