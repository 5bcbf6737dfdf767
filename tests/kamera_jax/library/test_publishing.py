"""Publishing: readers have the state before or the one after, whole, whatever is interrupted and whoever else does."""

import os

import pytest
import tensorstore

import kamera_jax as kj
from kamera_jax.errors import (
    ExportError,
    LibraryCorruptError,
    LibraryDiskError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    PublishedMeanwhileError,
)
from kamera_jax.library import published, publishing
from kamera_jax.library.objects import Objects
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

URL = "memory://bucket/pages/"


class StoppedError(BaseException):
    """What ends a publishing in the middle."""


class Store:
    """A `tensorstore.KvStore` that notes what is written, and fails or lets another in before some write."""

    def __init__(self, store):
        self._store = store
        self.written = []
        self.before = {}
        self.error = StoppedError("it was stopped")

    def __getattr__(self, name):
        return getattr(self._store, name)

    def write(self, name, payload, **condition):
        number = len(self.written)
        self.written.append((name, payload is not None))
        for when in (number, name):
            if when in self.before:
                act = self.before.pop(when)
                if act is None:
                    raise self.error
                act()
        return self._store.write(name, payload, **condition)


@pytest.fixture
def memory():
    return Store(tensorstore.KvStore.open(URL, context=tensorstore.Context({})).result())


@pytest.fixture
def lib(tmp_path):
    lib = kj.ChunkLibrary.open(tmp_path / "lib", mode="a")
    lib.put_many([chunk(0), chunk(1), patch(0)])
    return lib


def publish(lib, store, prune=False):
    return publishing.publish(lib._index, lib.root, Objects(URL, store), prune=prune)


def read(store):
    return kj.ChunkLibrary(published.opened(Objects(URL, store)), "r", "always", None)


def holds(reader, *numbers):
    """Whether chunks of these numbers and no others are there, to the bit."""
    keys = {key_of(i) for i in numbers}
    return set(reader.keys()) == keys and all(bits(reader.get(key_of(i))) == bits(chunk(i)) for i in numbers)


def test_only_what_is_new_is_uploaded_and_the_pointer_comes_last(lib, memory):
    done = publish(lib, memory)
    names = [name for name, _ in memory.written]
    assert names[-1] == "PUBLISHED" and names[-2].startswith("states/") and len(set(names)) == len(names)
    assert (done.uploaded, done.known, done.removed) == (len(names) - 1, 0, 0)
    assert done.bytes == sum(len(memory.read(name).result().value) for name in names[:-1])
    assert holds(read(memory), 0, 1) and bits(read(memory).get_patch(patch(0).key)) == bits(patch(0))
    memory.written.clear()
    again = publish(lib, memory)
    assert (again.uploaded, again.bytes, again.known, again.state) == (0, 0, done.uploaded, done.state)
    assert memory.written == []
    lib.put(chunk(2))
    more = publish(lib, memory)
    (pack,) = {lib.info(key_of(2)).pack}
    assert all(pack in name for name, _ in memory.written[:-2]) and more.known == done.uploaded - 1
    assert more.uploaded == len(memory.written) - 1 and holds(read(memory), 0, 1, 2)


def test_stopped_before_any_object_the_old_state_is_read_and_the_same_command_goes_on(lib, memory):
    publish(lib, memory)
    lib.put(chunk(2))
    lib.delete(key_of(1))
    lib.put(chunk(3))
    memory.written.clear()
    whole = 0
    for number in range(100):
        memory.written.clear()
        memory.before = {1: None}  # one object comes further each time
        try:
            publish(lib, memory)
            break
        except StoppedError:
            assert holds(read(memory), 0, 1), number
            whole += 1
    assert whole > 10 and holds(read(memory), 0, 2, 3)
    assert read(memory).verify().ok and {name for name, _ in memory.written} == {"PUBLISHED"}


def test_stopped_at_the_very_first_there_is_none(lib, memory):
    for number in range(3):
        memory.written.clear()
        memory.before = {number: None}
        with pytest.raises(StoppedError):
            publish(lib, memory)
        with pytest.raises(LibraryNotFoundError, match="no library is published"):
            read(memory)
    publish(lib, memory)
    assert holds(read(memory), 0, 1)


@pytest.mark.parametrize("first", [True, False])
def test_the_second_of_two_publishers_is_refused(lib, memory, tmp_path, first):
    if not first:
        publish(lib, memory)
    lib.export(tmp_path / "other")
    root = tmp_path / "copy"
    os.rename(tmp_path / "other", root)
    (root / "LIBRARY.json").write_bytes((lib.root / "LIBRARY.json").read_bytes())  # the same library on another host
    other = kj.ChunkLibrary.open(root, mode="a")
    other.put(chunk(5))
    lib.put(chunk(6))
    memory.before = {"PUBLISHED": lambda: publish(other, memory._store)}
    with pytest.raises(PublishedMeanwhileError, match="another published.*Publish again"):
        publish(lib, memory)
    assert holds(read(memory), 0, 1, 5) and read(memory).verify().ok
    publish(lib, memory)
    assert holds(read(memory), 0, 1, 6)


