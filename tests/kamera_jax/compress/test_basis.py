"""Components measured once for a model: what they are, what comes back, where they are found, and what is refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.compress import basis as bases
from kamera_jax.compress import training
from kamera_jax.compress.codec import Shape, codec
from kamera_jax.errors import ArgumentError, BasisError, CodecError, ModelMismatchError, PatchMismatchError
from kamera_jax.inference import compress as compressing
from kamera_jax.inference.encode import run_chunk
from models import load
from models.hub.basis import BASIS, keep, offer_basis, read_basis, save_basis
from models.registry import CHECKPOINTS
from tests.kamera_jax.compress.made import LENGTH, PARTS, SHAPES, kv_of, through, valid

NAMES = ("pca:0.5", "pca:0.5+kivi:4", "pca:0.25+turbo:4", "pca:0.5+mixed:0.25:4:2")


@pytest.fixture(scope="module")
def measured():
    """A basis of each shape, with the KV that it was measured on."""
    made = {}
    for kind, shape in SHAPES.items():
        kvs = [(kv_of(shape, seed=seed, rows=128), 120) for seed in range(3)]
        made[kind] = bases.measured(kind, kvs), kvs
    return made


@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_the_principal_components_of_what_was_measured(measured, kind):
    basis, kvs = measured[kind]
    for part in PARTS:
        x = np.concatenate([valid(kv, part, length) for kv, length in kvs], axis=1)
        components = np.float64(getattr(basis, part))
        np.testing.assert_allclose(
            np.einsum("lfr,lfs->lrs", components, components),
            np.broadcast_to(np.eye(x.shape[2]), components.shape),
            atol=1e-5,
        )
        np.testing.assert_allclose(getattr(basis, f"{part}_mean"), x.mean(1), rtol=1e-4, atol=1e-5)
        for layer in range(x.shape[0]):
            s = np.linalg.svd(x[layer] - x[layer].mean(0), compute_uv=False)
            variance = getattr(basis, f"{part}_variance")[layer]
            np.testing.assert_allclose(variance, s**2 / x.shape[1], rtol=1e-3, atol=1e-5 * variance[0])


@pytest.mark.parametrize("kind", SHAPES)
def test_the_error_is_the_variance_that_was_left_out(measured, kind):
    """On what it was measured on: the tail of the eigenvalues."""
    basis, kvs = measured[kind]
    for share in (0.25, 0.5):
        squared = dict.fromkeys(PARTS, 0.0)
        rows = 0
        for kv, length in kvs:
            back = through(f"pca:{share}", kv, length, SHAPES[kind], basis)
            rows += length
            for part in PARTS:
                squared[part] += ((valid(back, part, length) - valid(kv, part, length)) ** 2).sum((1, 2))
        for part in PARTS:
            variance = np.float64(getattr(basis, f"{part}_variance"))
            tail = variance[:, int(share * variance.shape[1] + 0.5) :].sum(1)
            np.testing.assert_allclose(squared[part] / rows, tail, rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
def test_all_components_are_exact(measured, kind, dtype):
    kv = kv_of(SHAPES[kind], dtype, seed=9)
    back = through("pca:1", kv, LENGTH, SHAPES[kind], measured[kind][0])
    for part in PARTS:
        x = valid(kv, part)
        assert np.linalg.norm(valid(back, part) - x) <= (2**-8 if dtype == jnp.bfloat16 else 1e-5) * np.linalg.norm(x)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_padding_and_batches(measured, name):
    basis, _ = measured["mla"]
    shape = SHAPES["mla"]
    by = codec(name)
    clean = kv_of(shape)
    leaves = by.encode(clean, 48, shape.heads, basis.arrays)
    assert sum(leaf.nbytes for leaf in leaves.values()) == by.nbytes(48, shape.layers, shape, "float32")
    wanted = by.arrays(shape.layers, 48, shape, "float32")
    assert {n: (a.shape, a.dtype) for n, a in leaves.items()} == {n: (a.shape, a.dtype) for n, a in wanted.items()}
    assert by.widths(48, shape) == {part: leaves[f"kv.{part}"].shape[2] for part in PARTS}
    dirty = jax.tree.map(lambda rows: rows.at[:, LENGTH:].set(1e4), clean)
    a, b = (through(name, kv, LENGTH, shape, basis) for kv in (clean, dirty))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), clean)
    batch = jax.vmap(lambda kv: through(name, kv, LENGTH, shape, basis))(stacked)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        assert not np.asarray(getattr(a, part)[:, LENGTH:]).any()
        assert np.isclose(getattr(batch, part)[1], getattr(a, part), atol=1e-3).mean() > 0.999
    if name == "pca:0.5":
        assert by.nbytes(48, 5, shape, "bfloat16") == 5 * 48 * (16 + 64) * 2
        assert by.model_bytes(5, shape) == 5 * 4 * (32 * 17 + 128 * 65)
        again = through(name, a, LENGTH, shape, basis)
        for part in PARTS:
            np.testing.assert_allclose(getattr(again, part), getattr(a, part), atol=1e-4)


@pytest.mark.parametrize("name", ["pca", "pca:0", "pca:1.5", "pca:0.5:4", "pca:half", "pca:-0.5", "pca:nan"])
def test_names_that_cannot_be(name):
    with pytest.raises(CodecError, match="pca needs the share of features to keep"):
        codec(name)


@pytest.fixture(scope="module", params=["gqa", *(pytest.param(n, marks=pytest.mark.soak) for n in ("mla", "mha"))])
def vlm(request):
    return load(f"kamera-tiny-{request.param}")


@pytest.fixture(scope="module")
def chunk(vlm):
    return kj.encode(vlm, "the red star stands on the first page and the blue moon on the second")


def test_embedded_models_bring_theirs_in_every_dtype(vlm, chunk):
    half = load(vlm.name, dtype="bfloat16")
    assert bases.subject(half.spec, half.fingerprint) == bases.subject(vlm.spec, vlm.fingerprint)
    for model, each in ((vlm, chunk), (half, kj.encode(half, "a red star on the page"))):
        packed = kj.compress(model, each, "pca:0.5+kivi:4")
        back = packed.restore()
        assert packed.nbytes < each.nbytes / 2 and back.codec == "pca:0.5+kivi:4" and back.key == each.key
        error, size = (
            sum(
                float((jnp.asarray(a - b, jnp.float32) ** 2).sum())
                for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
            )
            for pair in ((back.kv, each.kv), (each.kv, jax.tree.map(jnp.zeros_like, each.kv)))
        )
        assert error < 0.1 * size
    assert kj.compress(vlm, chunk, "kivi:4").basis == "" != kj.compress(vlm, chunk, "pca:0.5").basis


@pytest.fixture
def trained(vlm, chunk, monkeypatch):
    """What is trained for capsule: hardly at all for models that do not bring theirs."""
    basis = bases.of_model(vlm.spec, vlm.fingerprint)
    if basis.capsule is None:
        monkeypatch.setattr(compressing, "trained", partial(training.trained, steps=3))
        for known in ("_HELD", "_LATEST"):
            monkeypatch.setattr(bases, known, dict(getattr(bases, known)))
        basis = kj.calibrate_codec(vlm, [chunk, kj.encode(vlm, "a blue moon stood there")], capsule=True)
    return basis.capsule


@pytest.mark.parametrize("name", ["pca:0.25+kivi:2", "capsule:0.4+kivi:4"])
def test_both_kinds_of_windows_serve_it_with_a_patch_of_full_rank(vlm, chunk, trained, name):
    first = kj.encode(vlm, "what colour is the star there")
    full = kj.prefill(vlm, [first, chunk], capacity=256)
    served = kj.compress(vlm, chunk, name).restore()
    assert served.keeps_all_rows and served.key == chunk.key and served.codec == name
    patch = kj.form_patch(vlm, served, antecedents=[first], rank=64, int8=False)
    asked = [kj.query(vlm, full, "the star is")]
    for mode in ("materialise", "in_place"):
        window = kj.Window.empty(vlm, 256, mode=mode)
        asked.append(kj.query(vlm, kj.append(kj.append(window, first), served, patch), "the star is"))
    for logits in asked[1:]:
        np.testing.assert_allclose(logits, asked[0], atol=2e-3)


@pytest.mark.parametrize(
    "name", ["pca:0.5", "pca:0.25+kivi:4", "xkv:2:6+kivi:4", "mixed:0.25:4:2", "capsule:0.4", "capsule:0.4+kivi:4"]
)
def test_a_library_stores_it(vlm, chunk, trained, tmp_path, name):
    packed = kj.compress(vlm, chunk, name)
    with kj.ChunkLibrary.open(tmp_path / "library", mode="a") as library:
        key = library.put(chunk, storage=name)
        back = library.get(key)
        assert back == packed.restore() and back.codec == name
        for a, b in zip(jax.tree.leaves(back.kv), jax.tree.leaves(packed.restore().kv), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        layers = library.get_kv(key, layers=slice(1, 3))
        np.testing.assert_allclose(layers.free, back.kv.free[1:3], atol=1e-5)
        exact = kj.ChunkLibrary.open(tmp_path / "exact", mode="a")
        exact.put(chunk)
        assert library.info(key).bytes < exact.info(key).bytes
        mesh = jax.sharding.NamedSharding(
            jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec(None, None, None, "x")
        )
        for sharding in (None, mesh):
            (stacked,) = library.restore(library.packs()[0], sharding=sharding)
            np.testing.assert_allclose(stacked.chunk(0).kv.rot, back.kv.rot, atol=1e-5)
        library.verify()


def test_what_is_not_known_is_named(vlm, chunk, tmp_path, monkeypatch):
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")
    key = library.put(chunk, storage="pca:0.5")
    packed = kj.compress(vlm, chunk, "pca:0.5")
    for known in ("_HELD", "_LATEST", "_OFFERED"):
        monkeypatch.setattr(bases, known, {})
    with pytest.raises(BasisError, match="load the model"):
        packed.restore()
    with pytest.raises(BasisError, match="load the model"):
        kj.ChunkLibrary.open(tmp_path / "library").get(key)
    with pytest.raises(BasisError, match="nothing was measured for a codec of model"):
        kj.compress(vlm, chunk, "pca:0.5")
    with pytest.raises(BasisError, match="nothing was measured"):
        library.put(kj.encode(vlm, "another"), storage="pca:0.5+kivi:4")
    offer_basis(vlm, CHECKPOINTS / vlm.name)
    assert library.get(key) == packed.restore()


def test_what_was_not_trained_is_named(vlm, chunk, trained, tmp_path, monkeypatch):
    library = kj.ChunkLibrary.open(tmp_path / "library", mode="a")
    key = library.put(chunk, storage="capsule:0.4")
    packed = kj.compress(vlm, chunk, "capsule:0.4")
    assert packed.basis == trained.digest and packed.nbytes < 0.45 * chunk.nbytes
    for known in ("_HELD", "_LATEST", "_OFFERED"):
        monkeypatch.setattr(bases, known, {})
    with pytest.raises(BasisError, match="load the model"):
        library.get(key)
    plain = kj.calibrate_codec(vlm, [chunk])
    with pytest.raises(BasisError, match="nothing was trained for capsule"):
        kj.compress(vlm, chunk, "capsule:0.4")
    with pytest.raises(BasisError, match="nothing was trained for capsule"):
        library.put(kj.encode(vlm, "another"), storage="capsule:0.4")
    bases.hold(replace(plain, capsule=trained))
    assert library.get(key) == packed.restore()
    with pytest.raises(BasisError, match="of another model than the basis"):
        replace(plain, model="another", capsule=trained)
    with pytest.raises(BasisError, match="of other KV"):
        bases.arrays_of(trained, Shape(8, 8, 1).layouts(1, 3))


def test_what_was_trained_is_kept_beside_what_was_measured(vlm, trained, tmp_path):
    whole = replace(bases.of_model(vlm.spec, vlm.fingerprint), capsule=trained)
    save_basis(tmp_path / "whole", whole)
    again = read_basis(tmp_path / "whole")
    assert again.digest == whole.digest and again.capsule.digest == trained.digest != again.digest
    assert "with capsule" in repr(again) and trained.digest[:12] in repr(again.capsule)
    broken = (tmp_path / "whole").read_bytes().replace(b"capsule.first_bias", b"capsule.first_bass")
    (tmp_path / "broken").write_bytes(broken)
    with pytest.raises(BasisError, match="of what was trained for capsule"):
        read_basis(tmp_path / "broken")
    for change, words in (
        ({"first": trained.first[:, 1:]}, "first of what was trained for capsule is"),
        ({"second": trained.second * np.nan}, "second of what was trained"),
        ({"rot_scale": trained.rot_scale * 0}, "above 0"),
        ({"sequence": np.ones((trained.rot_mean.shape[0], 4, 4), np.float32)}, "not orthonormal"),
    ):
        with pytest.raises(BasisError, match=words):
            replace(trained, **change)


def test_how_questions_ask_is_measured_and_kept(vlm, chunk, tmp_path, monkeypatch):
    """The mean and the covariance of each head's queries, in float64, of the questions behind the chunks."""
    for known in ("_HELD", "_LATEST", "_OFFERED"):
        monkeypatch.setattr(bases, known, {})
    other = kj.encode(vlm, "a red star")
    with pytest.raises(BasisError, match="nothing was measured"):
        kj.compress(vlm, chunk, "expected:0.5:measured")
    kj.calibrate_codec(vlm, [chunk])
    with pytest.raises(BasisError, match="nothing is known of the questions"):
        kj.compress(vlm, chunk, "expected:0.5:measured")
    with pytest.raises(ArgumentError, match="questions is 'what'; expected a list"):
        kj.calibrate_codec(vlm, [chunk], questions="what")
    asked = ["what colour is the star?", "where is the moon?"]
    basis = kj.calibrate_codec(vlm, [chunk, other], questions=asked)
    rows = []
    for each, question in zip((chunk, other), asked, strict=True):
        tail = vlm.tail(question)
        window = kj.append(kj.Window.empty(vlm, 128), each)
        _, output = run_chunk(vlm, window, tail, ("queries",))
        rows.append(np.float64(output.aux["queries"])[:, : int(tail.length)])
    x = np.concatenate(rows, axis=1)
    drawn = np.float64(basis.queries.drawn)
    covariances = []
    for queries in (x, drawn):
        centred = queries - queries.mean(1, keepdims=True)
        covariances.append(np.einsum("ltnd,ltne->lnde", centred, centred) / queries.shape[1])
    np.testing.assert_allclose(drawn.mean(1), x.mean(1), atol=1e-4)
    np.testing.assert_allclose(covariances[1], covariances[0], atol=1e-3 * np.abs(covariances[0]).max())
    small = kj.compress(vlm, chunk, "expected:0.5:measured").restore()
    name = f"expected:0.5:measured:{basis.queries.digest}"
    assert small.codec == name and small.length == round(0.5 * chunk.length)
    assert kj.compress(vlm, chunk, f"{name}+kivi:4").restore().codec == f"{name}+kivi:4"
    # What was measured on other questions chooses other rows under another name.
    patch = kj.form_patch(vlm, small, antecedents=[other], rank=2)
    apart = kj.calibrate_codec(vlm, [chunk, other], questions=["how many cells are red?"])
    elsewhere = kj.compress(vlm, chunk, "expected:0.5:measured").restore()
    assert apart.queries.digest != basis.queries.digest and elsewhere != small and elsewhere.key == small.key
    assert elsewhere.codec == f"expected:0.5:measured:{apart.queries.digest}"
    with pytest.raises(PatchMismatchError, match="they stand for other tokens"):
        kj.append(kj.append(kj.Window.empty(vlm, 128), other), elsewhere, patch)
    with pytest.raises(BasisError, match=f"takes what was measured under the digest {basis.queries.digest}"):
        kj.compress(vlm, chunk, name)
    bases.hold(basis)
    assert kj.compress(vlm, chunk, name).restore() == small
    save_basis(tmp_path / "whole", basis)
    again = read_basis(tmp_path / "whole")
    np.testing.assert_array_equal(again.queries.root, basis.queries.root)
    assert again.digest == basis.digest and again.capsule is None and "4 heads" in repr(again.queries)
    for change in ({"root": again.queries.root[..., 1:]}, {"mean": again.queries.mean * np.nan}):
        with pytest.raises(BasisError, match="queries"):
            replace(again.queries, **change)
    assert again.queries.digest == basis.queries.digest
    for wrong in ("known", "measured:12", "measured:measured", "measured:0123456789ab:0123456789ab"):
        with pytest.raises(CodecError, match="options that expected does not know"):
            codec(f"expected:0.5:{wrong}")


