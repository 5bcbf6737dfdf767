"""Quantisers of KV against their definitions in float64, and what their sources say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.compress.codec import Shape, codec
from kamera_jax.compress.packing import pack, packed_width, unpack
from kamera_jax.compress.quantise import GROUP, codebook, hadamard, random_rotation
from kamera_jax.kv import KV

NAMES = ("int8", "kivi:2", "kivi:4", "kivi:3:channel", "saw:4", "saw:2", "turbo:3", "turbo:4", "kivi:8", "turbo:1")
SHAPES = {"gqa": Shape(64, 64, 2), "mla": Shape(32, 128, 1), "mha": Shape(96, 96, 4), "one head": Shape(80, 80, 1)}
LAYERS = 2
ROWS = 48
LENGTH = 41
PACK = jax.jit(pack, static_argnums=1)
UNPACK = jax.jit(unpack, static_argnums=(1, 2))


def kv_of(shape, dtype=jnp.float32, seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    offset = rng.normal(size=(LAYERS, 1, shape.rot)) * 2
    rot = rng.normal(size=(LAYERS, rows, shape.rot)) + offset
    free = rng.normal(size=(LAYERS, rows, shape.free))
    return KV(jnp.asarray(rot, dtype), jnp.asarray(free, dtype))


def through(name, kv, length, shape):
    by = codec(name)
    return by.decode(by.encode(kv, length, shape.heads), length, shape, kv.rot.dtype)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 24, 37])
def test_codes_are_packed_without_gaps(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 2, count)).astype(np.uint8)
    packed = np.asarray(PACK(jnp.asarray(codes), bits))
    assert packed.shape == (3, 2, packed_width(count, bits)) and packed.shape[-1] == -(-count * bits // 8)
    stream = [(int(code) >> bit) & 1 for code in codes[1, 1] for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    assert packed[1, 1].tolist() == [
        sum(b << i for i, b in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)
    ]
    np.testing.assert_array_equal(UNPACK(jnp.asarray(packed), bits, count), codes)


def grouped(x, length, axis, bits):
    """KIVI's quantiser restated in float64, a group at a time; scales and least values as float16 has them."""
    x = np.float64(x[:, :length])
    out = np.zeros_like(x)
    half_steps = np.zeros_like(x)
    for start in range(0, x.shape[axis], GROUP):
        at = [slice(None)] * 3
        at[axis] = slice(start, start + GROUP)
        part = x[tuple(at)]
        least = part.min(axis, keepdims=True).astype(np.float16)
        step = ((part.max(axis, keepdims=True) - np.float64(least)) / (2**bits - 1)).astype(np.float16)
        unit = np.where(step > 0, np.float64(step), 1)
        codes = np.where(step > 0, np.clip(np.rint((part - np.float64(least)) / unit), 0, 2**bits - 1), 0)
        out[tuple(at)] = codes * np.float64(step) + np.float64(least)
        half_steps[tuple(at)] = np.float64(step) / 2 + np.abs(np.float64(least)) * 2**-10
    return out, half_steps


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("name", "bits", "by_channel"), [("kivi:4", 4, False), ("kivi:2:channel", 2, True), ("kivi:3", 3, False)]
)
def test_kivi_is_its_definition(kind, name, bits, by_channel, dtype):
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype)
    back = through(name, kv, LENGTH, shape)
    for part in ("rot", "free"):
        x = np.asarray(getattr(kv, part), np.float32)
        along_tokens = part == "rot" or by_channel or kind == "mla"
        wanted, half = grouped(x, LENGTH, 1 if along_tokens else 2, bits)
        given = np.asarray(getattr(back, part), np.float64)
        assert (given[:, LENGTH:] == 0).all()
        rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-6
        close = np.abs(given[:, :LENGTH] - wanted) <= rounding * np.abs(wanted) + 1e-6
        # A value in the middle between two codes may go either way.
        assert close.mean() > 0.99
        error = np.abs(given[:, :LENGTH] - x[:, :LENGTH])
        assert (error <= 1.001 * half + rounding * np.abs(x[:, :LENGTH]) + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SHAPES)
def test_padding_is_never_seen_and_comes_back_as_zero(kind, name):
    shape = SHAPES[kind]
    clean = kv_of(shape)
    dirty = jax.tree.map(lambda rows: rows.at[:, LENGTH:].set(1e4), clean)
    by = codec(name)
    for a, b in zip(*(jax.tree.leaves(by.encode(kv, LENGTH, shape.heads)) for kv in (clean, dirty)), strict=True):
        np.testing.assert_array_equal(a, b)
    back = through(name, dirty, LENGTH, shape)
    assert not np.asarray(back.rot[:, LENGTH:]).any() and not np.asarray(back.free[:, LENGTH:]).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SHAPES)
