"""Links, pipes and files that cannot be read: what is spoilt costs itself alone, and nothing outside is touched."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

import kamera_jax as kj
from kamera_jax.errors import (
    ChunkNotFoundError,
    LibraryCorruptError,
    LibraryNotFoundError,
    LibraryVersionError,
    NotRegularError,
)
from kamera_jax.library import files, opening
from tests.hardening import faults
from tests.kamera_jax.library.made import bits, chunk, key_of, patch


@pytest.fixture
def root(tmp_path):
    """A library of two packs of chunks and one of patches, closed."""
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([chunk(0), patch(0)])
        lib.put(chunk(1))
    return lib.root


@pytest.fixture
def outside(tmp_path):
    """A folder of somebody else's, checked to be as it was when the test is over."""
    folder = tmp_path / "outside"
    (folder / ("0" * 32)).mkdir(parents=True)
    (folder / ("0" * 32) / "letter.txt").write_text("dear")
    yield folder
    assert [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))] == [
        "0" * 32,
        "0" * 32 + "/letter.txt",
    ]
    assert (folder / ("0" * 32) / "letter.txt").read_text() == "dear"


def pack_of(root, key):
    return root / "packs" / kj.ChunkLibrary.open(root).info(key).pack


@pytest.mark.parametrize("name", ["staging", "tombstones", "packs", "patches"])
def test_a_folder_that_is_a_link(root, outside, name):
    lib = kj.ChunkLibrary.open(root, mode="a")
    shutil.rmtree(root / name)
    (root / name).symlink_to(outside)
    for act in (
        lambda: kj.ChunkLibrary.open(root, mode="a"),
        lambda: lib.put(chunk(5)),
        lambda: lib.delete(key_of(0)),
        lib.gc,
        lib.close,
    ):
        with pytest.raises(LibraryCorruptError, match=f"{name} is a link; expected a folder"):
            act()


@pytest.mark.parametrize("name", ["LOCK", "LIBRARY.json", "index.json"])
def test_a_file_that_is_a_link(root, outside, name):
    kept = root.parent / "kept"
    shutil.move(root / name, kept)
    (root / name).symlink_to(kept)
    before = kept.read_bytes()
    if name == "index.json":  # it is made anew
        with kj.ChunkLibrary.open(root, mode="a") as lib:
            lib.put(chunk(5))
        assert not (root / name).is_symlink()
    else:
        with pytest.raises(LibraryCorruptError, match=f"{name} is a link; expected a regular file"):
            kj.ChunkLibrary.open(root, mode="a")
    assert kept.read_bytes() == before


def test_a_library_is_reached_through_a_link(root):
    (root.parent / "link").symlink_to(root)
    with kj.ChunkLibrary.open(root.parent / "link", mode="a") as lib:
        lib.put(chunk(5))
        assert bits(lib.get(key_of(5))) == bits(chunk(5)) and lib.verify().ok and lib.gc().dropped
    assert bits(kj.ChunkLibrary.open(root).get(key_of(0))) == bits(chunk(0))


def test_only_what_writers_make_is_swept(root, outside):
    staging = root / "staging"
    (staging / ("a" * 32)).symlink_to(outside)
    (staging / ("b" * 32)).mkdir()
    (staging / ("b" * 32) / "link").symlink_to(outside)
    (staging / ("c" * 32 + ".orbax-checkpoint-tmp")).mkdir()
    (staging / "notes").mkdir()
    (staging / ("d" * 32)).write_text("dear")
    (root / ("index.json." + "e" * 32)).write_text("of a killed close")
    (root / ("LIBRARY.json." + "e" * 32)).write_text("of a killed open")
    (root / "index.json.bak").write_text("dear")
    lib = kj.ChunkLibrary.open(root, mode="a")
    assert {path.name for path in staging.iterdir()} == {"a" * 32, "notes", "d" * 32}
    assert sorted(path.name for path in root.glob("*.json*")) == ["LIBRARY.json", "index.json", "index.json.bak"]
    assert lib.gc().swept == 0 and (staging / "notes").is_dir()


@pytest.mark.parametrize("where", ["", "manifest.json", "state", "state/0.kv.rot", "state/0.kv.rot/0.0.0.0"])
def test_a_pack_with_links_is_damaged(root, where):
    pack = pack_of(root, key_of(0))
    (root / "index.json").unlink()
    shutil.move(pack / where, root.parent / "kept")
    (pack / where).symlink_to(root.parent / "kept")
    lib = kj.ChunkLibrary.open(root, mode="a")
    with pytest.raises((LibraryCorruptError, ChunkNotFoundError)):
        lib.get(key_of(0))
    for name in lib.packs():
        if name == pack.name:
            with pytest.raises(LibraryCorruptError):
                lib.restore(name, sharding=here())
    assert "is a link" in str(lib.verify().damaged) and bits(lib.get(key_of(1))) == bits(chunk(1))
    lib.gc()
    assert bits(kj.ChunkLibrary.open(root).get(key_of(1))) == bits(chunk(1)) and (root.parent / "kept").exists()


