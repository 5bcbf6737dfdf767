"""What is odd about an item is stored and comes back equal, or is refused by name; its neighbours are stored."""

from copy import copy

import ml_dtypes
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import LibraryCorruptError, MissingKeyError, UnstorableError
from kamera_jax.kv import KV
from kamera_jax.library import commit
from kamera_jax.library.files import locked
from tests.kamera_jax.library.made import SPEC, bits, chunk, key_of, named, patch, reading


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


def kv(dtype):
    base = chunk(0).kv
    return KV(*(np.asarray(each, np.float32).astype(dtype) for each in (base.rot, base.free)))


ONES = np.ones(16, np.int32)

REFUSED = {
    "a key in capitals": (lambda: named(chunk(0), key="A" * 64), "exact", "key is 'A+'; expected 64 hexadecimal"),
    "a key that is short": (lambda: named(chunk(0), key="abc"), "exact", "64 hexadecimal digits"),
    "a key that is a path": (lambda: named(patch(0), key="../" + "0" * 61), "exact", "64 hexadecimal digits"),
    "a patch of no chunk": (lambda: named(patch(0), chunk=""), "exact", "chunk is ''; expected 64 hexadecimal"),
    "a name with a space": (lambda: reading(chunk(0), **{"a b": ONES}), "exact", "inputs.a b.*has a name"),
    "a Greek name": (lambda: reading(chunk(0), **{"λ": ONES}), "exact", "inputs.λ.*has a name"),
    "no name": (lambda: reading(chunk(0), **{"": ONES}), "exact", "'inputs.' has a name"),
    "a path for a name": (lambda: reading(chunk(0), **{"../../a": ONES}), "exact", "has a name that cannot be"),
    "a long name": (lambda: reading(chunk(0), **{"a" * 144: ONES}), "exact", "at most 150 in all"),
    "nine axes": (
        lambda: reading(chunk(0), tokens=ONES.reshape((1,) * 8 + (16,))),
        "exact",
        "9 axes; expected at most 8",
    ),
    "int4": (lambda: named(chunk(0), kv=kv(ml_dtypes.int4)), "exact", "has dtype int4; stored are"),
    "int4 in eight bits": (lambda: named(chunk(0), kv=kv(ml_dtypes.int4)), "int8", "has dtype int4; stored are"),
    "whole numbers in eight bits": (lambda: named(chunk(0), kv=kv(np.int16)), "int8", "'int16' is not stored as int8"),
    "float8 in eight bits": (
        lambda: named(chunk(0), kv=kv(ml_dtypes.float8_e4m3fn)),
        "int8",
        "not stored as int8",
    ),
    "64 bits": (
        lambda: reading(chunk(0), tokens=ONES.astype(np.int64)),
        "exact",
        "int64, and would come back as int32",
    ),
    "a masked array": (lambda: reading(chunk(0), tokens=np.ma.masked_array(ONES, ONES > 0)), "exact", "a MaskedArray"),
    "a list": (lambda: reading(chunk(0), tokens=[1, 2]), "exact", "inputs.tokens is a list; expected an array"),
    "objects": (lambda: reading(chunk(0), tokens=ONES.astype(object)), "exact", "has dtype object"),
    "no model": (lambda: named(chunk(0), model=None), "exact", "model is None; expected a text"),
    "a model in bytes": (lambda: named(patch(0), model=b"abc"), "exact", "b'abc'"),
    "a list of antecedents": (lambda: named(patch(0), antecedents=["a"]), "exact", "expected a tuple of keys"),
    "nested antecedents": (lambda: named(chunk(0), antecedents=(("a",),)), "exact", "antecedents is .*expected texts"),
    "a length below 0": (lambda: named(chunk(0), length=-1), "exact", "length is -1; expected a whole number"),
    "a length beyond the rows": (lambda: named(chunk(0), length=999), "exact", "length is 999; expected at most its"),
    "half a token": (lambda: named(patch(0), length=1.5), "exact", "length is 1.5; expected a whole number"),
    "no advance": (lambda: named(chunk(0), advance=float("nan")), "exact", "advance is nan; expected a finite number"),
    "a turn of 1": (lambda: named(chunk(0), turn=1), "exact", "turn is 1; expected True or False"),
    "a spec that is a text": (lambda: named(chunk(0), spec="abc"), "exact", "its spec is a str; expected .*KVSpec"),
    "KV of two axes": (lambda: named(chunk(0), kv=KV(ONES[:, None], ONES[:, None])), "exact", "expected 3 axes"),
    "KV without values": (lambda: named(chunk(0), kv=KV(*[np.zeros((4, 0, 8))] * 2)), "exact", "float64|no values"),
    "ranks beyond the factors": (
        lambda: named(patch(0), factors=patch(0).factors.replace(ranks=np.full(4, 99, np.int32))),
        *("exact", "ranks are .*expected 0 to 6"),
    ),
    "values that are not in use": (
        lambda: named(patch(0), factors=patch(0).factors.replace(ranks=np.zeros(4, np.int32))),
        *("exact", "not in use; make them 0"),
    ),
    "a patch of nearly nothing": (
        lambda: named(
            patch(0),
            factors=patch(0).factors.replace(
                u=np.broadcast_to(np.int8(0), (4, 2**16, 16)),
                v=np.broadcast_to(np.int8(0), (4, 2**16, 2**11)),
                ranks=np.zeros(4, np.int32),
            ),
        ),
        *("exact", "leave out components and rows"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused(lib, name):
    make, storage, words = REFUSED[name]
    with pytest.raises(UnstorableError, match=words):
        lib.put(make(), storage=storage)
    assert lib.stats().packs == 0 and not list((lib.root / "staging").iterdir())


def spec_with(**changes):
    """The made spec with other values, as it is where annotations are not checked."""
    spec = copy(SPEC)
    for name, value in changes.items():
        object.__setattr__(spec, name, value)
    return spec


STORED = {
    "numbers of numpy": lambda: named(chunk(0), length=np.int64(5), advance=np.float32(5.5), turn=np.bool_(True)),
    "a spec of numpy's numbers": lambda: named(chunk(0), spec=spec_with(layers=np.int64(4), heads=np.int32(2))),
    "texts of any letters": lambda: named(chunk(0), model="λ \0 \ud800", content="x" * 100_000),
    "a source of numpy's length": lambda: reading(chunk(0), tokens=ONES),
    "the longest name": lambda: reading(chunk(0), **{"a" * 143: ONES}),
    "a name with dots": lambda: reading(chunk(0), **{"a.b.0": ONES}),
    "eight axes": lambda: reading(chunk(0), tokens=ONES.reshape((1,) * 7 + (16,))),
    "no axes": lambda: reading(chunk(0), tokens=np.full((), 7, np.int32)),
    "no inputs": lambda: reading(chunk(0)),
    "an empty input": lambda: reading(chunk(0), tokens=ONES, media=np.zeros((0, 8), np.float32)),
    "float8": lambda: named(chunk(0), kv=kv(ml_dtypes.float8_e5m2)),
    "turned round": lambda: reading(chunk(0), tokens=np.arange(16, dtype=np.int32)[::-1]),
    "by columns": lambda: named(chunk(0), kv=KV(*(np.asfortranarray(each) for each in vars(kv(np.float32)).values()))),
    "infinite values": lambda: named(chunk(0), kv=KV(*(each * np.float32(np.inf) for each in vars(kv("f4")).values()))),
}


@pytest.mark.parametrize("name", STORED)
def test_what_is_odd_comes_back_equal(lib, name):
    with np.errstate(invalid="ignore"):
        item = STORED[name]()
    lib.put_many([chunk(1), item, patch(1)])
    assert bits(lib.get(key_of(0))) == bits(item) and bits(lib.get(key_of(1))) == bits(chunk(1)) and lib.verify().ok


@pytest.mark.parametrize("dtype", [">f4", ">f2"])
def test_the_other_byte_order_comes_back_equal(lib, dtype):
    item = named(reading(chunk(0), tokens=ONES.astype(">i4")), kv=kv(dtype))
    lib.put(item)
    lib.put(named(item, key=key_of(5)), storage="int8")
    back = lib.get(key_of(0))
    assert (np.asarray(back.kv.rot) == item.kv.rot).all() and (np.asarray(back.source.inputs["tokens"]) == 1).all()
    assert back.kv.rot.dtype == np.dtype(dtype).newbyteorder("=")
    step = np.abs(item.kv.rot.astype(np.float32)).max(1, keepdims=True) / 127
    assert (np.abs(np.asarray(lib.get(key_of(5)).kv.rot, np.float32) - item.kv.rot.astype(np.float32)) <= step).all()


def test_an_odd_item_costs_no_other(lib):
    odd = reading(chunk(9), **{"a b": ONES})
    with pytest.raises(UnstorableError, match="a b"):
        lib.put_many([chunk(0), odd, chunk(1), patch(0), named(chunk(3), key="")])
    with pytest.raises(MissingKeyError):
        lib.put_many([chunk(2), named(chunk(3), key=""), chunk(4)])
    assert set(lib.keys()) == set(map(key_of, (0, 1, 2, 4))) and len(lib.keys("patches")) == 1


def test_a_row_that_cannot_be_written_costs_no_other(lib, monkeypatch):
    whole = commit.write_pack

    def failing(place, kind, rows):
        if any(row.key == key_of(1) for row in rows):
            raise TypeError("of the storage library")
        return whole(place, kind, rows)

    monkeypatch.setattr(commit, "write_pack", failing)
    with locked(lib.root / "LOCK"):  # the writer waits, and then writes them together
        futures = [lib.put_async(chunk(i)) for i in range(4)]
    for i, future in enumerate(futures):
        if i == 1:
            with pytest.raises(UnstorableError, match="cannot be stored: of the storage library"):
                future.result()
        else:
            assert future.result() == key_of(i)
    assert set(lib.keys()) == set(map(key_of, (0, 2, 3))) and not list((lib.root / "staging").iterdir())


def test_the_first_of_a_key_wins(lib):
    lib.put_many([chunk(0), named(chunk(0), advance=99.0), chunk(1)])
    assert bits(lib.get(key_of(0))) == bits(chunk(0)) and lib.stats().chunks == 2


def test_a_key_is_of_one_item(lib):
    lib.put(chunk(0))
    with pytest.raises(UnstorableError, match="is the key of one of the chunks"):
        lib.put(named(patch(0), key=key_of(0)))
    assert bits(lib.get(key_of(0))) == bits(chunk(0)) and lib.keys("patches") == ()


def test_what_is_there_and_cannot_be_read_is_not_acknowledged(lib):
    lib.put_many([chunk(0), chunk(1)])
    lib.put(chunk(2))
    lib.close()
    (lib.root / "packs" / lib.info(key_of(0)).pack / "manifest.json").write_text("{}")
    again = kj.ChunkLibrary.open(lib.root, mode="a")
    with pytest.raises(LibraryCorruptError, match="is there and cannot be read.*delete its key and put it anew"):
        again.put(chunk(0))
    assert again.delete(key_of(0)) and again.put(chunk(0)) == key_of(0)
    assert bits(again.get(key_of(0))) == bits(chunk(0)) and bits(again.get(key_of(2))) == bits(chunk(2))


def test_what_rows_say_of_themselves_fits_the_manifest(lib, monkeypatch):
    monkeypatch.setattr(commit, "_DESCRIBED", 3000)
    lib.put_many([named(chunk(i), content="x" * 500) for i in range(8)])
    assert lib.stats().packs > 2 and set(lib.keys()) == {key_of(i) for i in range(8)} and lib.verify().ok
    with pytest.raises(UnstorableError, match="plain fields take .* bytes; expected at most"):
        lib.put(named(chunk(9), content="x" * 2**24))
