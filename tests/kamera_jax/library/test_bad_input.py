"""No library, one that cannot be written, one made to mislead: named errors, nothing executed or half-written."""

import errno
import json
import os
import shutil

import jax
import pytest

import kamera_jax as kj
from kamera_jax.errors import (
    ChunkNotFoundError,
    LibraryCorruptError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    LibraryVersionError,
)
from kamera_jax.library import arrays, commit, files
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ERRORS = (
    *(ChunkNotFoundError, LibraryCorruptError, LibraryFullError, LibraryNotFoundError),
    *(LibraryReadOnlyError, LibraryVersionError),
)


@pytest.fixture
def root(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([chunk(i) for i in range(3)] + [patch(0)])
    return lib.root


def test_every_named_error_is_a_value_error():
    assert all(issubclass(error, ValueError) for error in ERRORS)


def test_a_path_that_is_no_library(tmp_path):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("dear")
    for path in (tmp_path / "file", tmp_path / "folder", tmp_path / "nothing", tmp_path / "file" / "below"):
        with pytest.raises(LibraryNotFoundError, match="no library: it has no LIBRARY.json"):
            kj.ChunkLibrary.open(path)
    with pytest.raises(LibraryNotFoundError, match="is a file; give a folder"):
        kj.ChunkLibrary.open(tmp_path / "file", mode="a")
    with pytest.raises(LibraryNotFoundError, match="holds letter.txt; give a folder that is empty or a library"):
        kj.ChunkLibrary.open(tmp_path / "folder", mode="a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "letter.txt"]


def test_a_future_format(root):
    files.write_sealed(root / "LIBRARY.json", {"format_version": 5, "uuid": "0" * 32})
    for mode in ("r", "a"):
        with pytest.raises(LibraryVersionError, match="has format 5; this version reads formats 2, 3 and 4: use"):
            kj.ChunkLibrary.open(root, mode=mode)


def test_a_format_whose_keys_did_not_say_which_patches(root):
    files.write_sealed(root / "LIBRARY.json", {"format_version": 1, "uuid": "0" * 32})
    before = sorted(root.rglob("*"))
    for mode in ("r", "a"):
        with pytest.raises(
            LibraryVersionError, match="has format 1, .*which patches.*encode the items into a new folder"
        ):
            kj.ChunkLibrary.open(root, mode=mode)
    assert sorted(root.rglob("*")) == before


def test_a_first_file_that_is_broken(root):
    (root / "LIBRARY.json").write_text("{}")
    with pytest.raises(LibraryCorruptError, match="remove it and open the library with mode='a'"):
        kj.ChunkLibrary.open(root)
    (root / "LIBRARY.json").unlink()
    assert bits(kj.ChunkLibrary.open(root, mode="a").get(key_of(0))) == bits(chunk(0))


def test_a_folder_that_is_gone(root):
    shutil.rmtree(root / "patches")
    with pytest.raises(LibraryCorruptError, match="has lost its folder patches; open it with mode='a'"):
        kj.ChunkLibrary.open(root)
    assert bits(kj.ChunkLibrary.open(root, mode="a").get(key_of(0))) == bits(chunk(0))


def staged(root):
    return list((root / "staging").iterdir())


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(root, monkeypatch):
    lib = kj.ChunkLibrary.open(root, mode="a")
    for where, name in ((arrays, "save"), (files.os, "fsync"), (commit, "write_pack")):
        with monkeypatch.context() as context:
            context.setattr(where, name, full)
            for put in (lambda: lib.put(chunk(7)), lambda: lib.put_many([chunk(8), chunk(9)])):
                with pytest.raises(LibraryFullError, match="is full.*nothing was stored"):
                    put()
        assert not staged(root) and set(lib.keys()) == {key_of(i) for i in range(3)}
    usage = shutil.disk_usage(root)
    with monkeypatch.context() as context:
        context.setattr(commit.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(LibraryFullError, match="need .* bytes, and the disk of .* has 1000"):
            lib.put(chunk(7))
    lib.put(chunk(7))
    assert bits(lib.get(key_of(7))) == bits(chunk(7))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_changed(root, monkeypatch, number):
    lib = kj.ChunkLibrary.open(root, mode="a")
    whole = os.open

    def refusing(path, flags, *more, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return whole(path, flags, *more, **options)

    monkeypatch.setattr(files.os, "open", refusing)
    for change in (
        lambda: kj.ChunkLibrary.open(root, mode="a"),
        lambda: kj.ChunkLibrary.open(root.parent / "new", mode="a"),
        lambda: lib.put(chunk(7)),
        lambda: lib.delete(key_of(0)),
        lib.gc,
    ):
        with pytest.raises(LibraryReadOnlyError, match="may not be written to.*mode='r'"):
            change()
    reader = kj.ChunkLibrary.open(root)
    assert bits(reader.get(key_of(0))) == bits(chunk(0)) and reader.verify().ok


def test_a_pack_deleted_by_hand(root):
    before = kj.ChunkLibrary.open(root)
    for place in (root / "packs").iterdir():
        shutil.rmtree(place)
    for lib in (before, kj.ChunkLibrary.open(root), kj.ChunkLibrary.open(root, mode="a")):
        assert not lib.has(key_of(0)) and lib.stats().lost == 3 and set(lib.verify().lost) == set(map(key_of, range(3)))
        with pytest.raises(LibraryCorruptError, match="the pack .* is gone; put it anew"):
            lib.get(key_of(0))
        assert bits(lib.patches(key_of(0))[0]) == bits(patch(0))
    lib.put(chunk(0))
    lib.close()
    assert bits(before.get(key_of(0))) == bits(chunk(0)) and before.stats().lost == 2
    assert lib.delete(key_of(1)) and lib.stats().lost == 1
    lib.gc()
    for each in (lib, before, kj.ChunkLibrary.open(root)):
        assert each.stats().lost == 0
        with pytest.raises(ChunkNotFoundError):
            each.get(key_of(2))


@pytest.mark.parametrize("what", ["0.0.0.0", ".zarray", "manifest.json", "_METADATA"])
def test_files_deleted_by_hand(root, what):
    for path in list((root / "packs").rglob(what)):
        path.unlink()
    (root / "index.json").unlink()
    lib = kj.ChunkLibrary.open(root, mode="a")
    assert not lib.verify().ok
    if what == "manifest.json":
        assert lib.stats().damaged == 1
        with pytest.raises(ChunkNotFoundError, match="1 of its packs cannot be read, see verify"):
            lib.get(key_of(0))
    else:
        with pytest.raises(LibraryCorruptError):
            lib.restore(lib.packs()[0], sharding=HERE)
    lib.put(chunk(50))
    lib.gc()  # leaves alone what it cannot read
    assert bits(lib.get(key_of(50))) == bits(chunk(50))


def rewritten(root, change):
    """The library's manifest of chunks after ``change``, sealed as if it were right."""
    (path,) = (root / "packs").glob("*/manifest.json")
    body = json.loads(path.read_text())["body"]
    change(body)
    files.write_sealed(path, body)
    (root / "index.json").unlink(missing_ok=True)
    return kj.ChunkLibrary.open(root, mode="a")


def renamed(body, name):
    body["arrays"][name] = body["arrays"].pop("0.kv.rot")
    for entry in body["entries"].values():
        if entry["leaves"]["kv.rot"][0] == "0.kv.rot":
            entry["leaves"]["kv.rot"][0] = name


def leaf(body, place, value):
    for entry in body["entries"].values():
        entry["leaves"]["kv.rot"][place] = value


CRAFTED = {
    "a path": lambda body: renamed(body, "../../../LIBRARY.json"),
    "an absolute path": lambda body: renamed(body, "/etc/passwd"),
    "a huge array": lambda body: body["arrays"].update({"0.kv.rot": ["bfloat16", [2**40, 2**40]]}),
    "a huge row": lambda body: leaf(body, 2, [2**40, 2**20, 2**20]),
    "an endless row": lambda body: leaf(body, 2, [4] * 40),
    "a negative size": lambda body: leaf(body, 2, [-4, 16, 32]),
    "a place before the array": lambda body: leaf(body, 3, -64),
    "a place behind the array": lambda body: leaf(body, 3, 2**60),
    "a place that is no number": lambda body: leaf(body, 3, "0"),
    "an object": lambda body: leaf(body, 1, "object"),
    "no digest": lambda body: leaf(body, 4, ""),
    "a leaf of one word": lambda body: leaf(body, slice(None), ["0.kv.rot"]),
    "no leaves": lambda body: [entry.pop("leaves") for entry in body["entries"].values()],
    "no fields": lambda body: [entry.update(about={}) for entry in body["entries"].values()],
    "keys that are paths": lambda body: body.update(entries={f"../{key}": at for key, at in body["entries"].items()}),
    "an unknown kind": lambda body: body.update(kind="pickles"),
    "arrays that are a list": lambda body: body.update(arrays=[1, 2]),
    "an empty body": lambda body: body.clear(),
    "an empty array that is huge": lambda body: leaf(body, slice(0, 3), ["", "float32", [0, 2**62, 2**62]]),
    "another chunk's key": lambda body: [entry["about"].update(key=key_of(77)) for entry in body["entries"].values()],
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_manifest(root, name):
    lib = rewritten(root, CRAFTED[name])
    with pytest.raises((LibraryCorruptError, ChunkNotFoundError)):
        lib.get(key_of(0))
    assert not lib.verify().ok
    for pack in lib.packs():
        for sharding in (None, HERE):
            with pytest.raises(LibraryCorruptError):
                lib.restore(pack, sharding=sharding)
    lib.gc()
    with pytest.raises((LibraryCorruptError, ChunkNotFoundError)):
        lib.get(key_of(0))


def test_what_lies_about_is_left_alone(root):
    """Folders and files in a library that are not its own."""
    (root / "packs" / "notes").mkdir()
    (root / "packs" / "notes" / "todo.txt").write_text("dear")
    (root / "tombstones" / "todo").write_text("dear")
    lib = kj.ChunkLibrary.open(root, mode="a")
    assert lib.verify().ok and lib.stats().chunks == 3
    lib.gc()
    assert (root / "packs" / "notes" / "todo.txt").exists()
    assert bits(lib.get(key_of(0))) == bits(chunk(0))


def test_nothing_on_disk_is_code(root):
    assert not [path for path in root.rglob("*") if path.suffix in (".pkl", ".pickle", ".py", ".npy", ".npz")]
    for name in ("files", "arrays", "packs", "manifest", "rows", "index", "library", "snapshot"):
        source = (files.Path(files.__file__).parent / f"{name}.py").read_text()
        assert not {"pickle", "eval(", "exec("} & set(source.split()) and "pickle" not in source
