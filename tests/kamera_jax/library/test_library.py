"""The chunk library: what is put comes back to the bit, by whatever way, and nothing else does."""

import inspect
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ChunkNotFoundError, LibraryReadOnlyError, MissingKeyError, ModelMismatchError
from kamera_jax.kv import Factors, Sketch, SketchSpec
from kamera_jax.library import facts, int8
from kamera_jax.library.files import locked
from kamera_jax.library.rows import row_of
from tests.eight_devices import on_devices
from tests.kamera_jax.library.made import FREE, LAYERS, ROT, SPEC, bits, chunk, key_of, named, patch, reading
from tests.kamera_jax.toy import Toy


@pytest.fixture
def lib(tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        yield lib


def unchecked(function):
    """As it is where annotations are not checked."""
    return inspect.unwrap(function)


def reopened(lib, **options):
    return kj.ChunkLibrary.open(lib.root, **options)


@pytest.mark.parametrize("verify", ["always", "first", "never"])
def test_what_is_put_comes_back(lib, verify):
    chunks = [chunk(i) for i in range(12)]
    chunks[3] = chunks[3].without_source()
    chunks[4] = named(chunks[4], antecedents=(key_of(0), key_of(1)), preamble=key_of(99))
    chunks[5] = named(chunks[5], spec=None)
    patches = [patch(i) for i in range(6)]
    keys = lib.put_many([*chunks, *patches])
    assert keys[:12] == [each.key for each in chunks] and len(set(keys)) == 18
    for reader in (lib, reopened(lib, verify=verify)):
        for _ in range(2):
            assert [bits(each) for each in reader.get_many(keys[:12])] == [bits(each) for each in chunks]
            assert [bits(reader.get_patch(key)) for key in keys[12:]] == [bits(each) for each in patches]
        assert set(reader.keys()) == set(keys[:12]) and set(reader.keys("patches")) == set(keys[12:])


def test_one_by_one_and_at_once(lib):
    assert lib.put(chunk(0)) == key_of(0)
    futures = [lib.put_async(chunk(i)) for i in range(1, 30)]
    assert [future.result() for future in futures] == [key_of(i) for i in range(1, 30)]
    assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in range(30))
    assert lib.stats().chunks == 30 and lib.stats().packs < 30  # those that waited were written together


def test_what_is_given_up_is_not_written(lib):
    with locked(lib.root / "LOCK"):  # the writer waits
        waiting = [lib.put_async(chunk(0))]
        while not waiting[0].running():
            time.sleep(0.01)
        waiting += [lib.put_async(chunk(i)) for i in (1, 2)]
        assert waiting[1].cancel() and not waiting[0].cancel()
    assert [future.result() for future in (waiting[0], waiting[2])] == [key_of(0), key_of(2)]
    assert set(lib.keys()) == {key_of(0), key_of(2)}


def test_what_is_there_is_not_written_again(lib):
    keys = lib.put_many([chunk(0), patch(0), chunk(0)])
    before = lib.stats()
    assert lib.put_many([chunk(0), patch(0)]) == [keys[0], keys[1]] and lib.stats() == before
    assert reopened(lib, mode="a").put(chunk(0)) == keys[0] and lib.stats() == before
    other = named(chunk(0), advance=99.0)  # the key addresses what went in
    lib.put(other)
    assert lib.get(key_of(0)).advance != 99.0


def test_patches_of_a_chunk(lib):
    mine = [patch(3, (0, 1)), patch(3, (1, 0)), patch(3, (0, 1), components=2), patch(3, (2,))]
    keys = lib.put_many([*mine, patch(4)])
    assert len(set(keys)) == 5  # order of the antecedents, and how it was formed
    found = lib.patches(key_of(3))
    assert sorted(map(repr, map(bits, found))) == sorted(map(repr, map(bits, mine)))
    ordered = lib.patches(key_of(3), antecedents=[key_of(1), key_of(0)])
    assert [bits(each) for each in ordered] == [bits(mine[1])]
    assert lib.patches(key_of(5)) == () and lib.patches(key_of(3), antecedents=[]) == ()


def test_only_components_in_use_are_stored(lib):
    thin = patch(7, components=6)
    wide = Factors(
        u=np.pad(thin.factors.u, [(0, 0), (0, 94), (0, 0)]),
        v=np.pad(thin.factors.v, [(0, 0), (0, 94), (0, 0)]),
        ranks=thin.factors.ranks,
    )
    key = lib.put(named(thin, factors=wide))
    assert bits(lib.get_patch(key)) == bits(named(thin, factors=wide))
    stored = sum(path.stat().st_size for path in (lib.root / "patches").rglob("*.u/0"))
    stored += sum(path.stat().st_size for path in (lib.root / "patches").rglob("*.v/0"))
    assert stored == int(thin.factors.ranks.sum()) * (thin.length + ROT + FREE) * 2
    empty = [np.zeros_like(factor) for factor in (thin.factors.u, thin.factors.v, thin.factors.ranks)]
    none = named(thin, factors=Factors(*empty), key=key_of("none"))
    assert bits(lib.get_patch(lib.put(none))) == bits(none)