def here():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def spoil_with_folder(path):
    path.unlink()
    path.mkdir()


def spoil_with_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def spoil_with_pipe(path):
    path.unlink()
    os.mkfifo(path)


SPOILS = {"folder": spoil_with_folder, "loop": spoil_with_loop, "pipe": spoil_with_pipe}


@pytest.mark.parametrize("what", SPOILS)
@pytest.mark.parametrize("where", ["manifest.json", "state/0.kv.rot/0.0.0.0", "commit_success.txt"])
@pytest.mark.parametrize("indexed", [True, False])
def test_what_cannot_be_read_costs_itself_alone(root, what, where, indexed):
    pack = pack_of(root, key_of(0))
    SPOILS[what](pack / where)
    if not indexed:
        (root / "index.json").unlink()
    for mode in ("r", "a"):
        lib = kj.ChunkLibrary.open(root, mode=mode)
        assert bits(lib.get(key_of(1))) == bits(chunk(1)) and bits(lib.patches(key_of(0))[0]) == bits(patch(0))
        if where != "commit_success.txt":
            with pytest.raises((LibraryCorruptError, ChunkNotFoundError)):
                lib.get(key_of(0))
        report = lib.verify()
        assert not report.ok and len(report.damaged) == 1 and not report.lost
    lib.put(chunk(5))
    lib.gc()
    assert pack.is_dir() or where == "commit_success.txt"
    assert bits(lib.get(key_of(1))) == bits(chunk(1)) and bits(lib.get(key_of(5))) == bits(chunk(5))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENAMETOOLONG, errno.EMFILE])
def test_a_file_that_fails_costs_itself_alone(root, monkeypatch, number):
    pack = pack_of(root, key_of(0))
    (root / "index.json").unlink()
    whole = os.open

    def failing(path, *more, **options):
        if str(path).startswith(str(pack)):
            raise OSError(number, os.strerror(number), str(path))
        return whole(path, *more, **options)

    with monkeypatch.context() as context:
        context.setattr(opening.os, "open", failing)
        for mode in ("r", "a"):
            lib = kj.ChunkLibrary.open(root, mode=mode)
            assert set(lib.keys()) == {key_of(1)} and bits(lib.get(key_of(1))) == bits(chunk(1))
            assert os.strerror(number) in str(lib.verify().damaged)
        lib.gc()
    assert bits(kj.ChunkLibrary.open(root).get(key_of(0))) == bits(chunk(0))


@pytest.mark.parametrize("version", [True, 2.0, "2", None, [2], {}])
def test_a_format_that_is_no_number(root, version):
    files.write_sealed(root / "LIBRARY.json", {"format_version": version, "uuid": "0" * 32})
    for mode in ("r", "a"):
        with pytest.raises(LibraryVersionError, match="is no whole number; this version reads formats 2, 3 and 4"):
            kj.ChunkLibrary.open(root, mode=mode)


@pytest.mark.parametrize("way", ["moved", "removed", "emptied"])
def test_a_library_that_is_gone_while_it_is_open(root, way):
    lib = kj.ChunkLibrary.open(root, mode="a")
    lib.get(key_of(0))
    if way == "moved":
        root.rename(root.with_name("elsewhere"))
    else:
        shutil.rmtree(root)
        if way == "emptied":
            root.mkdir()
    for act in (
        lambda: lib.get(key_of(0)),
        lambda: lib.get_many([key_of(0)]),
        lambda: lib.get_patch(key_of(0)),
        lambda: lib.patches(key_of(0)),
        lambda: lib.has(key_of(0)),
        lambda: lib.info(key_of(0)),
        lambda: lib.put(chunk(5)),
        lambda: lib.put_many([chunk(5)]),
        lambda: lib.delete(key_of(0)),
        lambda: lib.restore("0" * 32),
        *(lib.keys, lib.verify, lib.gc, lib.stats, lib.packs, lib.close),
    ):
        with pytest.raises(LibraryNotFoundError, match="is no library any more: it was moved or removed"):
            act()
    assert not root.exists() or not list(root.iterdir())
    if way == "moved":
        assert bits(kj.ChunkLibrary.open(root.with_name("elsewhere")).get(key_of(1))) == bits(chunk(1))


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "file/below"])
@pytest.mark.parametrize("mode", ["r", "a"])
def test_paths_that_no_library_can_have(tmp_path, path, mode):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(ValueError) as caught:
        kj.ChunkLibrary.open(f"{tmp_path}/{path}", mode=mode)
    assert type(caught.value).__module__ == "kamera_jax.errors"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_name_that_only_begins_like_its_own_is_somebody_elses(tmp_path):
    (tmp_path / "packs of cards").mkdir()
    with pytest.raises(LibraryNotFoundError, match="holds packs of cards"):
        kj.ChunkLibrary.open(tmp_path, mode="a")


