"""Deleted marks: they go with their packs, and no lost or broken file brings a row back."""

import os
import shutil

import pytest

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError
from kamera_jax.library import marks
from tests.kamera_jax.library.made import chunk, key_of, patch
from tests.kamera_jax.library.reading import another, there


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


def test_marks_go_with_their_packs(lib):
    reader = kj.ChunkLibrary.open(lib.root)
    for turn in range(4):
        lib.put_many([chunk(i) for i in range(8)])
        lib.put(patch(3))
        assert there(reader) == set(range(8))
        for i in range(6):
            lib.delete(key_of(i))
        assert len(os.listdir(lib.root / "tombstones")) >= 7
        lib.gc()
        assert not os.listdir(lib.root / "tombstones") and len(logged(lib.root)) == 1, turn
        for each in (reader, lib, another(lib)):
            assert there(each) == {6, 7} and not each.stats().lost and each.verify().ok
            with pytest.raises(ChunkNotFoundError, match="never stored, or was deleted"):
                each.get(key_of(3))
        for i in (6, 7):
            lib.delete(key_of(i))


def logged(root):
    return (root / "deleted.log").read_text().split("\n\n")[0].split()[2::2]


def spoilt(path, how):
    if how == "removed":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif path.is_dir():
        next(path.iterdir()).unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"\xff" * len(whole)}[how])


@pytest.mark.parametrize("how", ["removed", "empty", "cut", "noise"])
@pytest.mark.parametrize("what", [("tombstones",), ("deleted.log",), ("index.json",), ("index.json", "deleted.log")])
def test_a_lost_file_brings_nothing_back(lib, what, how):
    lib.put_many([chunk(i) for i in range(4)] + [patch(2)])
    lib.delete(key_of(1))
    lib.delete(key_of(2))
    lib.close()
    lib.put(chunk(5))
    lib.delete(key_of(5))
    for name in what:
        spoilt(lib.root / name, how)
    if (lib.root / "tombstones").is_dir():
        reader = kj.ChunkLibrary.open(lib.root)
        assert there(reader) == {0, 3} and not reader.keys("patches")
        names = [name for name in what if how != "removed" and (name, how) != ("deleted.log", "cut")]  # as by a crash
        assert set(names) <= reader.verify().damaged.keys()
    again = another(lib)
    assert there(again) == {0, 3} == there(lib)
    again.gc()
    for name in ("tombstones", "deleted.log"):  # what one had lost it has again
        other = shutil.copytree(lib.root, lib.root.parent / name)
        shutil.rmtree(other / name) if name == "tombstones" else (other / name).unlink()
        assert there(kj.ChunkLibrary.open(other, mode="a")) == {0, 3}
    assert kj.ChunkLibrary.open(lib.root).verify().ok


def test_marks_are_written_over_what_is_there(lib):
    """The log has room for many, which is there before the disk is full."""
    log = lib.root / "deleted.log"
    lib.put_many([chunk(i) for i in range(8)])
    size = log.stat().st_size
    for i in range(4):
        lib.delete(key_of(i))
    assert log.stat().st_size == size > marks.PADDING and len(marks.read(lib.root).deleted) == 4
    with log.open("r+b") as file:  # the writer of the next one dies in the middle
        file.seek(len(log.read_bytes().rstrip(b"\n")) + 1)
        file.write(b"0123456789abcdef")
    shutil.rmtree(lib.root / "tombstones")
    assert there(another(lib)) == set(range(4, 8)) and lib.verify().ok
    lib.delete(key_of(5))
    for _ in range(3):
        marks.add(lib.root, [f"{number:032x}.{key_of(0)}" for number in range(400)])
    found = marks.read(lib.root)
    assert len(found.deleted) == 405 and not found.broken
    assert len(log.read_bytes()) - len(log.read_bytes().rstrip(b"\n")) >= marks.PADDING // 2


def test_what_an_earlier_version_lost_stays_known(lib):
    """Its library has no log: that one is begun says nothing of a pack that is gone."""
    lib.put(chunk(0))
    lib.put(chunk(1))
    gone = lib.info(key_of(0)).pack
    lib.close()
    (lib.root / "deleted.log").unlink()
    shutil.rmtree(lib.root / "packs" / gone)
    with another(lib) as again:
        assert again.stats().lost == 1 and again.delete(again.put(chunk(2))) and again.stats().lost == 1
    assert kj.ChunkLibrary.open(lib.root).stats().lost == 1 and another(lib).verify().lost == {key_of(0): gone}


def test_marks_of_an_earlier_version(lib):
    """It marked packs that it had dropped, for ever, and knew no log."""
    lib.put_many([chunk(i) for i in range(3)])
    lib.put_many([chunk(i) for i in range(3, 20)])
    lib.delete(key_of(4))
    dropped = lib.info(key_of(0)).pack
    lib.close()
    (lib.root / "deleted.log").unlink()
    (lib.root / "CHANGES").unlink()
    for name in (dropped, "0" * 32):
        (lib.root / "tombstones" / name).touch()
    wanted = {3, *range(5, 20)}
    assert there(kj.ChunkLibrary.open(lib.root)) == there(another(lib)) == there(lib) == wanted
    assert lib.gc().dropped == 1 and there(lib) == wanted and not lib.stats().lost
    assert len(os.listdir(lib.root / "tombstones")) == 1 and len(os.listdir(lib.root / "packs")) == 1
    for name in ("tombstones", "deleted.log"):
        other = shutil.copytree(lib.root, lib.root.parent / name)
        spoilt(other / name, "removed")
        assert there(kj.ChunkLibrary.open(other, mode="a")) == wanted
