"""Windows whose chunks lie packed answer as windows of what the packed chunks stand for."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.compress.pooled import PackedPool, packed_pool
from kamera_jax.errors import CodecError
from kamera_jax.identity import EXACT
from kamera_jax.window.changes import materialised
from tests.kamera_jax.window.test_in_place import CAPACITY, OPERATIONS, QUESTION, TEXTS, random_model, relative

STORAGES = ("int8", "kivi:4", "saw:4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of an attention, and its chunks."""

    @cache
    def made(attention):
        vlm = random_model(attention, tmp_path_factory.mktemp("hub"))
        return vlm, [kj.encode(vlm, text) for text in TEXTS]

    return made


def packed(vlm, chunks, storage):
    """What a window of a storage takes, with patches that are formed for it."""
    a, b, c = (kj.compress(vlm, chunk, storage).restore() for chunk in chunks)
    patches = [kj.form_patch(vlm, chunk, antecedents=[a], rank=rank) for chunk, rank in ((b, 6), (c, 20))]
    return (a, None), (b, patches[0]), (c, patches[1]), (b, None)


def filled(vlm, pairs, **options):
    window = kj.Window.empty(vlm, CAPACITY, mode="in_place", **options)
    for pair in pairs:
        window = kj.append(window, *pair)
    return window


@pytest.mark.parametrize(
    "attention, storage",
    [("gqa", "int8"), ("gqa", "kivi:4"), ("gqa", "saw:4"), ("mla", "int8"), ("mla", "kivi:4"), ("mha", "int8")],
)
def test_it_answers_as_a_window_of_what_the_chunks_stand_for(model, attention, storage):
    vlm, chunks = model(attention)
    pairs = packed(vlm, chunks, storage)
    plain = filled(vlm, pairs)
    window = filled(vlm, pairs, storage=storage)
    assert window.storage == storage and plain.storage == EXACT and window.entries == plain.entries
    given = []
    for name in ("append", "reorder", "slide", "recall"):
        wanted, got = (kj.query(vlm, OPERATIONS[name](each, pairs), QUESTION) for each in (plain, window))
        assert relative(got, wanted) <= 2e-5
        given.append(got)
    assert relative(given[0], given[1]) > 1e-3
    back = materialised(window)
    assert (back.mode, back.storage) == ("materialise", EXACT)
    assert relative(kj.query(vlm, back, QUESTION), kj.query(vlm, plain, QUESTION)) <= 2e-5
    # What lies there is few bits, and not what is served.
    for pool, other in zip(window.state.pools, plain.state.pools, strict=True):
        assert pool.rot.dtype == pool.free.dtype == (jnp.int8 if storage == "int8" else jnp.uint8)
        stored = sum(array.nbytes for array in (pool.rot, pool.free, *pool.packed.values()))
        assert stored < (other.rot.nbytes + other.free.nbytes) / (2 if storage == "int8" else 3)


def test_turns_come_behind_it(model):
    vlm, chunks = model("gqa")
    pairs = packed(vlm, chunks, "int8")
    plain, window = (filled(vlm, pairs, storage=storage) for storage in (EXACT, "int8"))
    wanted, got = (kj.generate(vlm, each, QUESTION, max_new_tokens=4, keep=False) for each in (plain, window))
    assert got.tokens == wanted.tokens


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_what_was_packed_is_the_same_when_it_is_packed_again(attention, storage):
    rng = np.random.default_rng(3)
    widths = (32, 32) if attention == "gqa" else (16, 48)
    form = PackedPool(storage, *widths, heads=2 if attention == "gqa" else 1)
    kv = kj.KV(*(jnp.asarray(rng.standard_normal((2, 48, width)) + 1, jnp.float32) for width in widths))
    once = form.pack(kv, 41)
    parts = [form.unpack({name: array[layer] for name, array in once.items()}, jnp.int32(41)) for layer in range(2)]
    values = kj.KV(*map(jnp.stack, zip(*parts, strict=True)))
    again = form.pack(values, 41)
    for name in ("rot", "free"):
        assert (np.asarray(once[name])[:, :41] == np.asarray(again[name])[:, :41]).all()
        wanted = np.asarray(getattr(kv, name), np.float64)[:, :41]
        assert 0 < relative(np.asarray(getattr(values, name))[:, :41], wanted) < (0.01 if storage == "int8" else 0.15)
    for name in set(once) - {"rot", "free"}:
        assert np.allclose(once[name], again[name], rtol=1e-3, atol=1e-6)
    shapes = {name: (array.shape, array.dtype) for name, array in once.items()}
    assert shapes == {name: (each.shape, each.dtype) for name, each in form.arrays(2, 48, "float32").items()}


def test_it_goes_through_transformations_and_is_written_down(random_vlm):
    chunk = kj.compress(random_vlm, kj.encode(random_vlm, TEXTS[0]), "kivi:4").restore()
    window = filled(random_vlm, [(chunk, None)], storage="kivi:4")
    wanted = kj.query(random_vlm, kj.append(window, chunk), QUESTION)
    inside = jax.jit(kj.append)(window, chunk)
    assert inside.storage == "kivi:4"
    assert relative(kj.query(random_vlm, inside, QUESTION), wanted) <= 2e-5
    written = jax.export.export(jax.jit(lambda w: w.state))(window).serialize()
    state = jax.export.deserialize(written).call(window)
    assert [pool.unpack for pool in state.pools] == [pool.unpack for pool in window.state.pools]
    assert (np.asarray(state.pools[0].rot) == np.asarray(window.state.pools[0].rot)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "materialise", "storage": "int8"}, 'writes them unpacked; give mode="in_place"'),
        ({"storage": "int4"}, "no codec 'int4'"),
        ({"storage": "turbo:4"}, "expected int8, kivi:B or saw:B alone"),
        ({"storage": "mixed:0.5:4:2"}, "expected int8, kivi:B or saw:B alone"),
        ({"storage": "xkv:1:4+int8"}, "expected int8, kivi:B or saw:B alone"),
        ({"storage": "knorm:0.5+int8"}, "says which rows a chunk has"),
    ],
)
def test_what_a_window_cannot_keep_is_refused(random_vlm, options, message):
    with pytest.raises(CodecError, match=message):
        kj.Window.empty(random_vlm, CAPACITY, **{"mode": "in_place"} | options)


def test_chunks_of_another_codec_are_refused(random_vlm):
    chunk = kj.encode(random_vlm, TEXTS[0])
    window = filled(random_vlm, [], storage="int8")
    with pytest.raises(CodecError, match=r"has codec 'exact', and the window keeps its chunks in 'int8'; give it"):
        kj.append(window, chunk)
    fewer = kj.compress(random_vlm, chunk, "knorm:0.5+int8").restore()
    assert kj.append(window, fewer).tokens == window.tokens + fewer.length
    assert packed_pool(EXACT, random_vlm.spec) is None
