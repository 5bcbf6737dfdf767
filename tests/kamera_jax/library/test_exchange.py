"""Exported, sent and imported: the same bits, origins and patches; links and what is cut are refused."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

import kamera_jax as kj
from kamera_jax.errors import (
    AmbiguousKeyError,
    ChunkNotFoundError,
    ExportError,
    LibraryArchiveError,
    LibraryCorruptError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    LibraryVersionError,
)
from kamera_jax.library import exchange, files
from kamera_jax.library.facts import Exchanged
from kamera_jax.library.files import read_sealed, write_sealed
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

ORIGIN = kj.Origin("report.pdf", page=3, encoded="2026-11-30T09:15:00Z")
WANTED = (key_of(0), key_of(1)[:8], patch(7).key)


@pytest.fixture
def root(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(chunk(0), origin=ORIGIN)
        lib.put(chunk(1), storage="int8")
        lib.put_many([chunk(2), patch(0), patch(0, (1,)), patch(2), patch(7)])
    return lib.root


def rows(lib):
    """Everything that a library holds, to the bit."""
    found = {key: bits(lib.get(key)) for key in lib.keys()}
    found |= {key: bits(lib.get_patch(key)) for key in lib.keys("patches")}
    return found | {f"about {item.key}": (item.fields, item.spec, item.bytes, item.origin) for item in lib.items()}


def of(lib, *keys):
    """As `rows`, of some keys."""
    return {name: row for name, row in rows(lib).items() if name.split()[-1] in keys}


CHOSEN = (key_of(0), key_of(1), patch(0).key, patch(0, (1,)).key, patch(7).key)


@pytest.mark.parametrize("name", ["other", "other.tar"])
def test_what_is_selected_comes_back_to_the_bit(root, tmp_path, name):
    lib = kj.ChunkLibrary.open(root)
    done = lib.export(tmp_path / name, WANTED)
    assert (done.chunks, done.patches, done.known, done.failed) == (2, 3, 0, {})
    assert done.bytes == sum(lib.info(key).bytes for key in CHOSEN)
    with kj.ChunkLibrary.open(tmp_path / "third", mode="a") as third:
        assert third.import_from(tmp_path / name) == done
        assert rows(third) == of(lib, *CHOSEN) and third.verify().ok
        assert third.info(key_of(0)).origin == ORIGIN and third.info(key_of(1)).fields["storage"] == "int8"
        again = third.import_from(tmp_path / name)
        assert again == Exchanged(0, 0, 5, 0, {}) and rows(third) == of(lib, *CHOSEN)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["lib", name, "third"])


def test_everything_by_default_into_a_library_that_has_some(root, tmp_path):
    lib = kj.ChunkLibrary.open(root)
    with kj.ChunkLibrary.open(tmp_path / "other", mode="a") as other:
        other.put_many([chunk(0), chunk(9)])
    done = lib.export(tmp_path / "other")
    assert (done.chunks, done.patches, done.known) == (2, 4, 1)
    other = kj.ChunkLibrary.open(tmp_path / "other")
    assert set(other.keys()) == {key_of(i) for i in (0, 1, 2, 9)} and other.info(key_of(0)).origin is None
    assert other.verify().ok


def test_selecting_while_importing(root, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        assert lib.import_from(root, [key_of(2)[:4]]).patches == 1 and lib.keys() == (key_of(2),)
        for keys, kind in (([key_of(8)], ChunkNotFoundError), (["0123"], ChunkNotFoundError)):
            with pytest.raises(kind):
                lib.import_from(root, [key_of(0), *keys])
        assert lib.keys() == (key_of(2),)
        lib.put(chunk(0))
        lib.put(type(chunk(0))(**{**vars_of(chunk(1)), "key": key_of(0)[:6] + "0" * 58}))
        with pytest.raises(AmbiguousKeyError):
            lib.export(tmp_path / "out.tar", [key_of(0)[:6]])
        assert not (tmp_path / "out.tar").exists()


def vars_of(item):
    names = ("kv", "positions", "length", "advance", "model", "source", "spec", "content", "lineage")
    return {name: getattr(item, name) for name in names}


def test_places_that_cannot_be_exported_to(root, tmp_path):
    lib = kj.ChunkLibrary.open(root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "there.tar").write_text("dear")
    (tmp_path / "there").write_text("dear")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "link.tar").symlink_to(tmp_path / "nowhere")
    (tmp_path / "to the same").symlink_to(root)
    before = sorted(tmp_path.rglob("*"))
    for name, kind, named in (
        ("lib", ExportError, "is the library that is exported from"),
        ("to the same", ExportError, "is the library that is exported from"),
        ("full", LibraryNotFoundError, "is no library and holds letter.txt"),
        ("there.tar", ExportError, "is there already"),
        ("there", ExportError, "is there already"),
        ("folder.tar", ExportError, "is there already"),
        ("link.tar", ExportError, "is there already"),
        ("none/other", ExportError, "no folder .*none to export to"),
        ("other.tar.gz", ExportError, "compressed file.*a folder, or a file whose name ends in .tar"),
        ("other.zip", ExportError, "compressed file"),
    ):
        with pytest.raises(kind, match=named):
            lib.export(tmp_path / name, [key_of(0)])
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.tar").read_text() == "dear"


def test_libraries_that_cannot_be_imported(root, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("dear")
    (tmp_path / "nothing.tar").write_bytes(b"")
    (tmp_path / "old").mkdir()
    kj.ChunkLibrary.open(root).export(tmp_path / "good.tar")
    (tmp_path / "link.tar").symlink_to(tmp_path / "good.tar")
    shutil.copytree(root, tmp_path / "format")
    write_sealed(tmp_path / "format" / "LIBRARY.json", {"format_version": 1, "uuid": "0" * 32})
    os.mkfifo(tmp_path / "pipe.tar")
    before = rows(kj.ChunkLibrary.open(root))
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        for name, kind, named in (
            ("lib", LibraryNotFoundError, "is the library that is imported into"),
            ("none", LibraryNotFoundError, "no folder and no file"),
            ("empty", LibraryNotFoundError, "is no library"),
            ("text", LibraryArchiveError, "is no library as export writes one"),
            ("nothing.tar", LibraryArchiveError, "is no library as export writes one"),
            ("link.tar", LibraryArchiveError, "is a link; expected a regular file"),
            ("pipe.tar", LibraryArchiveError, "is a pipe; expected a regular file"),
            ("format", LibraryVersionError, "has format 1"),
        ):
            with pytest.raises(kind, match=named):
                lib.import_from(tmp_path / name)
        assert rows(lib) == before
    with pytest.raises(LibraryReadOnlyError):
        kj.ChunkLibrary.open(root).import_from(tmp_path / "good.tar")


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


@pytest.mark.parametrize(
    "odd",
    [
        member("library/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("library/packs/link", type=tarfile.SYMTYPE, linkname=".."),
        member("library/hard", type=tarfile.LNKTYPE, linkname="library/LIBRARY.json"),
        member("library/pipe", type=tarfile.FIFOTYPE),
        member("library/device", type=tarfile.CHRTYPE),
        member("../outside", b"dear"),
        member("library/../../outside", b"dear"),
        member("/outside", b"dear"),
        member("library/LIBRARY.json", b"{}"),  # a second time
        member("library/LIBRARY.json/below", b"dear"),
        member("library/" + "deep/" * 20 + "file", b"dear"),
        member("library/back\\slash", b"dear"),
        member("other/LIBRARY.json", b"{}"),
        member("library/sparse", type=tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda odd: odd[0].name[:40],
)
def test_an_archive_with_what_no_library_has_is_refused_whole(root, tmp_path, odd):
    kj.ChunkLibrary.open(root).export(tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar", "a") as archive:
        archive.addfile(*odd)
    before = sorted(path for path in tmp_path.iterdir())
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        with pytest.raises(LibraryArchiveError):
            lib.import_from(tmp_path / "good.tar")
        assert not lib.keys()
    assert sorted(path for path in tmp_path.iterdir() if path.name != "new") == before


def test_an_archive_that_is_cut_anywhere(root, tmp_path):
    kj.ChunkLibrary.open(root).export(tmp_path / "good.tar", [key_of(0)])
    whole = (tmp_path / "good.tar").read_bytes()
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        for length in (0, 100, 512, 700, len(whole) // 3, len(whole) // 2):
            (tmp_path / "cut.tar").write_bytes(whole[:length])
            try:
                done = lib.import_from(tmp_path / "cut.tar")
            except (LibraryArchiveError, LibraryNotFoundError, LibraryCorruptError):
                continue
            assert not done.chunks or bits(lib.get(key_of(0))) == bits(chunk(0))
        assert lib.verify().ok


def test_an_archive_without_names_of_users_and_of_other_programs(root, tmp_path):
    """Its folder may have any name, or none, and empty folders may be missing."""
    lib = kj.ChunkLibrary.open(root)
    lib.export(tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar") as archive:
        assert {(each.uid, each.gid, each.uname, each.gname) for each in archive} == {(0, 0, "", "")}
        archive.extractall(tmp_path / "by hand", filter="data")
    for prefix in ("", "./", "any name/"):
        with tarfile.open(tmp_path / "other.tar", "w") as archive:
            for path in sorted((tmp_path / "by hand" / "library").rglob("*")):
                if path.is_file():
                    archive.add(path, prefix + path.relative_to(tmp_path / "by hand" / "library").as_posix())
        with kj.ChunkLibrary.open(tmp_path / f"new {len(prefix)}", mode="a") as new:
            new.import_from(tmp_path / "other.tar")
            assert rows(new) == rows(lib)


@pytest.mark.parametrize("name", ["other", "other.tar"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_is_interrupted_leaves_nothing(root, tmp_path, monkeypatch, name, error):
    """Also where half of it is written: the second pack, or the archive."""
    real = exchange.pack_folder if name.endswith(".tar") else exchange.sync

    def stopped(*arguments):
        real(*arguments)
        raise error

    monkeypatch.setattr(exchange, "pack_folder" if name.endswith(".tar") else "sync", stopped)
    lib = kj.ChunkLibrary.open(root)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else LibraryFullError):
        lib.export(tmp_path / name)
    left = [path.name for path in tmp_path.iterdir() if path.name != "lib"]
    assert left in ([], [name])  # renamed already, and whole
    if left:
        assert rows(kj.ChunkLibrary.open(tmp_path / name)) == rows(lib)


def test_an_import_that_is_interrupted_goes_on(root, tmp_path, monkeypatch):
    real = exchange._stored
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        with monkeypatch.context() as context:
            context.setattr(exchange, "_stored", stopped)
            with pytest.raises(KeyboardInterrupt):
                lib.import_from(root)
        assert len(lib.keys()) == 2 and lib.verify().ok
        done = lib.import_from(root)
        assert (done.chunks, done.patches, done.known) == (1, 4, 2)
        assert rows(lib) == rows(kj.ChunkLibrary.open(root))


def test_what_is_damaged_is_named_and_the_rest_is_copied(root, tmp_path):
    pack = root / "packs" / kj.ChunkLibrary.open(root).info(key_of(2)).pack
    data = next(pack.glob("state/*.kv.rot/0.0.0.0"))
    payload = bytearray(data.read_bytes())
    payload[7] ^= 1
    data.write_bytes(payload)
    lib = kj.ChunkLibrary.open(root, verify="never")
    done = lib.export(tmp_path / "other.tar")
    assert list(done.failed) == [key_of(2)] and "is not as it was written" in done.failed[key_of(2)]
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as new:
        new.import_from(tmp_path / "other.tar")
        assert new.verify().ok and set(new.keys()) == {key_of(0), key_of(1)} and len(new.keys("patches")) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 10**6), ("model", 7), ("storage", "int4"), ("origin", {"file": 7}), ("spec", "f" * 64), ("codec", [])],
)
def test_a_row_that_nobody_could_put_is_refused(root, tmp_path, field, value):
    pack = root / "packs" / kj.ChunkLibrary.open(root).info(key_of(0)).pack
    body = read_sealed(pack / "manifest.json")
    about = body["entries"][key_of(0)]["about"]
    if field == "spec":  # another model's, under the digest of this one's
        body["specs"][about["spec"]]["heads"] = 1
    else:
        about[field] = value
    write_sealed(pack / "manifest.json", body)
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        done = lib.import_from(root)
        assert list(done.failed) == [key_of(0)] and set(lib.keys()) == {key_of(1), key_of(2)} and lib.verify().ok


def test_an_archive_for_which_there_is_no_room(root, tmp_path, monkeypatch):
    kj.ChunkLibrary.open(root).export(tmp_path / "good.tar")
    usage = shutil.disk_usage(tmp_path)
    with kj.ChunkLibrary.open(tmp_path / "new", mode="a") as lib:
        monkeypatch.setattr(exchange.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(LibraryFullError, match="no room for it; name another folder in the environment, TMPDIR"):
            lib.import_from(tmp_path / "good.tar")


def test_a_read_only_library_is_exported(root, tmp_path, monkeypatch):
    """Nothing is written in it: its files may not be opened for that."""
    whole = os.open

    def refusing(path, flags, *more, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).is_relative_to(root):
            raise OSError(30, "Read-only file system", str(path))
        return whole(path, flags, *more, **options)

    monkeypatch.setattr(files.os, "open", refusing)
    lib = kj.ChunkLibrary.open(root)
    assert lib.export(tmp_path / "other.tar").chunks == 3