def test_factors_of_eight_bits_are_kept(lib):
    rng = np.random.default_rng(5)
    exact = patch(9)
    eight = exact.factors.replace(
        u=np.sign(exact.factors.u.astype(np.float32)).astype(np.int8)
        * rng.integers(1, 127, exact.factors.u.shape, np.int8),
        v=np.sign(exact.factors.v.astype(np.float32)).astype(np.int8)
        * rng.integers(1, 127, exact.factors.v.shape, np.int8),
        scale=np.where(np.arange(6) < exact.factors.ranks[:, None], rng.random((LAYERS, 6)), 0).astype(np.float32),
    )
    key = lib.put(named(exact, factors=eight))
    assert bits(lib.get_patch(key)) == bits(named(exact, factors=eight)) != bits(exact)
    assert lib.get_patch(key).factors.u.dtype == np.int8


def test_a_sketch_is_kept(lib):
    rng = np.random.default_rng(0)
    sketch = Sketch(
        queries=rng.standard_normal((2, 5, 4, 8)).astype(np.float32),
        outputs=rng.standard_normal((2, 5, 4, 8)).astype(np.float32),
        tokens=rng.integers(0, 9, (2, 5)).astype(np.int32),
        spec=SketchSpec((1, 3), (1.0, 0.5), 5),
    )
    with_one = named(patch(1), sketch=sketch)
    key = lib.put(with_one)
    again = lib.get_patch(key).sketch
    assert again.spec == sketch.spec
    for name in ("queries", "outputs", "tokens"):
        assert (np.asarray(getattr(again, name)) == getattr(sketch, name)).all()


def test_some_layers_alone(lib):
    lib.put_many([chunk(i) for i in range(4)])
    for layers in (slice(2, None), slice(1, 3), slice(None), slice(-1, None), slice(3, 2)):
        kv = lib.get_kv(key_of(2), layers)
        assert (np.asarray(kv.rot) == chunk(2).kv.rot[layers]).all()
        assert (np.asarray(kv.free) == chunk(2).kv.free[layers]).all()
    with pytest.raises(ValueError, match="consecutive"):
        lib.get_kv(key_of(2), slice(0, 4, 2))


def test_deleted_is_deleted(lib):
    lib.put_many([chunk(i) for i in range(4)] + [patch(1)])
    other = reopened(lib)
    assert other.has(key_of(1)) and lib.delete(key_of(1)) and not lib.delete(key_of(1))
    for reader in (lib, other, reopened(lib)):
        assert not reader.has(key_of(1)) and reader.patches(key_of(1)) == ()
        with pytest.raises(ChunkNotFoundError, match=f"nothing under {key_of(1)[:12]}.*never stored, or was deleted"):
            reader.get(key_of(1))
    lib.put(chunk(1))
    assert bits(other.get(key_of(1))) == bits(chunk(1)) and other.patches(key_of(1)) == ()
    assert lib.delete(key_of(1)) and not other.has(key_of(1))


def test_collection_frees_room_and_loses_nothing(lib):
    for first in (0, 40, 80):
        lib.put_many([chunk(i) for i in range(first, first + 40)])
    keys = lib.put_many([patch(i) for i in range(40)])
    other = reopened(lib)
    assert bits(other.get(key_of(65))) == bits(chunk(65))
    dead = (*range(21), *range(40, 60))
    for i in dead:  # more than half of one pack, and half of another
        lib.delete(key_of(i))
    before = lib.stats()
    done = lib.gc()
    assert (done.dropped, done.moved, done.kept) == (2, 19 + 19, ())  # a pack of chunks, and that of patches
    assert done.freed == before.bytes - lib.stats().bytes > 0
    alive = [i for i in range(120) if i not in dead]
    for reader in (lib, other, reopened(lib)):
        assert set(reader.keys()) == {key_of(i) for i in alive}
        assert all(bits(reader.get(key_of(i))) == bits(chunk(i)) for i in alive)
        assert set(reader.keys("patches")) == set(keys[21:])
        assert reader.verify().ok and reader.stats().lost == 0
    assert lib.gc().dropped == 0


def test_small_packs_are_put_together(lib):
    for i in range(5):
        lib.put(chunk(i))
    assert lib.stats().packs == 5 and lib.gc().moved == 5 and lib.stats().packs == 1
    assert all(bits(lib.get(key_of(i))) == bits(chunk(i)) for i in range(5))
    assert lib.gc().dropped == 0


