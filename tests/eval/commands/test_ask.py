"""`kamera ask` on the embedded model's own pages, and what it says of bad input."""

import json

import numpy as np
import pytest
from PIL import Image

import kamera_jax as kj
from eval.commands import demo
from eval.commands.main import main
from eval.tiny.episodes import question_text
from eval.tiny.glyphs import COLOUR_NAMES
from eval.tiny.pages import render
from eval.tiny.story import sample_story
from models import load
from models.media import pdf as module
from tests.pictures import PAGES, pdf, pdf_page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    demo.write_pages(folder)
    return folder


def ask(pages, question, *more):
    items = [argument for name in ("first", "second", "third") for argument in ("--item", str(pages / f"{name}.png"))]
    return main(["ask", question, *items, *more])


METHODS = ["full", "patch", "patch:12", "patch:20%", "patch:64KiB", "patch:energy=0.99", "patch:bytes=0.5"]


@pytest.mark.parametrize("method", METHODS)
def test_two_hops_are_answered(pages, capsys, method, tmp_path):
    glyph, colour = sample_story(np.random.default_rng((demo.HELD_OUT_SEED, 0))).two_hop[0]
    assert ask(pages, question_text(glyph), "--method", method, "--json", str(tmp_path / "answer.json")) == 0
    output = capsys.readouterr()
    assert output.out.strip() == COLOUR_NAMES[colour]
    assert "only its own pages" in output.err
    written = json.loads((tmp_path / "answer.json").read_text())
    assert written["answer"] == COLOUR_NAMES[colour] and written["kv_bytes"] > 0
    assert (written["patch_bytes"] > 0) == (method != "full")
    assert written["chunks"] == 3 and written["patches"] == (0 if method == "full" else 2)
    assert written["dtype"] == "float32" and written["tokens"] > 100
    how = "run together" if method == "full" else "encoded apart, 2 patches of"
    assert f"{method}: 3 chunks of {written['tokens']} tokens" in output.err and how in output.err


def test_blind_answers_one_hop(pages, capsys):
    glyph, colour = sample_story(np.random.default_rng((demo.HELD_OUT_SEED, 0))).one_hop[0]
    assert ask(pages, question_text(glyph), "--method", "blind") == 0
    assert capsys.readouterr().out.strip() == COLOUR_NAMES[colour]


