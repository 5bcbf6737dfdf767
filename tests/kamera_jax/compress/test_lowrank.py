"""Low rank against SVDs in float64: what comes back, what it takes, and what a quantiser does to what is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.compress.codec import codec
from tests.kamera_jax.compress.made import LENGTH, PARTS, SHAPES, kv_of, through, valid


def truncated(x, layers, rank):
    """The best approximation of layers side by side, a group at a time, in float64; and the squared error left."""
    count, rows, width = x.shape
    out = np.zeros_like(x)
    left = 0.0
    for start in range(0, count, layers):
        group = np.concatenate(list(x[start : start + layers]), axis=1)
        u, s, vt = np.linalg.svd(group, full_matrices=False)
        near = (u[:, :rank] * s[:rank]) @ vt[:rank]
        left += (s[rank:] ** 2).sum()
        for place in range(start, min(start + layers, count)):
            out[place] = near[:, (place - start) * width : (place - start + 1) * width]
    return out, left


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("layers", "rank"), [(1, 8), (2, 20), (5, 30)])
def test_it_is_the_best_of_its_rank(kind, layers, rank, dtype):
    """Eckart and Young: each group's error is that of its SVD; with one layer it is each layer's own SVD."""
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype)
    back = through(f"xkv:{layers}:{rank}", kv, LENGTH, shape)
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-5
    for part in PARTS:
        x = valid(kv, part)
        wanted, left = truncated(x, layers, rank)
        given = valid(back, part)
        assert np.linalg.norm(given - wanted) <= rounding * np.linalg.norm(x)
        error = ((given - x) ** 2).sum()
        # What comes back is rounded to the dtype of what was given, which may bring it nearer or further.
        assert abs(np.sqrt(left) - np.sqrt(error)) <= rounding * np.linalg.norm(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("layers", [1, 3])
def test_all_components_are_exact(kind, layers, dtype):
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype)
    back = through(f"xkv:{layers}:1000", kv, LENGTH, shape)
    for part in PARTS:
        x = valid(kv, part)
        assert np.linalg.norm(valid(back, part) - x) <= (2**-7 if dtype == jnp.bfloat16 else 1e-5) * np.linalg.norm(x)


@pytest.mark.parametrize("name", ["xkv:2:12", "xkv:2:12+kivi:4"])
@pytest.mark.parametrize("kind", SHAPES)
def test_padding_is_never_seen_and_comes_back_as_zero(kind, name):
    shape = SHAPES[kind]
    clean = kv_of(shape)
    dirty = jax.tree.map(lambda rows: rows.at[:, LENGTH:].set(1e4), clean)
    a, b = (through(name, kv, LENGTH, shape) for kv in (clean, dirty))
    for part in PARTS:
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        assert not np.asarray(getattr(a, part)[:, LENGTH:]).any()


@pytest.mark.parametrize("name", ["xkv:2:12", "xkv:2:12+kivi:4", "xkv:1:16+turbo:4"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_stored_bytes_are_those_of_the_arrays(name, dtype):
    by = codec(name)
    for kind, rows in (("gqa", 1), ("gqa", 48), ("mla", 16)):
        shape = SHAPES[kind]
        leaves = by.encode(kv_of(shape, dtype, rows=rows), rows, shape.heads)
        assert sum(leaf.nbytes for leaf in leaves.values()) == by.nbytes(rows, shape.layers, shape, dtype)
        given = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        wanted = by.arrays(shape.layers, rows, shape, jnp.dtype(dtype).name)
        assert given == {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        assert set(by.names) == set(leaves)
        assert by.widths(rows, shape) == {part: leaves[f"kv.{part}"].shape[2] for part in PARTS}
    if name == "xkv:2:12":  # three groups of two layers of 64 features
        wanted = 3 * 2 * 12 * (48 + 2 * 64) * jnp.dtype(dtype).itemsize
        assert by.nbytes(48, 5, SHAPES["gqa"], dtype) == wanted


def test_chunks_are_packed_apart():
    """A vmap over chunks is each by itself."""
    shape = SHAPES["gqa"]
    kvs = [kv_of(shape, seed=seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *kvs)
    together = jax.vmap(lambda kv: through("xkv:2:16+kivi:4", kv, LENGTH, shape))(stacked)
    for place, kv in enumerate(kvs):
        alone = through("xkv:2:16+kivi:4", kv, LENGTH, shape)
        for part in PARTS:
            size = np.abs(np.asarray(getattr(alone, part))).max()
            np.testing.assert_allclose(getattr(together, part)[place], getattr(alone, part), atol=1e-4 * size)


@pytest.mark.parametrize("name", ["xkv:1:8", "xkv:3:16"])
def test_what_comes_back_comes_back_again(name):
    shape = SHAPES["mha"]
    once = through(name, kv_of(shape), LENGTH, shape)
    twice = through(name, once, LENGTH, shape)
    for part in PARTS:
        a, b = (valid(kv, part) for kv in (once, twice))
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_quantiser_is_given_what_low_rank_left(kind):
    """Eight bits of the factors lose next to nothing more, two bits some."""
    shape = SHAPES[kind]
    kv = kv_of(shape)
    errors = {}
    for name in ("xkv:1:16", "xkv:1:16+kivi:8", "xkv:1:16+kivi:4", "xkv:1:16+kivi:2"):
        back = through(name, kv, LENGTH, shape)
        errors[name] = sum(np.linalg.norm(valid(back, part) - valid(kv, part)) for part in PARTS)
    exact, eight, four, two = errors.values()
    assert exact <= eight <= 1.01 * exact < four < two
