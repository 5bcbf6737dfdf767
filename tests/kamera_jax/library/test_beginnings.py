"""The beginning of a key names it, wherever a library takes a key, as long as no other key begins so."""

import os
import time

import pytest

import kamera_jax as kj
from kamera_jax.errors import AmbiguousKeyError, ArgumentError, ChunkNotFoundError, LibraryCorruptError
from tests.kamera_jax.library.made import bits, chunk, key_of, named, patch

TWINS = ("abcd0" + "1" * 59, "abcd0" + "2" * 59, "abcd1" + "1" * 59)


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([chunk(0), chunk(1), patch(0), patch(7)])  # of the last there is no chunk
        lib.put_many([named(chunk(i), key=key) for i, key in enumerate(TWINS, start=10)])
        lib.put(named(patch(1), key=key_of(0)[:4] + "f" * 60))  # begins as a chunk does
        yield lib


def test_whatever_takes_a_key_takes_its_beginning(lib):
    whole = key_of(0)
    for length in (4, 5, 12, 63, 64):
        start = whole[:length]
        assert bits(lib.get(start)) == bits(chunk(0))
        assert [bits(each) for each in lib.patches(start)] == [bits(patch(0))]
        assert lib.get_kv(start).rot.shape == chunk(0).kv.rot.shape
        assert lib.resolve(start, "chunks") == whole
    assert lib.info(whole[:5]).key == whole and lib.has(whole[:5])
    assert [each.key for each in lib.get_many([whole[:4], key_of(1)[:6]])] == [whole, key_of(1)]
    assert bits(lib.get_patch(patch(0).key[:4])) == bits(patch(0))
    assert [bits(each) for each in lib.patches(key_of(7)[:6])] == [bits(patch(7))]
    assert lib.delete(key_of(1)[:6]) and not lib.has(key_of(1))


def test_several_keys_are_counted_and_none_is_taken(lib):
    for act in (lib.get, lib.info, lib.patches, lib.get_kv, lib.has, lib.delete, lib.resolve):
        with pytest.raises(AmbiguousKeyError, match="3 keys in .* begin with 'abcd' .*give more of it"):
            act("abcd")
    with pytest.raises(AmbiguousKeyError, match="2 keys .*abcd01111111, abcd02222222"):
        lib.get("abcd0")
    assert set(TWINS) <= set(lib.keys()) and lib.get("abcd1").key == TWINS[2]
    assert lib.get(key_of(0)[:4]).key == key_of(0) and lib.get_patch(key_of(0)[:4]).key != key_of(0)
    with pytest.raises(AmbiguousKeyError, match="2 keys"):  # a chunk and a patch
        lib.info(key_of(0)[:4])


@pytest.mark.parametrize("start", ["", "a", "abc", "ABCD", "zzzz", "abcd ", "a" * 65, "abcg", "*", "abcd\n"])
def test_what_cannot_be_a_beginning(lib, start):
    for act in (lib.get, lib.info, lib.patches, lib.get_patch, lib.resolve):
        with pytest.raises(ChunkNotFoundError, match="no key that begins with .*64 hexadecimal digits.*first 4"):
            act(start)
    assert not lib.has(start) and not lib.delete(start) and lib.find(start) is None


def test_a_beginning_of_no_key(lib):
    for act in (lib.get, lib.info, lib.patches, lib.get_patch):
        with pytest.raises(ChunkNotFoundError, match="no key that begins with '0123456'"):
            act("0123456")
    assert not lib.has("0123456") and not lib.delete("0123456") and lib.patches("0" * 64) == ()
    with pytest.raises(ChunkNotFoundError, match="is the key of a patch: use get_patch"):
        lib.get(patch(0).key[:6])
    with pytest.raises(ChunkNotFoundError, match="is the key of a chunk: use get"):
        lib.get_patch(key_of(1)[:6])
    with pytest.raises(ArgumentError, match=r"for one chunk \[key\]"):
        lib.get_many(key_of(0))


def test_the_beginning_of_a_lost_key(lib):
    pack = lib.info(key_of(1)).pack
    lib.close()
    os.rename(lib.root / "packs" / pack, lib.root.parent / "elsewhere")
    lib = kj.ChunkLibrary.open(lib.root)
    with pytest.raises(LibraryCorruptError, match="is gone; put it anew"):
        lib.get(key_of(1)[:6])


def test_a_whole_key_is_not_looked_for(lib, monkeypatch):
    """However many keys there are: no list of them is gone through."""
    monkeypatch.setattr(type(lib._index), "keys_from", None)
    monkeypatch.setattr(type(lib._index), "patched_from", None)
    assert bits(lib.get(key_of(0))) == bits(chunk(0)) and lib.has(key_of(0)) and lib.patches(key_of(0))
    assert lib.info(key_of(0)).key == key_of(0) and lib.delete(key_of(0))
    began = time.perf_counter()
    for _ in range(10_000):
        lib.resolve(key_of(0))
    assert time.perf_counter() - began < 2.0