def test_gc_of_an_empty_library(lib):
    assert lib.gc() == facts.Collected(0, 0, lib.gc().freed, 0, ())
    assert lib.verify() == facts.LibraryReport(0, 0, {}, {})


@pytest.mark.parametrize("storage", ["exact", "int8"])
def test_whole_packs(lib, storage):
    chunks = [chunk(i) for i in range(10)]
    empty = reading(chunks[9], tokens=chunks[9].source.inputs["tokens"], media=np.zeros((0, 8), np.float32))
    lib.put_many([*chunks[:9], empty], storage=storage)
    lib.delete(key_of(3))
    found = {}
    (name,) = lib.packs()
    for sharding in (None, jax.sharding.SingleDeviceSharding(jax.devices()[0])):
        for stacked in lib.restore(name, sharding=sharding):
            for row, key in enumerate(stacked.keys):
                if key is not None:
                    found[key] = bits(stacked.chunk(row))
        assert found == {key_of(i): bits(lib.get(key_of(i))) for i in range(10) if i != 3}
    with pytest.raises(ChunkNotFoundError, match="no pack"):
        lib.restore("0" * 32)


def test_int8_is_within_half_a_step(lib):
    exact = chunk(5, tokens=20)
    lib.put(exact, storage="int8")
    again = lib.get(key_of(5))
    assert again.kv.rot.dtype == exact.kv.rot.dtype and not np.asarray(again.kv.rot[:, 20:]).any()
    for name, axis in (("rot", 1), ("free", 2)):
        old, new = (np.asarray(getattr(each.kv, name), np.float32) for each in (exact, again))
        step = np.abs(old).max(axis=axis, keepdims=True) / int8.LARGEST
        # Half a step, and the rounding of what comes back to bf16.
        assert (np.abs(new - old) <= 0.5 * step * (1 + 1e-6) + 2.0**-8 * np.abs(old)).all()
        assert np.abs(new - old).max() > 0
    kv = lib.get_kv(key_of(5), slice(2, 3))
    assert (np.asarray(kv.rot) == np.asarray(again.kv.rot)[2:3]).all()
    exact.kv.rot[1, 2, 3] = np.inf
    bad = named(exact, key=key_of(6))
    with pytest.raises(ValueError, match="not finite"):
        lib.put(bad, storage="int8")


def test_a_library_feeds_a_window(lib):
    toy = Toy(dtype="bfloat16")
    chunks = [kj.encode(toy, text) for text in ("a red star", "the cell", "which it is")]
    formed = kj.form_patch(toy, chunks[2], antecedents=chunks[:2], rank=4)
    lib.put_many([*chunks, formed])
    fresh = kj.Window.empty(toy, 80)
    stored = reopened(lib)
    window = fresh
    for each in chunks[:2]:
        fresh = kj.append(fresh, stored.get(each.key))
        window = kj.append(window, each)
    (again,) = stored.patches(chunks[2].key, antecedents=fresh.keys)
    fresh = kj.append(fresh, stored.get(chunks[2].key), again)
    window = kj.append(window, chunks[2], formed)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fresh.state, window.state))


def test_the_error_names_what_differs(lib):
    toy = Toy()
    window = kj.Window.empty(toy, 80)
    here = replace(toy.spec, identity=SPEC.identity)
    window = replace(window, spec=here)
    for other, words in (
        (replace(here, dtype="bfloat16"), r"dtype \(bfloat16, not float32\)"),
        (replace(here, layers=3), r"layers \(3, not 2\)"),
        (replace(here, rope=replace(here.rope, scale=1.5)), r"RoPE \(scale\)"),
        (replace(here, identity=(*SPEC.identity[:1], ("preprocessing", "x"), *SPEC.identity[2:])), "preprocessing;"),
        (replace(here, identity=(*SPEC.identity[:2], ("weights", "x"))), "weights;"),
    ):
        made = named(kj.encode(toy, "a"), key=key_of(words), model=key_of("other"))
        key = lib.put(named(made, spec=replace(other, fingerprint=key_of("other"))))
        with pytest.raises(ModelMismatchError, match=f"differ in {words}"):
            kj.append(window, lib.get(key))


def test_a_turn_is_a_chunk_like_any(lib):
    lib.put(named(chunk(0), turn=True))
    assert bits(lib.get(key_of(0))) == bits(named(chunk(0), turn=True))


@pytest.mark.parametrize("item", [replace(chunk(0), turn=True), replace(patch(0), codec="int8")])
def test_what_has_no_key_is_refused(lib, item):
    with pytest.raises(MissingKeyError, match="has no key, so nothing says how its arrays were computed"):
        lib.put(item)
    assert lib.stats().packs == 0