def test_stored_bytes_are_those_of_the_arrays(kind, name):
    shape = SHAPES[kind]
    for rows in (1, 16, 32, 128):
        by = codec(name)
        leaves = by.encode(kv_of(shape, rows=rows), rows, shape.heads)
        assert sum(leaf.nbytes for leaf in leaves.values()) == by.nbytes(rows, LAYERS, shape, "float32")
        given = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        wanted = by.arrays(LAYERS, rows, shape, "float32")
        assert given == {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        assert set(by.names) == set(leaves)


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_chunks_are_packed_apart(name):
    """A vmap over chunks is each by itself, and a layer alone is a layer of all."""
    shape = SHAPES["gqa"]
    by = codec(name)
    chunks = [kv_of(shape, seed=seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *chunks)
    together = jax.vmap(lambda kv: by.encode(kv, LENGTH, shape.heads))(stacked)
    for place, kv in enumerate(chunks):
        alone = by.encode(kv, LENGTH, shape.heads)
        layer = by.encode(jax.tree.map(lambda rows: rows[1:], kv), LENGTH, shape.heads)
        for leaf, array in alone.items():
            np.testing.assert_allclose(together[leaf][place], array, atol=1e-6)
            np.testing.assert_allclose(layer[leaf][0], array[1], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("turbo")])
def test_what_comes_back_comes_back_again(name):
    shape = SHAPES["gqa"]
    once = through(name, kv_of(shape), LENGTH, shape)
    twice = through(name, once, LENGTH, shape)
    for part in ("rot", "free"):
        a, b = (np.asarray(getattr(kv, part), np.float64) for kv in (once, twice))
        # Steps are rounded to float16, so that a second pass may move by a little.
        assert np.abs(a - b).max() <= 3e-3 * np.abs(a).max()


@pytest.mark.parametrize("name", NAMES)
def test_constants_and_zeros(name):
    shape = SHAPES["gqa"]
    kv = KV(jnp.full((1, 16, 64), 1.5), jnp.zeros((1, 16, 64)))
    back = through(name, kv, 16, shape)
    assert not np.asarray(back.free).any()
    if name.startswith(("kivi", "int8")):
        np.testing.assert_allclose(back.rot, kv.rot, rtol=1e-6)


def test_a_group_of_two_values_is_exact():
    shape = SHAPES["gqa"]
    choice = np.random.default_rng(0).integers(0, 2, (1, 64, 64))
    kv = KV(jnp.asarray(np.where(choice, 0.5, -2.0), jnp.float32), jnp.asarray(np.where(choice, 4.0, 1.0), jnp.float32))
    back = through("kivi:1", kv, 64, shape)
    np.testing.assert_array_equal(back.rot, kv.rot)
    np.testing.assert_array_equal(back.free, kv.free)


@pytest.mark.parametrize("order", [1, 2, 16, 128])
def test_hadamard_matrices_are_orthonormal(order):
    h = np.float64(hadamard(order))
    np.testing.assert_allclose(h @ h.T, np.eye(order), atol=1e-6)
    assert (h == h.T).all() and (np.abs(h) == np.abs(h[0, 0])).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_saw_is_a_rotation_and_codes_by_token_and_head(bits):
    shape = SHAPES["gqa"]
    kv = kv_of(shape)
    back = through(f"saw:{bits}", kv, LENGTH, shape)
    turn = np.float64(hadamard(32))
    x = np.float64(kv.free)[:, :LENGTH].reshape(LAYERS, LENGTH, 2, 32) @ turn
    least = x.min(-1, keepdims=True).astype(np.float16)
    step = ((x.max(-1, keepdims=True) - np.float64(least)) / (2**bits - 1)).astype(np.float16)
    codes = np.clip(np.rint((x - np.float64(least)) / np.float64(step)), 0, 2**bits - 1)
    wanted = ((codes * np.float64(step) + np.float64(least)) @ turn).reshape(LAYERS, LENGTH, 64)
    given = np.float64(back.free)[:, :LENGTH]
    assert (np.abs(given - wanted) < 1e-5).mean() > 0.99
    assert np.linalg.norm(given - wanted) <= 0.02 * np.linalg.norm(given - np.float64(kv.free)[:, :LENGTH]) + 1e-4


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_the_codebook_is_that_of_lloyd_and_max(bits, error):
    """Max 1960, table I: the least squared errors of N(0, 1)."""
    x = np.random.default_rng(bits).standard_normal(200_000)
    centres = codebook(bits)
    assert len(centres) == 2**bits and (np.diff(centres) > 0).all()
    np.testing.assert_allclose(centres, -centres[::-1], atol=1e-5)
    nearest = centres[np.abs(x[:, None] - centres).argmin(1)]
    assert abs(((x - nearest) ** 2).mean() / error - 1) < 0.02


@pytest.mark.parametrize(("bits", "error"), [(1, 0.363), (2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_turbo_keeps_norms_and_errs_as_little_as_is_said(bits, error):
    shape = Shape(256, 256, 2)
    kv = kv_of(shape, rows=512)
    back = through(f"turbo:{bits}", kv, 512, shape)
    by_head = [np.float64(each).reshape(LAYERS, 512, 2, 128) for each in (kv.free, back.free)]
    relative = ((by_head[0] - by_head[1]) ** 2).sum() / (by_head[0] ** 2).sum()
    assert abs(relative / error - 1) < 0.03
    np.testing.assert_allclose(
        np.float64(codec(f"turbo:{bits}").encode(kv, 512, 2)["kv.free_norm"]),
        np.linalg.norm(by_head[0], axis=-1),
        rtol=1e-3,
    )


def test_random_rotations_are_orthogonal_and_always_the_same():
    turn = np.float64(random_rotation(64))
    np.testing.assert_allclose(turn @ turn.T, np.eye(64), atol=1e-5)
    random_rotation.cache_clear()
    np.testing.assert_array_equal(random_rotation(64), np.float32(turn))


def test_more_bits_lose_less():
    shape = SHAPES["gqa"]
    kv = kv_of(shape)
    for kind in ("kivi", "saw", "turbo"):
        errors = [
            float(jnp.linalg.norm(through(f"{kind}:{bits}", kv, ROWS, shape).rot - kv.rot)) for bits in range(1, 9)
        ]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 * float(jnp.linalg.norm(kv.rot)), kind
