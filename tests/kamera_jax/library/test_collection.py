"""Collecting while others read, put and delete: nothing alive is lost, and every change is seen."""

import errno
import fcntl
import os
import shutil
import time

import pytest

import kamera_jax as kj
from kamera_jax.library import collection
from kamera_jax.library.index import Index
from kamera_jax.library.packs import Pack
from tests.kamera_jax.library.made import chunk, key_of, patch
from tests.kamera_jax.library.reading import another, there


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


def once(method, act):
    """A method before whose first call something else is done."""
    done = []

    def instead(*arguments, **options):
        if not done:
            done.append(True)
            act()
        return method(*arguments, **options)

    return instead


@pytest.mark.parametrize("where", ["__init__", "row", "check_files", "check"])
def test_verify_while_another_collects(lib, monkeypatch, where):
    for i in range(3):
        lib.put(chunk(i))
    lib.put_many([chunk(i) for i in range(3, 20)])
    for i in range(3, 18):
        lib.delete(key_of(i))
    lib.put_many([patch(0), patch(1)])
    lib.close()
    other = another(lib)
    reader = kj.ChunkLibrary.open(lib.root)
    monkeypatch.setattr(Pack, where, once(getattr(Pack, where), other.gc))
    report = reader.verify()
    assert report.ok and (report.packs, report.rows) == (2, 7)
    assert there(reader) == {0, 1, 2, 18, 19}


class Clock:
    """Times of files that are all one, perhaps with links that say nothing, and a clock some seconds behind it."""

    def __init__(self, monkeypatch, seconds, links=0):
        tick = int(time.time()) * 10**9
        times = dict.fromkeys(("st_mtime_ns", "st_ctime_ns", "st_atime_ns"), tick)

        def standing(whole):
            def stat(*arguments, **options):
                fields = list(whole(*arguments, **options))[:10]
                return os.stat_result([*fields[:3], links or fields[3], *fields[4:]], times)

            return stat

        for name in ("stat", "lstat"):
            monkeypatch.setattr(os, name, standing(getattr(os, name)))
        monkeypatch.setattr(time, "time_ns", lambda: tick + round(seconds * 1e9))


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.9, 10.0])
def test_changes_within_one_tick_of_the_clock(lib, monkeypatch, seconds):
    reader = kj.ChunkLibrary.open(lib.root)
    Clock(monkeypatch, seconds)
    for i in range(4):
        lib.put(chunk(i))
        assert there(reader) == set(range(i + 1))
    lib.delete(key_of(1))
    assert there(reader) == {0, 2, 3}
    another(lib).gc()
    assert there(reader) == there(lib) == {0, 2, 3} and reader.verify().ok


@pytest.mark.parametrize("seconds", [0.5, 1.9])
def test_folders_that_no_library_changed(tmp_path, lib, monkeypatch, seconds):
    """A pack copied by hand, within the tick in which the folder was looked at."""
    with kj.ChunkLibrary.open(tmp_path / "other", mode="a") as other:
        other.put(chunk(1))
        other.delete(other.put(chunk(2)))
    reader = kj.ChunkLibrary.open(lib.root)
    Clock(monkeypatch, seconds, links=1)
    lib.put(chunk(0))
    assert there(reader) == {0}
    shutil.copytree(next(each for each in (other.root / "packs").iterdir() if key_of(1) in manifest(each)), copy(lib))
    assert there(reader) == {0, 1}


def manifest(pack):
    return (pack / "manifest.json").read_text()


def copy(lib):
    """Where the one pack that has the second chunk goes, under its own name."""
    (name,) = (each.name for each in (lib.root.parent / "other" / "packs").iterdir() if key_of(1) in manifest(each))
    return lib.root / "packs" / name


def test_what_stands_still_is_not_read_again(lib, monkeypatch):
    lib.put(chunk(0))
    reader = kj.ChunkLibrary.open(lib.root)
    later = time.time_ns() + 10**11
    monkeypatch.setattr(time, "time_ns", lambda: later)
    reader.keys()
    monkeypatch.setattr(Index, "_scan", lambda self: pytest.fail("read again"))
    for _ in range(3):
        assert reader.has(key_of(0))


