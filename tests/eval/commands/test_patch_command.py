"""`kamera patch`: what is stored is what `kamera ask` would form, and what it then uses."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from eval.commands.main import main
from eval.commands.stored import formed_key, stored_patch
from eval.tiny import pages
from kamera_jax.patch.size import Size
from models import load


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, and a PDF file of three pages."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(21)
    drawn = [pages.render(rng.integers(0, pages.N_CELLS, (2, 3))) for _ in range(4)]
    drawn[0].save(folder / "a.png")
    drawn[1].save(folder / "report.pdf", save_all=True, append_images=drawn[2:], resolution=72)
    return folder


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory):
    """A library in which page 3, page 1 and the picture have patches, and what was written of them."""
    place = tmp_path_factory.mktemp("stored")
    status = patch(folder, place / "lib", "--json", str(place / "patch.json"))
    assert status == 0
    return place / "lib", json.loads((place / "patch.json").read_text())


def patch(folder, library, *more, items=("report.pdf:3", "report.pdf:1", "a.png")):
    given = [str(folder / item) for item in items]
    return main(["patch", "--library", str(library), "--dpi", "72", *given, *more])


def test_each_item_behind_the_first_gets_the_patch_that_is_formed_there(stored, vlm):
    root, result = stored
    library = kj.ChunkLibrary.open(root)
    chunks = [library.get(item["key"]) for item in result["items"]]
    assert [item["name"] for item in result["items"]] == ["report.pdf, page 3", "report.pdf, page 1", "a.png"]
    assert [item["status"] for item in result["items"]] == ["encoded"] * 3
    assert [library.info(chunk.key).origin.page for chunk in chunks] == [3, 1, None]
    assert [row["key"] for row in result["patches"]] == [
        kj.form_patch(vlm, chunks[i], antecedents=chunks[:i]).key for i in (1, 2)
    ]
    for i, row in enumerate(result["patches"], start=1):
        fresh = kj.form_patch(vlm, chunks[i], antecedents=chunks[:i])
        kept = library.get_patch(row["key"])
        assert (kept.nbytes, kept.antecedents) == (fresh.nbytes, tuple(chunk.key for chunk in chunks[:i]))
        assert row["bytes"] == fresh.nbytes and 0.05 < row["share"] <= 0.1 and row["status"] == "formed"
        assert np.array_equal(kept.factors.u, fresh.factors.u) and np.array_equal(kept.factors.v, fresh.factors.v)


def test_what_is_there_is_not_formed_again(stored, folder, monkeypatch, capsys, tmp_path):
    root, first = stored
    monkeypatch.setattr(kj, "form_patch", None)
    monkeypatch.setattr(kj, "form_patches", None)
    keys = [item["key"][:9] for item in first["items"]]
    status = main(["patch", "--library", str(root), *keys, "--json", str(tmp_path / "again.json")])
    shown = capsys.readouterr()
    assert status == 0 and shown.err.startswith("The embedded model knows only its own pages of coloured glyphs")
    again = json.loads((tmp_path / "again.json").read_text())
    assert [row["key"] for row in again["patches"]] == [row["key"] for row in first["patches"]]
    assert {row["status"] for row in again["patches"] + again["items"]} == {"known"}
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80 and [line[:12] for line in lines[:3]] == [key[:12] for key in keys_of(first)]
    assert all(f"  --item {key[:12]}" in shown.out for key in keys_of(first))
    assert "used by:  kamera ask QUESTION" in shown.out and "page 1 behind 1" in shown.out


def keys_of(result):
    return [item["key"] for item in result["items"]]


def ask(root, items, *more):
    given = [part for item in items for part in ("--item", item)]
    return main(["ask", "what colour is the star?", *given, "--library", str(root), "--dpi", "72", *more])


def test_asking_uses_what_is_stored(stored, folder, monkeypatch, tmp_path, capsys):
    """The same answer from the same patches, without a forward for them, by keys and by paths."""
    root, result = stored
    keys = keys_of(result)
    assert ask(tmp_path_library(root, keys, tmp_path), keys, "--json", str(tmp_path / "a.json")) == 0
    formed = json.loads((tmp_path / "a.json").read_text())
    monkeypatch.setattr(kj, "form_patch", None)
    monkeypatch.setattr(kj, "form_patches", None)
    by_path = [str(folder / name) for name in ("report.pdf:3", "report.pdf:1", "a.png")]
    for items in (keys, by_path):
        assert ask(root, items, "--json", str(tmp_path / "b.json")) == 0
        used = json.loads((tmp_path / "b.json").read_text())
        assert (used["stored_patches"], formed["stored_patches"]) == (2, 0)
        assert (used["answer"], used["patch_bytes"]) == (formed["answer"], formed["patch_bytes"])
    with pytest.raises(TypeError):  # of another order, and of another size, there is none
        ask(root, [keys[1], keys[0], keys[2]])
    with pytest.raises(TypeError):
        ask(root, keys, "--method", "patch:3")


def tmp_path_library(root, keys, tmp_path):
    """The chunks alone, in another library."""
    library = kj.ChunkLibrary.open(root)
    with kj.ChunkLibrary.open(tmp_path / "chunks", mode="a") as other:
        other.put_many([library.get(key) for key in keys])
    return tmp_path / "chunks"


def test_one_patch_for_any_order(folder, tmp_path, monkeypatch):
    assert patch(folder, tmp_path / "lib", "--any-order", "--json", str(tmp_path / "a.json")) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    keys = keys_of(result)
    assert [row["chunk"] for row in result["patches"]] == keys
    assert all(sorted(row["antecedents"]) == sorted(set(keys) - {row["chunk"]}) for row in result["patches"])
    monkeypatch.setattr(kj, "form_patch", None)
    monkeypatch.setattr(kj, "form_patches", None)
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        assert ask(tmp_path / "lib", [keys[i] for i in order], "--json", str(tmp_path / "b.json")) == 0
        assert json.loads((tmp_path / "b.json").read_text())["stored_patches"] == 2
    with pytest.raises(TypeError):  # what is asked about together is another set
        ask(tmp_path / "lib", keys[:2])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (Size(rank=2), ["--rank", "2"]),
        (Size(max_bytes=900), ["--bytes", "900"]),
        (Size(energy=0.9), ["--energy", ".9"]),
    ],
)
def test_sizes(stored, vlm, size, options, tmp_path):
    root, result = stored
    keys = keys_of(result)[:2]
    assert main(["patch", "--library", str(root), *keys, *options, "--json", str(tmp_path / "a.json")]) == 0
    [row] = json.loads((tmp_path / "a.json").read_text())["patches"]
    library = kj.ChunkLibrary.open(root)
    first, second = library.get_many(keys)
    fresh = kj.form_patch(vlm, second, antecedents=[first], **size.asked)
    assert (row["key"], row["bytes"]) == (fresh.key, fresh.nbytes)
    assert stored_patch(library, second, [first], size=size).key == fresh.key


def test_which_of_several_is_used(vlm, tmp_path):
    first, second, third = (kj.encode(vlm, text) for text in ("the first page", "the second page", "the third page"))
    library = kj.ChunkLibrary.open(tmp_path / "lib", mode="a")
    assert stored_patch(library, second, [first]) is None
    orbit = kj.form_patch(vlm, second, antecedents=[first, third], any_order=True)
    small, large = (kj.form_patch(vlm, second, antecedents=[first], rank=rank) for rank in (1, 4))
    default = kj.form_patch(vlm, second, antecedents=[first])
    other = kj.form_patch(vlm, second, antecedents=[third])
    together = [third, second, first]
    for put, wanted in ((other, None), (orbit, orbit), (small, small), (large, large), (default, default)):
        library.put(put)
        found = stored_patch(library, second, [first], together=together)
        assert (found and found.key) == (wanted and wanted.key)
    assert stored_patch(library, second, [first], size=Size(rank=1)).key == small.key
    assert stored_patch(library, second, [first], size=Size(rank=2)) is None
    assert stored_patch(library, second, [third, first], together=together).key == orbit.key
    assert stored_patch(library, second, [third, first]) is None
    for others in ([first], [first, third], [third]):
        for any_order in (False, True):
            fresh = kj.form_patch(vlm, second, antecedents=others, any_order=any_order)
            assert formed_key(second, others, Size(), any_order=any_order) == fresh.key
    library.put(second, storage="int8")
    lossy = library.get(second.key)
    assert stored_patch(library, lossy, [first]) is None  # those were fitted to exact KV
    assert formed_key(lossy, [first], Size()) == kj.form_patch(vlm, lossy, antecedents=[first]).key


def test_bad_input_is_named_and_stores_nothing(stored, folder, tmp_path, capsys):
    root, result = stored
    keys = keys_of(result)
    before = set(kj.ChunkLibrary.open(root).keys("patches"))
    new = tmp_path / "new"
    for library, items, named in (
        (root, keys[:1], "got 1 item: name at least two"),
        (root, [keys[0], "0123456"], "no key that begins with '0123456'"),
        (root, [keys[0], "none.png"], "and there is no such file"),
        (root, [keys[0], str(folder / "report.pdf:4")], "report.pdf has no page 4: it has 3 pages"),
        (root, [keys[0], keys[0], "--any-order"], "there twice; with --any-order name each item once"),
        (root, [*keys[:2], "--bytes", "3"], "max_bytes=3 is below one component"),
        (root, [*keys[:2], "--model", "kamera-tiny-mha"], "name its model with --model"),
        (new, keys[:2], "is no library"),
        (new, [str(folder / "none.png"), str(folder / "a.png")], "no file or folder"),
    ):
        assert main(["patch", "--library", str(library), *items]) == 1
        message = capsys.readouterr().err
        assert named in message and "Traceback" not in message
    assert set(kj.ChunkLibrary.open(root).keys("patches")) == before and not new.exists()
    for options in (["--energy", "2"], ["--rank", "0"], ["--rank", "2", "--bytes", "9"]):
        with pytest.raises(SystemExit):
            main(["patch", "--library", str(root), *keys, *options])
