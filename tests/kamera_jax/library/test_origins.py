"""Where a chunk came from is stored beside it, is no part of its key, and is checked like every other field."""

import dataclasses
import json

import pytest

import kamera_jax as kj
from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library import manifest as manifests
from kamera_jax.library.files import read_sealed, write_sealed
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

PAGE = kj.Origin("scans/report.pdf", page=12, encoded="2026-11-30T09:15:00Z")
SCENE = kj.Origin("clip.mp4", time=12.5, encoded=None)


@pytest.fixture
def root(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(chunk(0), origin=PAGE)
        lib.put_many([chunk(1), patch(0), chunk(2)], origins=[SCENE, None, None])
        lib.put_async(chunk(3), origin=kj.Origin("note.md")).result()
    return lib.root


def test_it_comes_back_and_changes_no_chunk(root):
    lib = kj.ChunkLibrary.open(root)
    assert [lib.info(key_of(i)).origin for i in range(3)] == [PAGE, SCENE, None]
    assert {item.key: item.origin for item in lib.items()}[key_of(0)] == PAGE
    assert lib.info(patch(0).key).origin is None
    assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in range(4)) and lib.verify().ok
    assert "origin" not in lib.info(key_of(0)).fields
    written = json.loads(json.dumps(dataclasses.asdict(lib.info(key_of(0)))))["origin"]
    wanted = {"file": "scans/report.pdf", "page": 12, "time": None, "encoded": "2026-11-30T09:15:00Z", "note": None}
    assert written == wanted
    assert lib.info(key_of(3)).origin.encoded.startswith("20")


def test_a_note_is_kept_and_named(tmp_path):
    noted = kj.Origin("scans/report.pdf", page=12, note="with its text")
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(chunk(0), origin=noted)
    origin = kj.ChunkLibrary.open(tmp_path / "lib").info(key_of(0)).origin
    assert origin == noted and origin.name == "report.pdf, page 12, with its text"
    for wrong in ("", "x" * 129):
        with pytest.raises(ValueError, match="1 to 128 letters"):
            kj.Origin("report.pdf", note=wrong)


def test_the_first_place_of_a_content_is_kept_until_it_is_deleted(root):
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        assert lib.put(chunk(0), origin=SCENE) == key_of(0) and lib.info(key_of(0)).origin == PAGE
        assert lib.put(chunk(2), origin=SCENE) == key_of(2) and lib.info(key_of(2)).origin is None
        lib.delete(key_of(0))
        lib.put(chunk(0), origin=SCENE)
        assert lib.info(key_of(0)).origin == SCENE


def test_collecting_keeps_it(root):
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        lib.delete(key_of(2))
        assert lib.gc().moved
        assert [lib.info(key_of(i)).origin for i in range(2)] == [PAGE, SCENE]


def test_what_is_stored_is_shown_in_a_line(root):
    lib = kj.ChunkLibrary.open(root)
    shown = {item.key: repr(item) for item in lib.items()}
    assert all(len(text) < 200 and "\n" not in text for text in shown.values())
    assert f"<Item {key_of(0)[:12]}, a chunk of report.pdf, page 12: " in shown[key_of(0)]
    assert f"<Item {patch(0).key[:12]}, a patch: " in shown[patch(0).key] and "KiB" in shown[patch(0).key]


def test_names():
    assert (PAGE.name, PAGE.where) == ("report.pdf, page 12", "scans/report.pdf, page 12")
    assert (SCENE.name, kj.Origin("a/b/").name, kj.Origin("/").name) == ("clip.mp4, 12.5 s", "b", "/")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"file": ""}, "1 to 4096 letters"),
        ({"file": "x" * 4097}, "1 to 4096 letters"),
        ({"page": 0}, "page is 0"),
        ({"page": 2**31}, "page is 2147483648"),
        ({"time": -1.0}, "time is -1"),
        ({"time": float("nan")}, "time is nan"),
        ({"encoded": "yesterday"}, "a time in UTC"),
    ],
)
def test_what_no_origin_has_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        kj.Origin(**{"file": "a.png", **fields})


def test_bad_arguments_store_nothing(tmp_path):
    lib = kj.ChunkLibrary.open(tmp_path / "lib", mode="a")
    with pytest.raises(ValueError, match="a patch has no origin of its own"):
        lib.put(patch(0), origin=PAGE)
    for origins in ([], [PAGE], [PAGE] * 3):
        with pytest.raises(ValueError, match=f"{len(origins)} origins of 2 items"):
            lib.put_many([chunk(0), chunk(1)], origins=origins)
    assert not lib.keys() and not lib.keys("patches")
    with pytest.raises(ValueError, match="not one origin for each item"):
        lib.put_many(iter([chunk(0), chunk(1)]), origins=[PAGE])
    assert lib.keys() == (key_of(0),)


@pytest.mark.parametrize(
    "value",
    [
        *(7, "report.pdf", [], ["report.pdf"], True, {}, {"page": 1}, {"file": None}, {"file": ""}, {"file": ["a"]}),
        *({"file": "x" * 5000}, {"file": "a", "page": 0}, {"file": "a", "page": "1"}, {"file": "a", "page": 2**70}),
        *({"file": "a", "time": -1}, {"file": "a", "time": "x"}, {"file": "a", "encoded": "now"}),
        {"file": "a", "encoded": 1.5},
    ],
)
def test_what_a_stranger_wrote_is_refused(root, value):
    rewritten(root, value)
    lib = kj.ChunkLibrary.open(root)
    for read in (lib.get, lib.info):
        with pytest.raises(LibraryCorruptError):
            read(key_of(0))
    assert key_of(0) not in {item.key for item in lib.items()} and bits(lib.get(key_of(1))) == bits(chunk(1))


@pytest.mark.parametrize("value", [None, {"file": "a\udcff\n.png", "page": None}, {"file": "a", "of later": [1]}])
def test_what_later_or_earlier_versions_wrote_is_read(root, value):
    """A library without origins, as every library was, is one of these: the field is not there."""
    rewritten(root, value)
    lib = kj.ChunkLibrary.open(root)
    assert bits(lib.get(key_of(0))) == bits(chunk(0))
    origin = lib.info(key_of(0)).origin
    assert origin is None if value is None else (origin.file, origin.page) == (value["file"], None)
    assert len(list(lib.items())) == 5


def rewritten(root, value):
    """Give chunk 0 an origin as it stands in a manifest; None for none."""
    pack = root / "packs" / kj.ChunkLibrary.open(root).info(key_of(0)).pack
    body = read_sealed(pack / "manifest.json")
    about = body["entries"][key_of(0)]["about"]
    about.pop("origin", None)
    if value is not None:
        about["origin"] = value
    assert manifests.Manifest.parsed(body)
    write_sealed(pack / "manifest.json", body)
