"""Deleting and collecting: nothing comes back, nothing alive is lost, whatever others do and files go missing."""

import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError, LibraryFullError, LibraryReadOnlyError
from kamera_jax.library import arrays, collection, marks
from kamera_jax.library.index import Index
from kamera_jax.library.packs import Pack
from tests.kamera_jax.library.made import bits, chunk, key_of, patch


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


def another(lib):
    return kj.ChunkLibrary.open(lib.root, mode="a")


def there(lib):
    """The numbers of what is there, each read and compared."""
    numbers = {key_of(i): i for i in range(100)}
    found = {numbers[key] for key in lib.keys()}
    assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in found)
    return found


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


class Disk:
    """A disk that is full until a folder is removed: no file is made, and the log is not made longer."""

    def __init__(self, monkeypatch, number=errno.ENOSPC, *, log=True, room=0):
        self.room = room
        self.usage = shutil.disk_usage("/")
        self.monkeypatch = monkeypatch
        error = OSError(number, os.strerror(number))
        for owner, name, refused in (
            (os, "open", lambda path, flags=0, *more, **options: flags & os.O_CREAT and "LOCK" not in str(path)),
            (os, "pwrite", lambda *arguments: not log),
            (Path, "open", lambda path, mode="r", *more, **options: set(mode) & set("wxa")),
            (arrays, "save", lambda *arguments: True),
        ):
            self.refuse(owner, name, refused, error)
        rmtree = shutil.rmtree

        def removed(path, *arguments, **options):
            self.room += 1
            return rmtree(path, *arguments, **options)

        monkeypatch.setattr(shutil, "rmtree", removed)
        free = lambda path: self.usage._replace(free=2**40 if self.room > 0 else 0)  # noqa: E731
        monkeypatch.setattr(shutil, "disk_usage", free)

    def refuse(self, owner, name, refused, error):
        whole = getattr(owner, name)

        def instead(*arguments, **options):
            if self.room <= 0 and refused(*arguments, **options):
                raise error
            return whole(*arguments, **options)

        self.monkeypatch.setattr(owner, name, instead)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("log", [True, False])
def test_deleting_on_a_full_disk_frees_room(lib, monkeypatch, number, log):
    lib.put(chunk(0))
    lib.put_many([chunk(i) for i in range(20, 40)])
    lib.close()
    with monkeypatch.context() as context:
        Disk(context, number, log=log)
        with pytest.raises(LibraryFullError, match="the disk of"):
            lib.put(chunk(1))
        assert lib.delete(key_of(0)) and not lib.has(key_of(0))
        if log:
            assert lib.gc().freed > 0
        assert len(lib.packs()) == 1
        lib.put(chunk(1))
    for each in (lib, another(lib)):
        assert there(each) == {1, *range(20, 40)} and not each.stats().lost
        with pytest.raises(ChunkNotFoundError):
            each.get(key_of(0))


def test_a_collection_without_room_does_the_rest(lib, monkeypatch):
    lib.put_many([chunk(i) for i in range(20)])
    lib.put_many([chunk(i) for i in range(20, 40)])
    lib.put_many([patch(i) for i in range(4)])
    for i in (*range(12), *range(20, 40)):
        lib.delete(key_of(i))
    (sparse,) = {lib.info(key_of(12)).pack}
    with monkeypatch.context() as context:
        Disk(context, room=-100)
        done = lib.gc()
    assert done.left == (sparse,) and (done.dropped, done.moved) == (2, 0) and done.freed > 0
    assert there(lib) == there(another(lib)) == set(range(12, 20)) and lib.verify().ok
    done = lib.gc()
    assert done.left == () and (done.dropped, done.moved) == (1, 8)
    assert there(lib) == set(range(12, 20)) and not os.listdir(lib.root / "tombstones")


@pytest.mark.parametrize(
    ("number", "named"),
    [
        *((number, LibraryFullError) for number in (errno.ENOSPC, errno.EDQUOT)),
        *((number, LibraryReadOnlyError) for number in (errno.EROFS, errno.EACCES, errno.EPERM)),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_errors_of_the_disk_are_named(lib, monkeypatch, number, named, wrapped):
    def refused(*arguments):
        if wrapped:  # as the storage library says it
            raise ValueError(f"Error writing [{os.strerror(number)}]")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(arrays, "save", refused)
    with pytest.raises(named):
        lib.put(chunk(0))


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
