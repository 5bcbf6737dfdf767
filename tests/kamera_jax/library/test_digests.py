"""Digests of arrays say their algorithm: BLAKE3 in what is put, sha256 in what earlier versions wrote."""

import hashlib
import json

import numpy as np
import pytest
from blake3 import blake3

import kamera_jax as kj
from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library import digests, files, packs
from kamera_jax.library.arrays import DTYPES
from tests.kamera_jax.library.made import LAYERS, bits, chunk, key_of, patch


def manifests(root):
    return sorted(root.glob("*/*/manifest.json"))


def body_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["body"]


def aged(root):
    """Make a library what format 2 was: plain sha256 of every layer of KV, and of every other array."""
    files.write_sealed(root / "LIBRARY.json", {"format_version": 2, "uuid": "0" * 32})
    for path in manifests(root):
        body = body_of(path)
        for entry in body["entries"].values():
            for name, leaf in entry["leaves"].items():
                array, dtype, shape, start, stored = leaf
                assert stored.startswith("blake3:")
                data = b""
                if array:
                    axes = len(body["arrays"][array][1])
                    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
                    data = (path.parent / "state" / array / ".".join("0" * axes)).read_bytes()[start : start + size]
                parts = shape[0] if name.startswith("kv.") else 1
                each = len(data) // parts
                cut = [data[i * each : (i + 1) * each] for i in range(parts)]
                assert stored == "blake3:" + "".join(blake3(part).hexdigest() for part in cut)
                leaf[4] = "".join(hashlib.sha256(part).hexdigest() for part in cut)
        files.write_sealed(path, body)


@pytest.fixture
def mixed(tmp_path):
    """A library of format 2 that was written to since: chunk 0 and a patch are old, chunk 1 is new."""
    root = tmp_path / "lib"
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        lib.put_many([chunk(0), patch(0)])
    aged(root)
    with kj.ChunkLibrary.open(root) as old:
        assert bits(old.get(key_of(0))) == bits(chunk(0))
    assert json.loads((root / "LIBRARY.json").read_text())["body"]["format_version"] == 2
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        lib.put(chunk(1))
    return root


def test_old_rows_and_new_ones(mixed, tmp_path):
    first = json.loads((mixed / "LIBRARY.json").read_text())["body"]
    assert first == {"format_version": 3, "uuid": "0" * 32}
    lib = kj.ChunkLibrary.open(mixed, mode="a")
    for number in (0, 1):
        assert bits(lib.get(key_of(number))) == bits(chunk(number))
        assert lib.get_kv(key_of(number), slice(1, 3)).rot.shape[0] == 2
    assert [bits(each) for each in lib.patches(key_of(0))] == [bits(patch(0))] and lib.verify().ok
    lib.gc()  # puts both chunks into one pack, with the digests that they have
    (path,) = (mixed / "packs").glob("*/manifest.json")
    entries = body_of(path)["entries"]
    assert len(entries[key_of(0)]["leaves"]["kv.rot"][4]) == 64 * LAYERS
    assert entries[key_of(1)]["leaves"]["kv.rot"][4].startswith("blake3:")
    lib.export(tmp_path / "copy")
    copy = kj.ChunkLibrary.open(tmp_path / "copy")
    for each in (lib, copy):
        assert each.verify().ok
        found = {key: bits(s.chunk(i)) for p in each.packs() for s in each.restore(p) for i, key in enumerate(s.keys)}
        assert found == {key_of(n): bits(chunk(n)) for n in (0, 1)}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("apart", [0, 2**30])
def test_a_flipped_bit_is_found_in_both(mixed, number, apart, monkeypatch):
    monkeypatch.setattr(packs, "APART_BYTES", apart)
    lib = kj.ChunkLibrary.open(mixed)
    (path,) = (p for p in (mixed / "packs").iterdir() if key_of(number) in body_of(p / "manifest.json")["entries"])
    data = path / "state" / "0.kv.free" / "0.0.0.0"
    written = bytearray(data.read_bytes())
    written[-1] ^= 1  # of the last layer
    data.write_bytes(written)
    for read in (lib.get, lib.get_kv, lambda key: lib.get_many([key])):
        with pytest.raises(LibraryCorruptError, match="'kv.free' .* is not as it was written"):
            read(key_of(number))
    assert lib.get_kv(key_of(number), slice(0, LAYERS - 1)).free.shape[0] == LAYERS - 1
    with pytest.raises(LibraryCorruptError, match="'kv.free' .* is not as it was written"):
        lib.restore(path.name)
    assert bits(lib.get(key_of(1 - number))) == bits(chunk(1 - number))
    assert list(lib.verify().damaged) == [key_of(number)]


@pytest.mark.parametrize("algorithm", ["md5", "crc32", "", "sha1", "BLAKE3", "blake3 "])
def test_an_unknown_algorithm_is_named(mixed, algorithm):
    """Who writes manifests may not choose how weakly they are held against their data."""
    for path in (mixed / "packs").glob("*/manifest.json"):
        body = body_of(path)
        if key_of(1) in body["entries"]:
            leaf = body["entries"][key_of(1)]["leaves"]["kv.rot"]
            leaf[4] = algorithm + ":" + leaf[4].partition(":")[2]
            files.write_sealed(path, body)
    lib = kj.ChunkLibrary.open(mixed)
    with pytest.raises(LibraryCorruptError, match=f"digest by '{algorithm}'; this version knows blake3, sha256"):
        lib.get(key_of(1))
    assert f"digest by '{algorithm}'" in lib.verify().damaged[key_of(1)]
    assert bits(lib.get(key_of(0))) == bits(chunk(0))


@pytest.mark.parametrize("stored", [None, 7, [], "blake3:", "blake3:" + "0" * 63, "0" * 65, ":"])
def test_what_is_no_digest(stored):
    with pytest.raises(ValueError):
        digests.check_digest(stored, 1)


def test_a_digest_is_of_its_algorithm_alone():
    array = np.arange(96, dtype=np.uint8)
    stored = digests.digest(array, 3)
    payload = array.view(np.uint8)
    assert digests.agrees(payload, stored, 0, 3) and digests.agrees(payload[32:], stored, 1, 2)
    assert not digests.agrees(payload[:64], stored, 1, 2)
    assert not digests.agrees(payload, stored.removeprefix("blake3:"), 0, 3)  # the same digits as sha256
    assert not digests.agrees(payload, "sha256:" + stored.partition(":")[2], 0, 3)
