"""A full disk: what is deleted and collected frees room, and everything else has a name."""

import errno
import os
import shutil
from pathlib import Path

import pytest

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError, LibraryFullError, LibraryReadOnlyError
from kamera_jax.library import arrays
from tests.kamera_jax.library.made import chunk, key_of, patch
from tests.kamera_jax.library.reading import another, there


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


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