def change(root, kind, body_of):
    """A library whose manifest of a kind was changed and sealed as if it were right."""
    path = next(path for path in (root / kind).glob("*/manifest.json") if key_of(0) in path.read_text())
    body = json.loads(path.read_text())["body"]
    for entry in body["entries"].values():
        body_of(entry["about"])
    files.write_sealed(path, body)
    return kj.ChunkLibrary.open(root)


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", -1), ("length", True), ("length", 1.5), ("length", 2**40), ("advance", True), ("turn", 1)]
    + [("antecedents", "abc"), ("model", None), ("codec", 5), ("storage", "zip"), ("conditioned", None)],
)
def test_fields_that_cannot_be(root, name, value):
    lib = change(root, "packs", lambda about: about.update({name: value}))
    with pytest.raises(LibraryCorruptError, match=f"{name}|stored as"):
        lib.get(key_of(0))
    assert bits(lib.get(key_of(1))) == bits(chunk(1))


@pytest.mark.parametrize(
    "fields",
    [{"components": 2**30}, {"rows": 2**30}, {"rows": -1}, {"components": True}, {"ranks": [2**30] * 4}, {"ranks": []}]
    + [
        {"components": 2**20, "rows": 2**20},
        {"length": 2**20},
        {"sketch": {"layers": [-1], "weights": [], "tokens": 1}},
    ],
)
def test_a_patch_takes_no_more_than_is_stored_of_it(root, fields):
    lib = change(root, "patches", lambda about: about.update(fields))
    (key,) = lib.keys("patches")
    with pytest.raises(LibraryCorruptError, match="does not make one"):
        lib.get_patch(key)


def test_files_opened_by_their_kind(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("dear")
    assert opening.read_regular(tmp_path / "file", 4) == b"dear"
    with pytest.raises(ValueError, match="has 4 bytes; expected at most 3"):
        opening.read_regular(tmp_path / "file", 3)
    for path, words in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (os.devnull, "a device")):
        with pytest.raises(NotRegularError, match=f"is {words}; expected a regular file"):
            opening.open_regular(path)
    with pytest.raises(FileNotFoundError):
        opening.open_regular(tmp_path / "nothing")


def test_a_system_that_has_not_all_flags(root, monkeypatch):
    """Windows has neither `O_NOFOLLOW` nor `O_DIRECTORY`."""
    for name in ("O_NOFOLLOW", "O_DIRECTORY"):
        monkeypatch.delattr(os, name)
    for name in ("QUIET", "_NO_LINKS"):
        monkeypatch.setattr(opening, name, 0)
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        lib.put(chunk(5))
        assert bits(lib.get(key_of(5))) == bits(chunk(5)) and lib.verify().ok
    (root.parent / "link").symlink_to(root / "LIBRARY.json")
    with pytest.raises(NotRegularError, match="is a link"):
        opening.open_regular(root.parent / "link")


def test_hostile_libraries():
    found = faults.run("tests.hardening.hostile_libraries", 6, seed=5)
    assert found.tried == 6 and not found.failures


def test_disk_errors():
    found = faults.run("tests.hardening.disk_errors", 8, seed=5)
    assert found.tried == 8 and not found.failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without forks")
@pytest.mark.parametrize("started", ["JAX", "nothing"])
def test_a_forked_process(root, started):
    run = subprocess.run(
        [sys.executable, "-m", "tests.kamera_jax.library.forks", root, started],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "as it should be\n", run.stdout + run.stderr


WITHOUT = """
import sys
sys.modules["fcntl"] = None
import eval.commands.main
import kamera_jax as kj
import models.hub.gguf.convert
from kamera_jax.errors import NoFileLocksError
from tests.kamera_jax.library.made import bits, chunk, key_of
lib = kj.ChunkLibrary.open(sys.argv[1])
assert bits(lib.get(key_of(0))) == bits(chunk(0)) and lib.verify().ok
try:
    kj.ChunkLibrary.open(sys.argv[1], mode="a")
except NoFileLocksError as error:
    print(error)
"""


def test_a_system_without_fcntl(root):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, root],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "this system has no file locks that Python knows" in run.stdout, run.stderr