def failure(capsys, arguments):
    """The message, which must come without a traceback."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    message = capsys.readouterr().err
    assert status in (1, 2) and "Traceback" not in message
    return message


@pytest.mark.parametrize("method", ["full", "blind"])
def test_pages_behind_the_model_s_length_are_not_rendered(tmp_path, monkeypatch, capsys, method):
    """Twenty pages, as if of 1026 positions, and a model that is for 8192: the eighth is the last that is looked at."""
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 23))
    tree = b"<</Type/Pages/Kids[%b]/Count 20>>" % kids
    (tmp_path / "long.pdf").write_bytes(pdf(PAGES, tree, *[pdf_page(60, 60)] * 20))
    rendered = []
    real = module._rendered
    monkeypatch.setattr(module, "_rendered", lambda *given: rendered.append(1) or real(*given))
    monkeypatch.setattr(kj, "encode", lambda _, item: item)
    monkeypatch.setattr("models.media.spans.advance_of", lambda spans: 1026.0)
    command = ["ask", "what?", "--item", str(tmp_path / "long.pdf"), "--dpi", "72", "--method", method]
    assert "the items up to long.pdf, page 8 take 8216 positions" in failure(capsys, command)
    assert len(rendered) == 8


def test_bad_input_is_named(pages, tmp_path, capsys):
    text = tmp_path / "page.bin"
    text.write_bytes(b"\0\1\2")
    Image.new("RGB", (4, 4000)).save(tmp_path / "thin.png")
    (tmp_path / "empty").mkdir()
    item = ["--item", str(pages / "first.png")]
    for arguments, named in (
        (["ask", "?", "--item", str(tmp_path / "none.png")], "none.png"),
        (["ask", "what?", "--item", str(text)], "no image that Pillow can read"),
        (["ask", "what?", "--item", str(tmp_path / "thin.png")], "within a factor of 200"),
        (["ask", " ", *item], "the question is empty"),
        (["ask", "", *item, "--model", "no-such-model"], "the question is empty"),
        (["ask", "what?", *item, "--dtype", "int8", "--model", "no-such-model"], "--dtype is int8"),
        (["ask", "what?", *item, "--capacity", "0"], "at least 1"),
        (["ask", "what?", *item, "--capacity", "100"], "--capacity is 100, and the items take"),
        (["ask", "what?", *item, "--capacity", "100", "--method", "full"], "--capacity is 100, and the items take"),
        (["ask", "what?", *item, "--method", "cacheblend:0.15"], "expected full, blind, patch, patch:M"),
        (["ask", "what?", *item, "--method", "patch:0KiB"], "needs at least a byte"),
        (["ask", "what?", *item, "--method", "patch:energy=2"], "patch:energy needs a share (above 0, up to 1)"),
        (["ask", "what?", *item, "--method", "patch:0"], "patch:M with a rank M of at least 1"),
        (["ask", "what?", *item, "--method", "patch:0%"], "patch:P% with a share of the bytes above 0"),
        (["ask", "what?", *item, "--method", "patch:"], "patch:M with a rank M of at least 1"),
        (["ask", "what?", *item, "--model", "no-such-model"], "no model 'no-such-model'"),
        (["ask", "what?", *item, "--model", str(tmp_path / "empty")], "no config.json"),
        (["demo", "--episodes", "0"], "at least 1"),
        (["ask", "what?"], "--item"),
    ):
        assert named in failure(capsys, arguments)


def test_a_failed_command_writes_no_result(pages, tmp_path, capsys):
    out = tmp_path / "answer.json"
    failure(capsys, ["ask", "what?", "--item", str(tmp_path / "none.png"), "--json", str(out)])
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--debug", "ask", "what?", "--item", str(tmp_path / "none.png")])


def test_frames_that_are_left_out_are_said_or_read(pages, tmp_path, capsys):
    with Image.open(pages / "first.png") as first, Image.open(pages / "third.png") as third:
        first.convert("RGB").save(tmp_path / "both.tiff", save_all=True, append_images=[third.convert("RGB")])
    sizes = []
    for more in ([], ["--frames", "all"]):
        out = tmp_path / "answer.json"
        item = ["--item", str(tmp_path / "both.tiff"), "--method", "blind", "--json", str(out)]
        assert main(["ask", "what colour is the star?", *item, *more]) == 0
        noted = "only the first of 2 frames is read, with --frames all each: both.tiff" in capsys.readouterr().err
        assert noted == (not more)
        sizes.append(json.loads(out.read_text())["kv_bytes"])
    assert sizes[1] > 1.5 * sizes[0]


def test_an_answer_of_more_tokens_than_a_window_has_free_by_default(pages, capsys):
    for method in ("full", "blind"):
        item = ["--item", str(pages / "first.png"), "--method", method]
        assert main(["ask", "what colour is the star?", *item, "--max-new-tokens", "600"]) == 0
    capsys.readouterr()


def test_weights_are_stored_as_asked_for(pages, tmp_path):
    out = tmp_path / "answer.json"
    for more, stored in ([], "float32"), (["--weights", "int8"], "int8"):
        assert ask(pages, "what colour is the star?", *more, "--json", str(out)) == 0
        written = json.loads(out.read_text())
        assert (written["weights"], written["dtype"]) == (stored, "float32")


def test_the_dtype_and_the_capacity_are_those_asked_for(pages, tmp_path, capsys):
    out = tmp_path / "answer.json"
    assert ask(pages, "what colour is the star?", "--dtype", "bf16", "--capacity", "700", "--json", str(out)) == 0
    written = json.loads(out.read_text())
    assert (written["dtype"], written["capacity"]) == ("bfloat16", 700)
    assert "bfloat16" not in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 3], ids=["before", "behind"])
def test_quiet_leaves_the_answer_alone(pages, capsys, place):
    arguments = ["ask", "what colour is the star?", "--item", str(pages / "first.png")]
    assert main([*arguments[: place and 4], "-q", *arguments[place and 4 :]]) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.strip() and output.out.count("\n") == 1
    assert main(arguments) == 0
    assert capsys.readouterr().err != ""


def test_an_answer_is_printed_as_it_comes(pages, monkeypatch, capsys):
    """Piece by piece, each at once, and in all what `--json` has."""
    pieces = []
    real = kj.generate

    def streamed(*arguments, stream, **options):
        def seen(text):
            stream(text)
            pieces.append(capsys.readouterr().out)

        return real(*arguments, stream=seen, **options)

    monkeypatch.setattr(kj, "generate", streamed)
    assert ask(pages, "what colour is the star?", "--max-new-tokens", "3") == 0
    assert pieces and all(pieces)


def test_a_library_is_searched(capsys, tmp_path):
    """Without an item: the page of the story that shows the glyph is found among pages that do not."""
    vlm = load("kamera-tiny-gqa")
    story = sample_story(np.random.default_rng((demo.HELD_OUT_SEED, 1)))
    drawn = (story.first, story.second, story.other)
    chunks = [kj.encode(vlm, render(page.cells)) for page in drawn]
    with kj.ChunkLibrary.open(tmp_path / "library", mode="a") as library:
        library.put_many(chunks, origins=[kj.Origin(f"{name}.png") for name in ("first", "second", "other")])
    glyph, colour = story.one_hop[1]
    out = tmp_path / "answer.json"
    searched = ["--library", str(tmp_path / "library"), "--json", str(out)]
    assert main(["ask", question_text(glyph), *searched, "--top", "1", "--method", "blind"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == COLOUR_NAMES[colour] and f"found {chunks[1].key[:12]} of second.png" in output.err
    written = json.loads(out.read_text())
    assert [hit["key"] for hit in written["found"]] == [chunks[1].key] and written["chunks"] == 1
    with kj.ChunkLibrary.open(tmp_path / "library", mode="a") as library:
        library.put(kj.form_patch(vlm, chunks[1], antecedents=chunks[:1], rank=4))
    for more, count in (([], 1), (["--linked"], 2)):
        assert main(["ask", question_text(glyph), *searched, "--top", "1", *more]) == 0
        written = json.loads(out.read_text())
        assert written["chunks"] == count and written["stored_patches"] == 1
    kj.ChunkLibrary.open(tmp_path / "empty", mode="a").close()
    assert "has no chunks of" in failure(capsys, ["ask", "what?", "--library", str(tmp_path / "empty")])
