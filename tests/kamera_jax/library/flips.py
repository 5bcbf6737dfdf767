"""Single bits flipped in the files of a library: what is read is then as it was put, or a named error."""

import collections

import jax
import numpy as np

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from tests.kamera_jax.library.made import bits, chunk, key_of, patch

NAMED = (ChunkNotFoundError, LibraryCorruptError, LibraryNotFoundError, LibraryVersionError)
CHUNKS = 5
PATCHES = 4
BULK_EVERY = 4
"""Whole packs are restored through Orbax in one of so many trials: it takes as long as all the rest."""


def kind_of(path):
    """What a file of a library is."""
    if path.name in ("index.json", "LIBRARY.json", "manifest.json"):
        return path.name.partition(".")[0].lower()
    return "data" if path.name.strip("0.") == "" else "metadata"


def flips(folder, count, seed=0):
    """Flip ``count`` bits, one at a time, spread over the kinds of files; how many were detected and how many harmless.

    Raises AssertionError where something else was read than was put.
    """
    rng = np.random.default_rng(seed)
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        keys = lib.put_many([*(chunk(i) for i in range(CHUNKS)), *(patch(i) for i in range(PATCHES))])
    made = dict(
        zip(keys, [bits(chunk(i)) for i in range(CHUNKS)] + [bits(patch(i)) for i in range(PATCHES)], strict=True)
    )
    files = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            files[kind_of(path)].append(path)
    assert set(files) == {"index", "library", "manifest", "data", "metadata"}
    found = {kind: collections.Counter() for kind in files}
    for trial in range(count):
        kind = sorted(files)[trial % len(files)]
        path = files[kind][rng.integers(len(files[kind]))]
        whole = path.read_bytes()
        bit = int(rng.integers(8 * len(whole)))
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        try:
            detected = read_all(folder, keys, made, bulk=trial // len(files) % BULK_EVERY == 0)
        finally:
            path.write_bytes(whole)
        found[kind]["detected" if detected else "harmless"] += 1
        if kind == "data":
            assert detected, f"{path}, bit {bit}: nobody noticed"
    assert not read_all(folder, keys, made, bulk=True)
    return {"flips": count, **{kind: dict(found[kind]) for kind in sorted(found)}}


def read_all(folder, keys, made, *, bulk):
    """Read everything by every way; whether anything was refused. What is read must be what was put."""
    refused = 0
    try:
        lib = kj.ChunkLibrary.open(folder)
    except NAMED:
        return True
    for i, key in enumerate(keys):
        try:
            got = lib.get(key) if i < CHUNKS else lib.get_patch(key)
            assert bits(got) == made[key]
        except NAMED:
            refused += 1
    try:
        for i in range(PATCHES):
            assert all(bits(each) in made.values() for each in lib.patches(key_of(i)))
        kv = lib.get_kv(keys[0], slice(1, 3))
        assert np.asarray(kv.rot).tobytes() == np.asarray(chunk(0).kv.rot[1:3]).tobytes()
    except NAMED:
        refused += 1
    if bulk:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        try:
            for pack in lib.packs():
                for stacked in (*lib.restore(pack), *lib.restore(pack, sharding=here)):
                    for row, key in enumerate(stacked.keys):
                        assert key is not None and bits(stacked.chunk(row)) == made[key]
        except NAMED:
            refused += 1
    report = lib.verify()
    assert report.ok or report.damaged
    return bool(refused) or not report.ok
