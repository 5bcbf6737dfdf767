"""Fetching ahead: chunks are there before they are asked for, in few reads; what goes wrong is said when they are."""

import gc
import shutil
import threading
import weakref

import pytest

import kamera_jax as kj
from kamera_jax.errors import ClosedError, LibraryCorruptError, LibraryFullError
from kamera_jax.tiers import disk
from kamera_jax.tiers.forms import device_bytes
from tests.kamera_jax.library.flips import kind_of
from tests.kamera_jax.library.made import bits, chunk

MADE = [chunk(number, tokens=16) for number in range(8)]
KEYS = [each.key for each in MADE]
SIZE = device_bytes(MADE[0])


@pytest.fixture
def library(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as opened:
        opened.put_many(MADE[:4])
        opened.put_many(MADE[4:])
        yield opened


@pytest.fixture
def store(library):
    with kj.Tiers(device_bytes=4 * SIZE, host_bytes=8 * SIZE, library=library) as made:
        yield made


@pytest.fixture
def reads(monkeypatch):
    """Which keys were read together, each time."""
    seen = []
    real = disk.Disk.read
    monkeypatch.setattr(disk.Disk, "read", lambda self, keys: seen.append(list(keys)) or real(self, keys))
    return seen


def damage(library, key):
    """Flip a bit in every byte of the pack of a chunk."""
    pack = library.root / "packs" / library.info(key).pack
    for path in pack.rglob("*"):
        if path.is_file() and kind_of(path) == "data":
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def test_what_was_fetched_is_served_from_above_and_each_pack_was_read_once(store, reads):
    store.prefetch([KEYS[0], KEYS[5], KEYS[2], KEYS[7], KEYS[1]])
    store.wait()
    assert sorted(map(sorted, (each for each in reads if each))) == sorted(
        map(sorted, ([KEYS[0], KEYS[2], KEYS[1]], [KEYS[5], KEYS[7]]))
    )
    for number in (0, 5, 2, 7, 1):
        assert bits(store.find(KEYS[number])) == bits(MADE[number])
    stats = store.stats
    assert stats.library == 0 and stats.fetched == stats.device + stats.host == 5 and stats.device >= 4
    assert stats.read_bytes == 5 * SIZE and stats.device_bytes <= 4 * SIZE


def test_a_hint_fetches_what_is_used_soonest_first(store, reads):
    store.hint({KEYS[6]: 9, KEYS[3]: 2, KEYS[4]: 5, KEYS[0]: None})
    store.wait()
    assert [each[0] for each in reads] == [KEYS[3], KEYS[4]] and set(reads[1]) == {KEYS[4], KEYS[6]}
    store.hint({KEYS[1]: 1}, prefetch=False)
    store.wait()
    assert store.find(KEYS[1]) is not None and store.stats.library == 1


def test_who_asks_for_what_is_being_read_waits_for_it(store, monkeypatch):
    began = threading.Event()
    go = threading.Event()
    real = disk.Disk.read

    def slow(self, keys):
        began.set()
        assert go.wait(30)
        return real(self, keys)

    monkeypatch.setattr(disk.Disk, "read", slow)
    store.prefetch([KEYS[0], KEYS[5]])
    assert began.wait(30)
    threading.Timer(0.05, go.set).start()
    assert bits(store.find(KEYS[0])) == bits(MADE[0]) and store.stats.library == 0
    store.wait()


def test_what_waits_still_is_read_by_who_asks(store, monkeypatch):
    began = threading.Event()
    go = threading.Event()
    real = disk.Disk.read

    def slow(self, keys):
        began.set()
        assert go.wait(30)
        return real(self, keys)

    monkeypatch.setattr(disk.Disk, "read", slow)
    store.prefetch([KEYS[0], KEYS[5]])
    assert began.wait(30)
    assert bits(store.find(KEYS[5])) == bits(MADE[5]) and store.stats.library == 1  # though the thread stands still
    go.set()
    store.wait()


def test_a_chunk_that_was_deleted_meanwhile_is_not_there(store, library):
    library.delete(KEYS[0])
    store.prefetch([KEYS[0], KEYS[1]])
    store.wait()
    assert store.find(KEYS[0]) is None and bits(store.find(KEYS[1])) == bits(MADE[1])
    assert store.stats.failed == 0


def test_a_broken_chunk_is_said_when_it_is_asked_for_and_never_served(store, library):
    damage(library, KEYS[0])
    store.prefetch([KEYS[0], KEYS[5]])
    store.wait()
    assert store.stats.failed == 1
    for _ in range(2):  # of the thread, and then of its own look
        with pytest.raises(LibraryCorruptError):
            store.find(KEYS[0])
    assert bits(store.find(KEYS[5])) == bits(MADE[5])


def test_a_library_that_is_gone_is_said_when_it_is_asked_for(store, library):
    assert store.find(KEYS[0]) is not None
    shutil.rmtree(library.root)
    store.prefetch(KEYS[1:3])
    store.wait()
    with pytest.raises(ValueError, match="gone|no library|not there|No such"):
        store.find(KEYS[1])
    assert bits(store.find(KEYS[0])) == bits(MADE[0])
    library.root.mkdir()
    (library.root / "LOCK").touch()
    library.mode = "r"


def test_whatever_the_thread_raises_is_raised_where_the_key_is_asked_for(store, monkeypatch):
    def broken(self, keys):
        raise MemoryError("no room")

    monkeypatch.setattr(disk.Disk, "read", broken)
    store.prefetch([KEYS[0]])
    store.wait()
    with pytest.raises(MemoryError, match="no room"):
        store.find(KEYS[0])
    assert bits(store.find(KEYS[0])) == bits(MADE[0])  # once: it is read as any other


def test_when_the_thread_was_stopped_all_is_served_without_it(store):
    store.prefetch(KEYS)
    store.close()
    for key, made in zip(KEYS, MADE, strict=True):
        assert bits(store.find(key)) == bits(made)
    with pytest.raises(ClosedError, match="closed"):
        store.prefetch(KEYS[:1])
    store.close()
    store.wait()


def test_a_full_disk_leaves_all_as_it_was(tmp_path, monkeypatch):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        store = kj.Tiers(device_bytes=SIZE, host_bytes=2 * SIZE, library=library)
        for each in MADE[:3]:
            store.put(each)
        before = store.stats
        real = library.put_many

        def full(items, **options):
            raise LibraryFullError("no room")

        monkeypatch.setattr(library, "put_many", full)
        with pytest.raises(LibraryFullError):
            for each in MADE[3:]:
                store.put(each)
        there = store.stats
        assert (there.device_bytes, there.host_bytes, there.dropped) == (before.device_bytes, before.host_bytes, 0)
        assert [bits(store.find(key)) for key in KEYS[:3]] == [bits(each) for each in MADE[:3]]  # as nothing moves
        monkeypatch.setattr(library, "put_many", real)
        for each in MADE:
            store.put(each)
        assert all(bits(store.find(key)) == bits(made) for key, made in zip(KEYS, MADE, strict=True))


def test_a_library_that_is_only_read_is_not_written_to(tmp_path, library):
    with kj.ChunkLibrary.open(library.root) as reading:
        store = kj.Tiers(device_bytes=SIZE, host_bytes=SIZE, library=reading)
        for made in (*MADE, chunk(20, tokens=16), chunk(21, tokens=16), chunk(22, tokens=16)):
            store.put(made)
        assert store.stats.dropped >= 1 and library.stats().chunks == len(MADE)
        assert all(bits(store.find(key)) == bits(made) for key, made in zip(KEYS, MADE, strict=True))
        store.close()


def test_tiers_that_nobody_has_end_their_thread(library):
    store = kj.Tiers(device_bytes=SIZE, host_bytes=SIZE, library=library)
    store.prefetch(KEYS[:3])
    store.wait()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("kamera-tiers")]
    assert threads
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_flush_stores_what_is_in_memory_alone(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        store = kj.Tiers(device_bytes=2 * SIZE, host_bytes=8 * SIZE, library=library)
        for each in MADE[:5]:
            store.put(each)
        assert library.stats().chunks == 0
        store.flush()
        assert set(library.keys()) == set(KEYS[:5]) and bits(library.get(KEYS[2])) == bits(MADE[2])
