"""Chunks in few bits: what comes back, in windows, patches and libraries, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import CodecError, DonatedError, LibraryCorruptError, ModelMismatchError
from kamera_jax.library.fields import check_kv
from models import load

NAMES = ("int8", "kivi:4", "kivi:2:channel", "saw:4", "turbo:3", "xkv:1:4", "xkv:2:4+kivi:4")


@pytest.fixture(
    scope="module",
    params=["gqa", pytest.param("mla", marks=pytest.mark.soak), pytest.param("mha", marks=pytest.mark.soak)],
)
def vlm(request):
    return load(f"kamera-tiny-{request.param}")


@pytest.fixture(scope="module")
def chunks(vlm):
    return [kj.encode(vlm, text) for text in ("the red star stands on the first page", "what colour is the star there")]


def share(given, wanted):
    a, b = (np.concatenate([np.float64(kv.rot).ravel(), np.float64(kv.free).ravel()]) for kv in (given, wanted))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_comes_back_under_its_name(vlm, chunks, name):
    first = chunks[0]
    packed = kj.compress(vlm, first, name)
    back = packed.restore()
    assert back.key == first.key == packed.key and back.codec == name == packed.codec and first.codec == "exact"
    assert back.length == first.length and back.source.content == first.source.content and back.keeps_all_rows
    assert packed.nbytes < first.nbytes and back.kv.rot.dtype == first.kv.rot.dtype
    assert 0 < share(back.kv, first.kv) < {"int8": 0.01, "kivi:4": 0.1, "saw:4": 0.1}.get(name, 0.3)
    assert back != first and back == packed.restore()
    again = kj.compress(vlm, back, "int8")
    assert again.codec == f"{name}+int8" == again.restore().codec


def test_it_goes_through_transformations(vlm, chunks):
    packed = kj.compress(vlm, chunks[0], "kivi:4")
    wanted = packed.restore()
    inside = jax.jit(lambda each: each.restore().kv)(packed)
    np.testing.assert_allclose(inside.rot, wanted.kv.rot, atol=1e-6)
    made = jax.jit(lambda chunk: kj.compress(vlm, chunk, "kivi:4"))(chunks[0])
    assert made.key == "" and share(made.restore().kv, wanted.kv) < 1e-5
    moved = packed.to(jax.devices()[0])
    assert moved.key == packed.key and moved.restore() == wanted


@pytest.mark.parametrize("name", ["kivi:2:channel", "turbo:3"])
def test_a_patch_gives_back_what_the_codec_lost(vlm, chunks, name):
    """Of full rank, formed for what is served: the window is that of full prefill."""
    first, second = chunks
    served = kj.compress(vlm, second, name).restore()
    full = kj.prefill(vlm, [first, second], capacity=256)
    patch = kj.form_patch(vlm, served, antecedents=[first], rank=64, int8=False)
    assert patch.codec == name
    window = kj.append(kj.append(kj.Window.empty(vlm, 256), first), served, patch)
    assert share(window.state, full.state) < 1e-4
    blind = kj.append(kj.append(kj.Window.empty(vlm, 256), first), second)
    assert share(blind.state, full.state) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_library_stores_it(vlm, chunks, tmp_path, name):
    with kj.ChunkLibrary.open(tmp_path / "library", mode="a") as library:
        keys = library.put_many(chunks, storage=name)
        exact = kj.ChunkLibrary.open(tmp_path / "exact", mode="a")
        exact.put_many(chunks)
        for key, chunk in zip(keys, chunks, strict=True):
            back = library.get(key)
            packed = kj.compress(vlm, chunk, name)
            assert back == packed.restore() and share(back.kv, packed.restore().kv) < 1e-6
            assert library.info(key).bytes < exact.info(key).bytes
            layers = library.get_kv(key, layers=slice(2, 4))
            np.testing.assert_allclose(layers.rot, back.kv.rot[2:4], atol=1e-5)
        (pack,) = library.packs()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        mesh = jax.sharding.NamedSharding(
            jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec(None, None, None, "x")
        )
        for sharding in (None, device, mesh):
            restored = {
                each.keys[row]: each.chunk(row)
                for each in library.restore(pack, sharding=sharding)
                for row in range(len(each.keys))
            }
            for key in keys:
                assert restored[key] == library.get(key)
                np.testing.assert_allclose(restored[key].kv.rot, library.get(key).kv.rot, atol=1e-6)
        library.verify()
    copy = kj.ChunkLibrary.open(tmp_path / "copy", mode="a")
    copy.import_from(tmp_path / "library")
    assert copy.get(keys[0]) == kj.compress(vlm, chunks[0], name).restore()


def test_ways_of_storing_lie_beside_each_other(vlm, chunks, tmp_path):
    """Arrays of the same shapes that mean different things are not stacked."""
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")
    a = kj.encode(vlm, "a red star")
    b = kj.encode(vlm, "a red moon")
    futures = [library.put_async(a, storage="kivi:4"), library.put_async(b, storage="saw:4")]
    keys = [future.result() for future in futures]
    for pack in library.packs():
        for stacked in library.restore(pack):
            for row in range(len(stacked.keys)):
                assert stacked.chunk(row) == library.get(stacked.keys[row])
    assert library.get(keys[0]).codec == "kivi:4" and library.get(keys[1]).codec == "saw:4"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zip:4", "no codec 'zip:4'"),
        ("kiwi:4", "did you mean kivi"),
        ("kivi", "kivi needs bits from 1 to 8, as in kivi:4"),
        ("kivi:0", "bits from 1 to 8"),
        ("kivi:9", "bits from 1 to 8"),
        ("kivi:٣", "bits from 1 to 8"),
        ("kivi:4:rows", "options that kivi does not know"),
        ("saw:4:channel", "options that saw does not know"),
        ("int8:4", "no codec"),
        ("kivi:4+int8", "'int8' .quantise. cannot stand behind quantise in 'kivi:4.int8': stages stand in the order"),
        ("kivi:4+xkv:1:8", "'xkv:1:8' .low rank. cannot stand behind quantise"),
        ("xkv:1:8+xkv:2:8", "at most one of each"),
        ("xkv:1:8+", "no codec ''"),
        ("xkv:8", "xkv needs how many layers"),
        ("xkv:0:8", "xkv needs how many layers"),
        ("xkv:1:8:2", "xkv needs how many layers"),
        ("", "no codec"),
    ],
)
def test_codecs_that_there_are_not_are_named(vlm, chunks, tmp_path, name, words):
    with pytest.raises(CodecError, match=words):
        kj.compress(vlm, chunks[0], name)
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")
    with pytest.raises(CodecError, match=words):
        library.put(chunks[0], storage=name)
    assert library.keys() == ()


def test_kv_that_cannot_be_stored_is_named(vlm, chunks, tmp_path):
    first = chunks[0]
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")

    def with_value(value, row=0):
        return first.keeping(kv=kj.KV(first.kv.rot.at[0, row, 0].set(value), first.kv.free))

    for value, words in ((jnp.nan, "not finite"), (jnp.inf, "not finite"), (5e4, "float16")):
        with pytest.raises(CodecError, match=words):
            kj.compress(vlm, with_value(value), "kivi:4")
        with pytest.raises(ValueError, match=words):
            library.put(with_value(value), storage="saw:4")
    kj.compress(vlm, with_value(5e4), "int8")
    kj.compress(vlm, with_value(jnp.nan, row=-1), "kivi:4")  # of no token
    assert library.keys() == ()


def test_chunks_that_cannot_be_compressed_are_named(vlm, chunks):
    other = load("kamera-tiny-mha" if vlm.spec.heads < 4 else "kamera-tiny-gqa")
    with pytest.raises(ModelMismatchError, match="was encoded by model"):
        kj.compress(other, chunks[0], "kivi:4")
    gone = chunks[0].copied()
    gone.kv.rot.delete()
    with pytest.raises(DonatedError, match="donated"):
        kj.compress(vlm, gone, "kivi:4")


@pytest.mark.parametrize(
    "change",
    [
        {"storage": "kivi:5"},
        {"storage": "saw:4"},
        {"storage": "turbo:4"},
        {"storage": "zip:1"},
        {"storage": 4},
        {"packed": None},
        {"packed": {"rot": 64, "free": 64}},
        {"packed": {"rot": 64, "free": 64, "heads": 0}},
        {"packed": {"rot": 2**30, "free": 64, "heads": 1}},
        {"packed": {"rot": 63, "free": 64, "heads": 3}},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_rows_that_are_not_what_they_say_are_refused(change):
    about = {"storage": "kivi:4", "dtype": "bfloat16", "packed": {"rot": 64, "free": 64, "heads": 2}}
    from kamera_jax.compress.codec import Shape, codec

    leaves = codec("kivi:4").arrays(2, 64, Shape(64, 64, 2), "bfloat16")
    check_kv(about, leaves)
    with pytest.raises(ValueError):
        check_kv({**about, **change}, leaves)
    for name in leaves:
        with pytest.raises((ValueError, KeyError)):
            check_kv(about, {other: leaf for other, leaf in leaves.items() if other != name})


def test_a_wide_head_is_not_turned_for_a_file():
    """What a file says must not cost memory: a matrix for a head of a million features."""
    from kamera_jax.compress.codec import Shape, codec

    wide = jax.ShapeDtypeStruct((1, 1, 2**19), np.uint8)
    norm = jax.ShapeDtypeStruct((1, 1, 1), np.float16)
    leaves = {"kv.rot": wide, "kv.free": wide, "kv.rot_norm": norm, "kv.free_norm": norm}
    about = {"storage": "turbo:4", "dtype": "bfloat16", "packed": {"rot": 2**20, "free": 2**20, "heads": 1}}
    with pytest.raises(CodecError, match="at most 1024"):
        check_kv(about, leaves)
    with pytest.raises(CodecError, match="does not split"):
        codec("saw:4").check_shape(Shape(64, 64, 3))


def test_a_damaged_row_is_named(vlm, chunks, tmp_path):
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")
    key = library.put(chunks[0], storage="kivi:4")
    files = [
        each for each in (tmp_path / "library/packs").glob("*/**/*") if each.is_file() and "rot_least" in str(each)
    ]
    file = max(files, key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(LibraryCorruptError):
        kj.ChunkLibrary.open(tmp_path / "library").get(key)
