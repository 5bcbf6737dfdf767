"""KVCapsule, reconstructed, against float64: what is stored, what comes back, how it is trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.compress import capsule, training
from kamera_jax.compress.capsule import Capsule, CapsuleBasis
from kamera_jax.compress.codec import codec
from kamera_jax.errors import BasisError, CodecError
from kamera_jax.kv import KV
from models.hub.basis import BASIS, read_basis
from models.registry import CHECKPOINTS
from tests.kamera_jax.compress.made import LENGTH, PARTS, SHAPES, kv_of, through, valid

HIDDEN = 8


def basis_of(shape, network=1.0, seed=0):
    """Random arrays of what is trained, with components along chunks of LENGTH rows."""
    rng = np.random.default_rng(seed)
    shapes = capsule.network_shapes(shape.layers, shape.rot, shape.free, LENGTH, HIDDEN)
    arrays = {name: rng.normal(size=each) for name, each in shapes.items()}
    for name in ("rot_scale", "free_scale"):
        arrays[name] = 0.5 + np.abs(arrays[name])
    arrays["sequence"] = np.linalg.qr(arrays["sequence"])[0]
    arrays["first"] /= np.sqrt(arrays["first"].shape[1])
    for name in ("second", "second_bias"):
        arrays[name] *= network
    return CapsuleBasis("any", **{name: np.asarray(array, np.float32) for name, array in arrays.items()})


def most_alone(x, count):
    """Rows of the largest leverage, the first and the last among them, in order."""
    centred = x - x.mean(0)
    products = centred.T @ centred
    ridge = np.trace(products) / len(products) * np.eye(len(products))
    scores = np.einsum("tf,ft->t", centred, np.linalg.solve(products + ridge, centred.T))
    scores[[0, -1]] = np.inf
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def restored(shape, kv, length, share, tilt, basis):
    """What comes back, in float64 and row by row: keys and values [L, T, F], and which keys were stored."""
    own = {name: np.float64(array) for name, array in basis.arrays.items()}
    back = {"rot": [], "free": []}
    stored = np.zeros((shape.layers, length), bool)
    for layer in range(shape.layers):
        part = share * (1 + tilt * (1 - 2 * layer / (shape.layers - 1)))
        count = int(np.floor(part * length + 0.5))
        x = (valid(kv, "rot", length)[layer] - own["rot_mean"][layer]) / own["rot_scale"][layer]
        v = (valid(kv, "free", length)[layer] - own["free_mean"][layer]) / own["free_scale"][layer]
        number = np.arange(length)[None]
        time = number.T
        along = np.cos(np.pi * (2 * time + 1) * number / (2 * length)) * np.sqrt(2 / length)
        along[:, 0] = np.sqrt(1 / length)
        if length == LENGTH:
            along = own["sequence"][layer]
        v = along[:, :count] @ (along[:, :count].T @ v)
        rows = most_alone(x, count)
        stored[layer, rows] = True
        keys = x.copy()
        for row in set(range(length)) - set(rows):
            a = rows[rows < row][-1]
            b = rows[rows > row][0]
            weight = (b - row) / (b - a)
            told = [x[a], x[b], [(row - a) / 16, (b - row) / 16, weight], v[row] @ own["read"][layer]]
            hidden = np.concatenate(told) @ own["first"][layer] + own["first_bias"][layer]
            hidden = hidden / (1 + np.exp(-hidden))
            more = hidden @ own["second"][layer] + own["second_bias"][layer]
            keys[row] = weight * x[a] + (1 - weight) * x[b] + more
        for part, rows in (("rot", keys), ("free", v)):
            back[part].append(rows * own[f"{part}_scale"][layer] + own[f"{part}_mean"][layer])
    return {part: np.stack(rows) for part, rows in back.items()}, stored


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
def test_it_gives_back_what_the_formulas_say(kind, dtype):
    """Of the length whose components are known, and of another; with a network, and between neighbours alone."""
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype, seed=3)
    for length, network in ((LENGTH, 1.0), (30, 1.0), (LENGTH, 0.0)):
        basis = basis_of(shape, network)
        back = through("capsule:0.4", kv, length, shape, basis)
        wanted, stored = restored(shape, kv, length, 0.4, 0.3, basis)
        leaves = codec("capsule:0.4").encode(kv, length, shape.heads, basis.arrays)
        marks = np.unpackbits(np.asarray(leaves["kv.rot"])[0], axis=1, bitorder="little")[:length, : shape.layers]
        np.testing.assert_array_equal(marks.T.astype(bool), stored)
        for part in PARTS:
            # Keys and components stand in the dtype of the KV, and so does what comes back.
            rounding = 2e-5 if dtype == jnp.float32 else 2**-7
            error = np.linalg.norm(valid(back, part, length) - wanted[part])
            assert error <= rounding * np.linalg.norm(wanted[part])
            assert not np.asarray(getattr(back, part)[:, length:]).any()


@pytest.mark.parametrize(("kind", "dtype"), [("gqa", jnp.float32), ("mla", jnp.bfloat16)])
def test_all_rows_and_components_are_exact(kind, dtype):
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype, seed=9)
    for length in (LENGTH, 30):
        back = through("capsule:1", kv, length, shape, basis_of(shape))
        for part in PARTS:
            x = valid(kv, part, length)
            rounding = 2**-7 if dtype == jnp.bfloat16 else 1e-5
            assert np.linalg.norm(valid(back, part, length) - x) <= rounding * np.linalg.norm(x)


def test_components_of_cosines_are_orthonormal():
    for length in (1, 7, 20):
        along = np.asarray(capsule.along_sequence(np.zeros((2, 0, 0), np.float32), 20, 20, length), np.float64)[0]
        wanted = np.zeros((20, 20))
        wanted[:length, :length] = np.eye(length)
        np.testing.assert_allclose(along.T @ along, wanted, atol=1e-5)


def test_layers_have_budgets_that_fall_with_depth_or_rise():
    for share in (0.05, 0.1, 0.25, 0.4, 0.9, 1.0):
        for tilt in (0.3, 0.0, -0.3, 0.9):
            shares = Capsule(share, tilt).shares(28)
            assert (
                shares.mean() == pytest.approx(share) and shares.max() <= 1 and shares.min() >= min(share, 0.1) - 1e-9
            )
            assert (np.diff(shares) * np.sign(tilt) <= 1e-12).all()
    np.testing.assert_allclose(Capsule(0.4).shares(5), [0.52, 0.46, 0.4, 0.34, 0.28])
    np.testing.assert_allclose(Capsule(0.4).shares(1), [0.4])
    counts = Capsule(0.4).counts(5, 50)
    assert counts[:, 50].tolist() == [26, 23, 20, 17, 14] and counts[:, :4].tolist() == [[0, 1, 2, 2]] * 5
    assert (np.diff(counts, axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["capsule:0.4", "capsule:0.4:-0.3+kivi:4"])
def test_bytes_padding_and_batches(name):
    shape = SHAPES["mla"]
    basis = basis_of(shape)
    by = codec(name)
    clean = kv_of(shape)
    leaves = by.encode(clean, 48, shape.heads, basis.arrays)
    assert sum(leaf.nbytes for leaf in leaves.values()) == by.nbytes(48, shape.layers, shape, "float32")
    wanted = by.arrays(shape.layers, 48, shape, "float32")
    assert {n: (a.shape, a.dtype) for n, a in leaves.items()} == {n: (a.shape, a.dtype) for n, a in wanted.items()}
    assert set(by.names) == set(leaves)
    assert by.widths(48, shape) == {part: leaves[f"kv.{part}"].shape[2] for part in PARTS}
    dirty = jax.tree.map(lambda rows: rows.at[:, LENGTH:].set(1e4), clean)
    a, b = (through(name, kv, LENGTH, shape, basis) for kv in (clean, dirty))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), clean)
    batch = jax.vmap(lambda kv: through(name, kv, LENGTH, shape, basis))(stacked)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        assert not np.asarray(getattr(a, part)[:, LENGTH:]).any()
        assert np.isclose(getattr(batch, part)[1], getattr(a, part), atol=1e-3).mean() > 0.999
    if name == "capsule:0.4":
        counts = [25, 22, 19, 16, 13]  # of 48 rows
        assert by.nbytes(48, 5, shape, "bfloat16") == 2 * sum(counts) * (32 + 128) + 48
        along = 4 * LENGTH * sum([21, 19, 16, 14, 11])
        of_network = 4 * ((2 * 32 + 3 + 16 + 1) * HIDDEN + (HIDDEN + 1) * 32)
        of_channels = 4 * (2 * (32 + 128) + 128 * 16)
        assert by.model_bytes(5, shape, basis.arrays) == along + 5 * (of_network + of_channels)


@pytest.mark.parametrize(
    "name",
    ["capsule", "capsule:0", "capsule:1.5", "capsule:x", "capsule:0.4:1", "capsule:0.4:--0.3", "capsule:0.4:0:0"],
)
def test_names_that_cannot_be(name):
    with pytest.raises(CodecError, match="capsule needs the share of keys and of components"):
        codec(name)


def test_stages_that_cannot_stand_with_it():
    with pytest.raises(CodecError, match="cannot stand behind low rank"):
        codec("pca:0.5+capsule:0.4")
    with pytest.raises(CodecError, match="put kivi:B behind xkv or capsule"):
        codec("capsule:0.4+mixed:0.25:4:2").check_shape(SHAPES["gqa"])


@pytest.fixture(scope="module")
def bound():
    """KV whose keys and values have causes in common that vary over few rows: keys do not lie between neighbours."""
    waves = np.cos(np.pi * (np.arange(32)[:, None] + 0.5) * np.arange(1, 9)[None] / 30)
    rng = np.random.default_rng(99)
    mix = {"rot": rng.normal(size=(2, 4, 8)), "free": rng.normal(size=(2, 4, 12))}
    made = []
    for seed in range(25):
        causes = np.einsum("tk,lkc->ltc", waves, np.random.default_rng(seed).normal(size=(2, 8, 4)))
        made.append((KV(*(jnp.asarray(causes @ mix[part] + 3, jnp.float32) for part in PARTS)), 30))
    return made


def test_training_tells_keys_that_are_not_stored(bound):
    """On a chunk that it was not trained on, at a share that it was not trained on; the same twice."""
    given = bound[1:]
    basis = training.trained("any", given, steps=300)
    assert basis.digest == training.trained("any", given, steps=300).digest and basis.tokens == 30
    nothing = replace(basis, second=basis.second * 0, second_bias=basis.second_bias * 0)
    shape = replace(SHAPES["gqa"], rot=8, free=12, layers=2, heads=1)
    kv, length = bound[0]
    errors = []
    for own in (nothing, basis):
        back = through("capsule:0.5", kv, length, shape, own)
        errors.append(np.linalg.norm(valid(back, "rot", length) - valid(kv, "rot", length)))
    assert errors[1] < 0.5 * errors[0]
    x = np.stack([valid(kv, "free", 30) for kv, _ in given])
    mean = x.mean((0, 2))
    deviation = x.std((0, 2))
    np.testing.assert_allclose(basis.free_mean, mean, atol=1e-5)
    np.testing.assert_allclose(basis.free_scale, deviation, rtol=1e-4)
    rows = (x - mean[:, None]) / deviation[:, None]
    for layer in range(2):  # principal components along the sequence, of every channel of every chunk
        u, _, _ = np.linalg.svd(rows[:, layer].transpose(1, 0, 2).reshape(30, -1))
        np.testing.assert_allclose(np.abs(np.diag(u.T[:5] @ basis.sequence[layer][:, :5])), 1, atol=1e-3)


def test_training_takes_any_chunks(bound):
    """Lengths that are all different have cosines; layers whose rows are all stored have nothing to learn."""
    kvs = [(bound[0][0], length) for length in (3, 30, 29)]
    assert training._measured(kvs)["sequence"].shape == (2, 0, 0)
    told, wanted = training._examples([(bound[0][0], 2)], training._measured(kvs))
    assert told.shape == (2, 1, 2 * 8 + 3 + 12) and not told.any() and not wanted.any()
    with pytest.raises(BasisError, match="at least three tokens"):
        training.trained("any", [(bound[0][0], 2)])


def test_the_embedded_model_brings_what_was_trained_on_its_pages():
    """More of the keys than lie between their neighbours, and of a file whose other half is what it was."""
    basis = read_basis(CHECKPOINTS / "kamera-tiny-gqa" / BASIS)
    assert basis.digest.startswith("33e57e649c0b")
    network = sum(basis.capsule.arrays[name].nbytes for name in capsule.NETWORK)
    assert basis.capsule.tokens == 62 and network < 300_000
