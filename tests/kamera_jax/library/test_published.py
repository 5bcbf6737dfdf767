"""A published library is read in place: the same bits as from its folder, in few requests; what is wrong has a name."""

import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kamera_jax as kj
from kamera_jax.errors import (
    ChunkNotFoundError,
    ExportError,
    LibraryCorruptError,
    LibraryDiskError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    LibraryVersionError,
)
from kamera_jax.library import published
from kamera_jax.library.files import sealed
from kamera_jax.library.objects import Objects
from tests.kamera_jax.library.made import bits, chunk, key_of, patch
from tests.kamera_jax.library.served import QUICK, served
from tests.kamera_jax.library.test_exchange import rows

MANY = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A library with what there can be: chunks of one shape and of others, codes, patches, a row that was deleted."""
    with kj.ChunkLibrary.open(tmp_path_factory.mktemp("published") / "lib", mode="a") as lib:
        lib.put_many([chunk(i, tokens=16) for i in range(MANY)])
        lib.put(chunk(50), storage="int8", origin=kj.Origin("report.pdf", page=3, encoded="2026-11-30T09:15:00Z"))
        lib.put_many([chunk(51), patch(0), patch(0, (1,)), patch(51)])
        lib.delete(key_of(3))
    return lib.root


@pytest.fixture(scope="module")
def store(root, tmp_path_factory):
    """The folder that it was published to."""
    folder = tmp_path_factory.mktemp("store")
    kj.ChunkLibrary.open(root).publish(f"file://{folder}/pages")
    return folder


@pytest.fixture(scope="module")
def server(store):
    with served(store) as server:
        yield server


@pytest.fixture
def lib(server):
    server.requests.clear()
    return kj.ChunkLibrary.open(f"{server.url}/pages")


@pytest.fixture
def own(store, tmp_path, monkeypatch):
    """A copy of the store that may be damaged, whose address is asked once more alone."""
    monkeypatch.setattr("kamera_jax.library.objects.RETRIES", QUICK)
    shutil.copytree(store, tmp_path / "own")
    return tmp_path / "own" / "pages"


def opened(folder):
    return kj.ChunkLibrary.open(f"file://{folder}")


def test_everything_is_as_in_the_folder(root, lib):
    here = kj.ChunkLibrary.open(root)
    assert rows(lib) == rows(here) and sorted(lib.keys()) == sorted(here.keys())
    assert lib.verify() == here.verify() and lib.verify().ok
    assert [lib.has(key_of(i)) for i in (0, 3, 99)] == [True, False, False]
    assert lib.resolve(key_of(0)[:12]) == key_of(0)
    assert bits(lib.find(key_of(0))) == bits(chunk(0, tokens=16)) and lib.find(key_of(3)) is None
    assert [patch.key for patch in lib.patches(key_of(0))] == [patch.key for patch in here.patches(key_of(0))]
    for name in ("chunks", "patches", "packs", "deleted", "deleted_bytes", "damaged", "lost"):
        assert getattr(lib.stats(), name) == getattr(here.stats(), name), name
    assert "http://127.0.0.1" in repr(lib)
    for some in (slice(1, 3), slice(0, 0)):
        for key in (key_of(0), key_of(50)):
            one, other = (each.get_kv(key, some) for each in (lib, here))
            assert np.array_equal(one.rot, other.rot) and np.array_equal(one.free, other.free)
        assert np.array_equal(lib.get_rot(key_of(0), some), here.get_rot(key_of(0), some))
    with pytest.raises(ChunkNotFoundError, match="127.0.0.1"):
        lib.get(key_of(3))


def test_of_one_pack_many_chunks_are_few_requests(root, lib, server):
    assert len(server.requests) == 2  # what is published, and its state
    keys = [key_of(i) for i in range(MANY) if i != 3]
    (pack,) = {lib.info(key).pack for key in keys}
    arrays = len({leaf.array for leaf in lib._index.pack(pack).manifest.leaves(keys[0]).values()})
    assert len(server.requests) == 3  # its manifest
    assert [bits(each) for each in lib.get_many(keys)] == [bits(chunk(i, tokens=16)) for i in range(MANY) if i != 3]
    assert len(server.requests) == 3 + arrays
    lib.get(keys[0])
    assert len(server.requests) == 3 + 2 * arrays and all(asked for _, asked in server.requests)
    server.requests.clear()
    lib.get_rot(keys[0], slice(1, 2))
    ((path, asked),) = server.requests
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    assert path.endswith("kv.rot/0.0.0.0") and last - first + 1 == lib.get(keys[0]).kv.rot[0].nbytes


def test_batches_of_many_chunks_are_in_their_order(lib, monkeypatch):
    keys = [key_of(i) for i in (51, 0, 7, 50, 1, 2, 7)]
    monkeypatch.setattr(lib._index.place, "batch", 10_000)
    assert [each.key for each in lib.get_many(keys)] == keys and lib.get_many([]) == []
    with pytest.raises(ChunkNotFoundError):
        lib.get_many([key_of(0), key_of(99)])


def test_whole_packs_come_to_where_they_are_wanted(root, lib):
    here = kj.ChunkLibrary.open(root)
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    for sharding in (None, NamedSharding(mesh, PartitionSpec(None, None, None, "x"))):
        for pack in lib.packs():
            for a, b in zip(lib.restore(pack, sharding=sharding), here.restore(pack, sharding=sharding), strict=True):
                assert a.keys == b.keys and a.about == b.about
                assert {n: x.sharding for n, x in a.arrays.items()} == {n: x.sharding for n, x in b.arrays.items()}
                for name, array in a.arrays.items():
                    assert np.array_equal(array, b.arrays[name]), name


def test_what_would_write_says_to_publish(lib, tmp_path):
    for write in (
        lambda: lib.put(chunk(60)),
        lambda: lib.put_many([chunk(60)]),
        lambda: lib.put_async(chunk(60)),
        lambda: lib.delete(key_of(0)),
        lib.gc,
        lambda: lib.import_from(tmp_path),
        lambda: lib.publish(f"file://{tmp_path}/other"),
        lambda: kj.ChunkLibrary.open(lib.root, mode="a"),
    ):
        with pytest.raises(LibraryReadOnlyError, match="publish"):
            write()
    with pytest.raises(LibraryReadOnlyError):
        kj.ChunkLibrary.open(lib.root, lock="lease")
    with lib:
        lib.release(key_of(0))
    assert not list(tmp_path.iterdir())


def test_it_is_copied_into_a_folder(root, lib, tmp_path):
    here = kj.ChunkLibrary.open(root)
    with kj.ChunkLibrary.open(tmp_path / "copy", mode="a") as copy:
        done = copy.import_from(lib.root, [key_of(0), key_of(50)])
        assert (done.chunks, done.patches, done.failed) == (2, 2, {})
        assert bits(copy.get(key_of(50))) == bits(here.get(key_of(50)))
    lib.export(tmp_path / "all.tar")
    with kj.ChunkLibrary.open(tmp_path / "third", mode="a") as third:
        third.import_from(tmp_path / "all.tar")
        assert rows(third).keys() == rows(here).keys()
    with pytest.raises(ExportError, match="publish"):
        kj.ChunkLibrary.open(root).export(lib.root)


def test_addresses_that_are_none(root, tmp_path, server):
    for url in ("ftp://host/lib", "http://host/lib?signed=1", "file://host/lib", "gs://", "memory://lib", "s4://x/y"):
        with pytest.raises(LibraryNotFoundError, match="address"):
            kj.ChunkLibrary.open(url)
        with pytest.raises(LibraryNotFoundError, match="address"):
            kj.ChunkLibrary.open(root).publish(url)
    with pytest.raises(LibraryNotFoundError, match=r"no library is published.*publish\(\)"):
        kj.ChunkLibrary.open(f"{server.url}/elsewhere")
    with pytest.raises(LibraryNotFoundError, match="PUBLISHED"):
        opened(root)
    with pytest.raises(ExportError, match="gs://, s3:// or file://"):
        kj.ChunkLibrary.open(root).publish(f"{server.url}/pages")


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_damaged_data_is_named_and_costs_no_other_pack(own, damage):
    lib = opened(own)
    pack = lib.info(key_of(0)).pack
    (data,) = (own / "packs" / pack / "state").glob("*kv.rot/0*")
    harm(data, damage)
    match = {"gone": "is gone.*publish", "short": "not as long", "flipped": "not as it was written.*publish"}[damage]
    lib = opened(own)
    with pytest.raises(LibraryCorruptError, match=match):
        lib.get(key_of(0))
    with pytest.raises(LibraryCorruptError, match=match):
        lib.get_many([key_of(0), key_of(51)])
    report = lib.verify()
    assert not report.ok and key_of(0) in report.damaged and not report.lost
    assert key_of(50) not in report.damaged and bits(lib.get(key_of(51))) == bits(chunk(51))
    if damage == "flipped":
        assert list(report.damaged) == [key_of(0)] and opened(own).get_many([key_of(i) for i in (1, 2)])
        assert kj.ChunkLibrary.open(f"file://{own}", verify="never").get(key_of(0)).key == key_of(0)


def harm(file, damage):
    payload = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(payload[:10])
    else:
        payload[7] ^= 1
        file.write_bytes(payload)


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_damaged_manifests_cost_their_pack(own, damage):
    pack = opened(own).info(key_of(0)).pack
    harm(own / "packs" / pack / "manifest.json", damage)
    lib = opened(own)
    with pytest.raises(LibraryCorruptError, match="publish"):
        lib.get(key_of(0))
    assert lib.keys() and bits(lib.get(key_of(51))) == bits(chunk(51))
    assert list(lib.verify().damaged) == [pack] and {item.key for item in lib.items()}.isdisjoint({key_of(0)})


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_state_is_not_opened(own, damage):
    (state,) = (own / "states").iterdir()
    shutil.copy(own / "PUBLISHED", own / "kept")
    harm(state, damage)
    with pytest.raises(LibraryCorruptError, match="publish"):
        opened(own)
    harm(own / "PUBLISHED", damage)
    with pytest.raises(LibraryNotFoundError if damage == "gone" else LibraryCorruptError):
        opened(own)


def test_what_a_state_says_is_not_believed(own):
    state = Objects.open(f"file://{own}")
    lib = opened(own)
    good = lib._index.place._state.written()
    body = published.unsealed("state", good)
    pack = lib.info(key_of(0)).pack
    path = next(iter(body["packs"][pack]["files"]))
    for change, error in (
        (lambda body: body["packs"].update({"../../x": body["packs"][pack]}), LibraryCorruptError),
        (lambda body: body["packs"][pack]["files"].update({"../x": [1, "blake3:" + "0" * 64]}), LibraryCorruptError),
        (lambda body: body["packs"][pack]["files"].update({path: [-1, "blake3:" + "0" * 64]}), LibraryCorruptError),
        (lambda body: body["packs"][pack]["files"].update({path: [1, "md5:" + "0" * 32]}), LibraryCorruptError),
        (lambda body: body["packs"][pack].update(files=3), LibraryCorruptError),
        (lambda body: body.update(deleted=["../x"]), LibraryCorruptError),
        (lambda body: body.update(format_version=99), LibraryVersionError),
        (lambda body: body.update(packs=[]), LibraryCorruptError),
    ):
        wrong = published.unsealed("state", good)
        change(wrong)
        payload = sealed("state", wrong)
        said = published.digest_of(payload)
        state.begin(published.state_name(said), payload).done()
        state.begin(published.POINTER, published.pointer(said, len(payload), "u")).done()
        with pytest.raises(error):
            opened(own)
    newer = sealed("p", {"version": 2, "state": said, "bytes": 1, "uuid": "u"}).ljust(published.POINTER_BYTES)
    state.begin(published.POINTER, newer).done()
    with pytest.raises(LibraryVersionError, match="newer"):
        opened(own)


def test_a_server_that_fails_is_no_damage(store, monkeypatch):
    monkeypatch.setattr("kamera_jax.library.objects.RETRIES", QUICK)
    with served(store) as server:
        url = f"{server.url}/pages"
        lib = kj.ChunkLibrary.open(url)
        lib.info(key_of(0))
        for what, match in (({"status": 500}, "again"), ({"gone": True}, "again"), ({"parts": False}, "Range")):
            vars(server).update(what)
            for read in (lambda: lib.get(key_of(0)), lambda: lib.get_many([key_of(0)]), lib.verify):
                with pytest.raises(LibraryDiskError, match=match):
                    read()
            if server.parts:  # else whole objects come as they are
                with pytest.raises(LibraryDiskError, match=match):
                    list(kj.ChunkLibrary.open(url).items())
            vars(server).update(status=None, gone=False, parts=True)
        for status in (401, 403):
            server.status = status
            with pytest.raises(LibraryDiskError, match="refuses.*GOOGLE_APPLICATION_CREDENTIALS"):
                kj.ChunkLibrary.open(url)
        server.status = None
        assert bits(lib.get(key_of(0))) == bits(chunk(0, tokens=16)), "it is there again"
    with pytest.raises(LibraryDiskError, match="again"):
        lib.get(key_of(0))
    with pytest.raises(LibraryDiskError, match="again"):
        kj.ChunkLibrary.open(url)