def test_a_reader_goes_on_with_its_state_until_what_it_reads_is_pruned(lib, memory):
    publish(lib, memory)
    reader = read(memory)
    lib.delete(key_of(1))
    lib.put_many([chunk(i) for i in range(2, 6)])
    lib.gc()
    done = publish(lib, memory)
    assert done.removed == 0 and holds(reader, 0, 1) and not reader.has(key_of(2))
    there = {name.decode() for name in memory.list().result()}
    pruned = publish(lib, memory, prune=True)
    gone = there - {name.decode() for name in memory.list().result()}
    assert pruned.removed == len(gone) > 0 and pruned.uploaded == 0
    assert holds(read(memory), 0, *range(2, 6)) and read(memory).verify().ok
    with pytest.raises(LibraryCorruptError, match="open the library again"):
        [read(memory), reader.get(key_of(1)), reader.get(key_of(0))]


def test_pruning_leaves_what_others_put_there_and_refuses_who_looked_before(lib, memory):
    publish(lib, memory)
    memory.write("notes/mine.txt", b"mine").result()
    memory.write("packs/" + "a" * 32 + "/left", b"of one that was stopped").result()
    seen = memory.read("PUBLISHED").result().stamp.generation
    assert publish(lib, memory, prune=True).removed == 1
    assert memory.read("notes/mine.txt").result().value == b"mine"
    assert memory.read("PUBLISHED").result().stamp.generation != seen


def test_what_is_missing_there_is_uploaded_again(lib, memory):
    done = publish(lib, memory)
    for name in [name for name, _ in memory.written if name.startswith(("packs", "states"))]:
        memory._store.write(name, None).result()
        assert publish(lib, memory).uploaded >= 1
        assert holds(read(memory), 0, 1) and read(memory).verify().ok
    memory._store.write("PUBLISHED", None).result()
    assert publish(lib, memory).state == done.state and holds(read(memory), 0, 1)


def test_another_library_is_not_replaced(lib, memory, tmp_path):
    publish(lib, memory)
    with kj.ChunkLibrary.open(tmp_path / "other", mode="a") as other:
        other.put(chunk(9))
    with pytest.raises(ExportError, match="another library"):
        publish(other, memory)
    assert holds(read(memory), 0, 1)


def test_nothing_damaged_is_published(lib, memory):
    publish(lib, memory)
    lib.put(chunk(2))
    (data,) = (lib.root / "packs" / lib.info(key_of(2)).pack / "state").glob("*kv.rot/0*")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LibraryCorruptError, match="nothing is published"):
        publish(lib, memory)
    data.write_bytes(whole)
    manifest = data.parents[2] / "manifest.json"
    there = manifest.read_bytes()
    manifest.write_bytes(b"?")
    with pytest.raises(LibraryCorruptError):
        publish(kj.ChunkLibrary.open(lib.root), memory)
    assert holds(read(memory), 0, 1)
    manifest.write_bytes(there)
    publish(lib, memory)
    assert holds(read(memory), 0, 1, 2)


def test_what_is_collected_meanwhile_is_looked_for_again(lib, memory):
    lib.put_many([chunk(i) for i in range(2, 5)])
    memory.before = {1: lib.gc}  # small packs are put together
    publish(lib, memory)
    assert holds(read(memory), *range(5)) and read(memory).verify().ok


def test_what_the_store_says_has_a_name(lib, memory):
    for said, error in (
        ("PERMISSION_DENIED: Forbidden [HTTP code 403]", LibraryReadOnlyError),
        ("UNAUTHENTICATED: no credentials", LibraryReadOnlyError),
        (f"RESOURCE_EXHAUSTED: {os.strerror(28)}", LibraryFullError),
        ("ABORTED: All 4 retry attempts failed: could not connect", LibraryDiskError),
    ):
        memory.written.clear()
        memory.before = {"PUBLISHED": lambda said=said: _fail(said)}
        with pytest.raises(error, match="bucket"):
            publish(lib, memory)


def _fail(said):
    raise ValueError(said)


def test_a_folder_of_files(lib, tmp_path):
    url = f"file://{tmp_path}/store/pages"
    assert lib.publish(url).uploaded and lib.publish(url).uploaded == 0
    assert holds(kj.ChunkLibrary.open(url), 0, 1)
    lib.put(chunk(2))
    assert lib.publish(url, prune=True).removed == 1  # the state before
    assert holds(kj.ChunkLibrary.open(url), 0, 1, 2)
    with pytest.raises(LibraryNotFoundError, match="address"):
        lib.publish(str(tmp_path / "store"))


def test_an_empty_library(tmp_path, memory):
    publish(kj.ChunkLibrary.open(tmp_path / "lib", mode="a"), memory)
    assert read(memory).keys() == () and read(memory).verify().ok