def test_nothing_is_listed_twice_over(lib, monkeypatch, capsys):
    """`ls` and `info`, collecting and deleting take as many steps for each row, however many there are."""
    from eval.commands.main import main

    lib.put_many([chunk(i) for i in range(30)] + [patch(i) for i in range(30)])
    calls = dict.fromkeys(("keys", "packs", "_scan"), 0)
    for name in calls:
        whole = getattr(Index, name)

        def counting(self, *arguments, name=name, whole=whole):
            calls[name] += 1
            return whole(self, *arguments)

        monkeypatch.setattr(Index, name, counting)
    assert main(["library", "ls", str(lib.root)]) == 0 and key_of(29)[:12] in capsys.readouterr().out
    assert main(["library", "info", key_of(3), str(lib.root)]) == 0
    assert calls["keys"] <= 12 and calls["packs"] <= 4 and calls["_scan"] <= 8
    calls["_scan"] = 0
    for i in range(25):
        lib.delete(key_of(i))
    assert calls["_scan"] <= 2
    for i in range(30, 40):
        lib.put(chunk(i))
    assert calls["_scan"] <= 2
    calls["packs"] = 0
    lib.gc()
    assert calls["packs"] <= 10


def test_the_lock_is_free_while_rows_are_read(lib, monkeypatch):
    for i in range(6):
        lib.put(chunk(i))
    tried = []
    whole = Pack.row

    def row(self, *arguments, **options):
        with (lib.root / "LOCK").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(True)
        return whole(self, *arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(Pack, "row", row)
        assert lib.gc().moved == 6
    assert len(tried) == 6 and there(lib) == set(range(6))


def test_what_others_do_while_rows_are_copied(lib, monkeypatch):
    lib.put_many([chunk(i) for i in range(20)])
    for i in range(12):
        lib.delete(key_of(i))
    for i in range(20, 23):
        lib.put(chunk(i))
    other = another(lib)

    def meanwhile():
        other.delete(key_of(13))
        other.delete(key_of(20))
        other.put(chunk(30))
        other.gc()

    monkeypatch.setattr(collection, "_replace", once(collection._replace, meanwhile))
    lib.gc()
    wanted = {*range(14, 20), 12, 21, 22, 30}
    assert there(lib) == there(other) == there(another(lib)) == wanted
    assert lib.verify().ok and all(len(lib._index.packs_of(key_of(i))) == 1 for i in wanted)


def test_leftovers(lib):
    lib.put(chunk(0))
    hexes = "0123456789abcdef" * 2
    left = [f"index.json.{hexes}", f"LIBRARY.json.{hexes}", f"deleted.log.{hexes}", f"staging/{hexes}"]
    left.append(f"staging/{hexes}.orbax-checkpoint-tmp-12")
    foreign = ["index.json.bak", "staging/notes", f"notes.{hexes}", f"index.json.{hexes[:-1]}", "tombstones/todo"]
    for act in (lambda: another(lib), lib.gc):
        for name in (*left[:3], *foreign):
            (lib.root / name).write_bytes(b"dear")
        (lib.root / left[3]).mkdir()
        (lib.root / left[4]).mkdir()
        swept = getattr(act(), "swept", 5)
        assert swept == 5 and not any((lib.root / name).exists() for name in left)
        assert all((lib.root / name).read_bytes() == b"dear" for name in foreign) and there(lib) == {0}


def test_a_pack_that_cannot_be_removed(lib, monkeypatch):
    """Its rows are copied once; what stays of it is nobody's."""
    for i in range(3):
        lib.put(chunk(i))
    stuck = lib.info(key_of(1)).pack
    whole = os.rename

    def rename(source, target, **options):
        if os.fspath(source).endswith(stuck):
            raise PermissionError(errno.EPERM, "not permitted", source)
        return whole(source, target, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "rename", rename)
        done = lib.gc()
        assert (done.dropped, done.moved) == (2, 3)
        assert (lib.gc().moved, there(lib)) == (0, {0, 1, 2})
        lib.delete(key_of(1))
        assert there(another(lib)) == {0, 2}
    assert lib.gc().dropped == 1 and there(another(lib)) == {0, 2} and len(lib.packs()) == 1


def test_every_damaged_file_is_named(lib):
    """Files of several packs have the same names."""
    for i in range(3):
        lib.put(chunk(i))
    damaged = sorted((lib.root / "packs").glob("*/commit_success.txt"))[:2]
    for path in damaged:
        path.write_bytes(path.read_bytes() + b"x")
    wanted = {path.relative_to(lib.root / "packs").as_posix() for path in damaged}
    assert set(lib.verify().damaged) == wanted and len(wanted) == 2