def test_a_codec_says_what_storage_did_to_the_bits(lib):
    for number, (given, storage, codec) in enumerate(
        (
            ("exact", "exact", "exact"),
            ("exact", "int8", "int8"),
            ("int8", "exact", "int8"),
            ("int8", "int8", "int8+int8"),
        )
    ):
        lib.put(named(chunk(number), codec=given), storage=storage)
        assert lib.get(key_of(number)).codec == codec
        (pack,) = (name for name in lib.packs() if lib.info(key_of(number)).pack == name)
        assert lib.restore(pack)[0].chunk(0).codec == codec


@pytest.mark.parametrize("item", [None, "text", np.zeros(3)])
def test_only_chunks_and_patches(item):
    with pytest.raises(ValueError, match="stores chunks and patches; got"):
        unchecked(row_of)(item, "exact")


def test_options_are_checked(lib):
    with pytest.raises(ValueError, match="storage is exact or a codec: no codec 'fp8'"):
        unchecked(row_of)(chunk(0), "fp8")
    for options in ({"mode": "w"}, {"verify": "sometimes"}):
        with pytest.raises(ValueError, match=f"{[*options][0]} is .*expected one of"):
            unchecked(kj.ChunkLibrary.open.__func__)(kj.ChunkLibrary, lib.root, **options)
    lib.put(chunk(0))
    for key, words in (
        ("../LIBRARY.json", "has no key that begins with '../LIBRARY.json': a key has 64 hexadecimal digits"),
        ("", "has no key that begins with ''"),
        (key_of(9), f"nothing under .*{key_of(9)[:12]}"),
    ):
        with pytest.raises(ChunkNotFoundError, match=words):
            lib.get(key)
        assert not lib.has(key) and not lib.delete(key)
    with pytest.raises(ChunkNotFoundError, match="is the key of a chunk: use get"):
        lib.get_patch(key_of(0))
    with pytest.raises(ChunkNotFoundError, match="is the key of a patch: use get_patch"):
        lib.get(lib.put(patch(0)))
    odd = reading(chunk(1), tokens=np.zeros(16, np.complex64))
    with pytest.raises(ValueError, match="inputs.tokens.*complex64"):
        lib.put(odd)
    assert lib.stats().chunks == 1


def test_reading_alone(lib):
    lib.put(chunk(0))
    reader = reopened(lib)
    for change in (lambda: reader.put(chunk(1)), lambda: reader.delete(key_of(0)), reader.gc):
        with pytest.raises(LibraryReadOnlyError, match="opened for reading; open it with mode='a'"):
            change()
    reader.close()


def test_the_index_is_rebuilt(lib):
    lib.put_many([chunk(i) for i in range(3)])
    lib.close()
    index = lib.root / "index.json"
    for spoil in (index.unlink, lambda: index.write_text("{}"), lambda: index.write_bytes(b"\xff" * 99)):
        spoil()
        assert set(reopened(lib).keys()) == {key_of(i) for i in range(3)}
    reopened(lib, mode="a").close()
    assert index.stat().st_size > 3 * 64


def test_a_pack_made_by_many_threads(lib):
    """Every thread puts the same and its own; nothing twice, nothing lost."""
    errors = []

    def put(thread):
        try:
            for i in range(10):
                lib.put(chunk(i))
                lib.put(chunk(100 * thread + i + 100))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and lib.stats().chunks == 50 and lib.verify().rows == 50


SHARDED = """
import sys
import jax, numpy as np
import kamera_jax as kj
from jax.sharding import NamedSharding, PartitionSpec
from tests.kamera_jax.library.made import bits, key_of

lib = kj.ChunkLibrary.open(sys.argv[1])
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
sharding = NamedSharding(mesh, PartitionSpec("data", None, None, "model"))
for name in lib.packs():
    for stacked in lib.restore(name, sharding=sharding):
        rot = stacked.arrays["kv.rot"]
        assert rot.sharding.is_equivalent_to(sharding, 4) and len(rot.addressable_shards) == 8
        assert stacked.arrays["positions"].sharding.is_fully_replicated
        for row, key in enumerate(stacked.keys):
            assert (np.asarray(rot[row]) == np.asarray(lib.get(key).kv.rot)).all()
print("restored", len(lib.packs()))
"""


def test_whole_packs_onto_a_mesh(lib):
    lib.put_many([chunk(i, tokens=16) for i in range(8)])
    lib.put_many([chunk(i, tokens=16) for i in range(8, 16)], storage="int8")
    assert on_devices(8, SHARDED, lib.root) == "restored 2\n"