def test_a_basis_is_measured_kept_and_found(vlm, chunk, tmp_path, monkeypatch):
    for known in ("_HELD", "_LATEST", "_OFFERED"):
        monkeypatch.setattr(bases, known, {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KAMERA_CACHE", raising=False)
    basis = kj.calibrate_codec(vlm, [chunk])
    assert basis.digest == kj.calibrate_codec(vlm, [chunk]).digest
    assert kj.compress(vlm, chunk, "pca:0.5").basis == basis.digest
    path = keep(vlm, basis)
    again = read_basis(path)
    assert again.digest == basis.digest and again.model == basis.model
    bases._HELD.clear()
    bases._LATEST.clear()
    offer_basis(vlm, CHECKPOINTS / vlm.name)  # the user's own comes first
    assert kj.compress(vlm, chunk, "pca:0.5").basis == basis.digest
    other = bases.CodecBasis(
        "another", *(getattr(basis, name) for name in basis.__dataclass_fields__ if name != "model")
    )
    with pytest.raises(BasisError, match="of another model"):
        keep(vlm, other)
    monkeypatch.setenv("KAMERA_CACHE", "off")
    with pytest.raises(BasisError, match="nothing is kept"):
        keep(vlm, basis)


def test_bases_that_cannot_be(vlm, chunk, tmp_path):
    with pytest.raises(BasisError, match="at least two tokens"):
        kj.calibrate_codec(vlm, [])
    stranger = load("kamera-tiny-mha" if vlm.spec.heads < 4 else "kamera-tiny-gqa")
    with pytest.raises(ModelMismatchError):
        kj.calibrate_codec(stranger, [chunk])
    broken = chunk.keeping(kv=jax.tree.map(lambda leaf: leaf.at[0, 0, 0].set(jnp.nan), chunk.kv))
    with pytest.raises(BasisError, match="not finite"):
        kj.calibrate_codec(vlm, [broken])
    good = read_basis(CHECKPOINTS / vlm.name / BASIS)
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    for change, words in (
        ({"rot": fields["rot"] * 2}, "not orthonormal"),
        ({"free_mean": fields["free_mean"] * np.nan}, "finite float32"),
    ):
        with pytest.raises(BasisError, match=words):
            bases.CodecBasis(**{**fields, **change})
    shape = SHAPES["mha"]
    with pytest.raises(BasisError, match="of other KV"):
        bases.arrays_of(good, shape.layouts(1, 3))
    whole = tmp_path / "whole"
    save_basis(whole, good)
    for name, data in (("cut", whole.read_bytes()[:-9]), ("words", b"no basis"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BasisError, match="is no basis of a codec"):
            read_basis(tmp_path / name)
