"""Rows of two precisions: which are chosen, and what comes back of either kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.compress.codec import codec
from kamera_jax.compress.mixed import leverage
from kamera_jax.errors import CodecError
from tests.kamera_jax.compress.made import LENGTH, PARTS, ROWS, SHAPES, kv_of, through, valid


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
def test_all_rows_are_of_the_one_kind_or_of_the_other(kind, dtype):
    shape = SHAPES[kind]
    kv = kv_of(shape, dtype)
    for name, same in (("mixed:1:4:2", "kivi:4"), ("mixed:0:4:2", "kivi:2")):
        a, b = (through(each, kv, LENGTH, shape) for each in (name, same))
        for part in PARTS:
            close = np.isclose(valid(a, part), valid(b, part), rtol=2**-7, atol=1e-6)
            assert close.mean() > 0.999


def chosen(kv, shape, share, length=LENGTH):
    """The mask, restated in float64."""
    keys = np.concatenate([valid(kv, part, length) for part in (PARTS if shape.rot != shape.free else ("rot",))], 2)
    x = keys - keys.mean(1, keepdims=True)
    products = np.einsum("ltf,ltg->lfg", x, x)
    ridge = np.trace(products, axis1=1, axis2=2)[:, None, None] / x.shape[2]
    scores = np.einsum("ltf,lfg,ltg->lt", x, np.linalg.inv(products + ridge * np.eye(x.shape[2])), x)
    given = leverage(jnp.concatenate([getattr(kv, part) for part in PARTS[: 1 + (shape.rot != shape.free)]], 2), length)
    np.testing.assert_allclose(np.asarray(given)[:, :length], scores, rtol=2e-3)
    assert not np.asarray(given)[:, length:].any()
    count = int(np.floor(share * length + 0.5))
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask


@pytest.mark.parametrize("kind", SHAPES)
def test_rows_whose_keys_stand_alone_have_more_bits(kind):
    shape = SHAPES[kind]
    kv = kv_of(shape)
    by = codec("mixed:0.25:6:2")
    leaves = by.encode(kv, LENGTH, shape.heads)
    mask = chosen(kv, shape, 0.25)
    stored = np.unpackbits(np.asarray(leaves["kv.rows"]), axis=1, bitorder="little")[:, :ROWS].astype(bool)
    assert (stored[:, :LENGTH] == mask).all() and not stored[:, LENGTH:].any()
    back = by.decode(leaves, LENGTH, shape, "float32")
    for part in PARTS:
        error = ((valid(back, part) - valid(kv, part)) ** 2).mean(2)
        assert error[mask].mean() < 0.1 * error[~mask].mean()
    # Each kind is quantised by itself, in the tokens' order.
    layer = 1
    for rows, name in ((mask[layer], "kivi:6"), (~mask[layer], "kivi:2")):
        own = jax.tree.map(lambda leaf, rows=rows: leaf[layer : layer + 1, :LENGTH][:, rows], kv)
        alone = through(name, own, int(rows.sum()), shape)
        for part in PARTS:
            close = np.isclose(valid(back, part)[layer][rows], valid(alone, part, None)[0], atol=1e-5)
            assert close.mean() > 0.999


@pytest.mark.parametrize("name", ["mixed:0.25:4:2", "mixed:0.01:3:1"])
def test_padding_is_never_seen_and_comes_back_as_zero(name):
    shape = SHAPES["gqa"]
    clean = kv_of(shape)
    dirty = jax.tree.map(lambda rows: rows.at[:, LENGTH:].set(1e4), clean)
    by = codec(name)
    a, b = (by.encode(kv, LENGTH, shape.heads) for kv in (clean, dirty))
    for leaf in a:
        np.testing.assert_array_equal(a[leaf], b[leaf])
    back = by.decode(b, LENGTH, shape, "float32")
    assert not np.asarray(back.rot[:, LENGTH:]).any() and not np.asarray(back.free[:, LENGTH:]).any()


@pytest.mark.parametrize("name", ["mixed:0.25:4:2", "mixed:0.5:8:3", "mixed:1:4:2"])
def test_stored_bytes_are_those_of_the_arrays(name):
    by = codec(name)
    for kind, rows in (("gqa", 48), ("mla", 1)):
        shape = SHAPES[kind]
        leaves = by.encode(kv_of(shape, rows=rows), rows, shape.heads)
        assert sum(leaf.nbytes for leaf in leaves.values()) == by.nbytes(rows, shape.layers, shape, "float32")
        given = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        wanted = by.arrays(shape.layers, rows, shape, "float32")
        assert given == {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        assert set(by.names) == set(leaves)
        assert by.widths(rows, shape) == {part: leaves[f"kv.{part}"].shape[2] for part in PARTS}


def test_chunks_are_packed_apart():
    shape = SHAPES["mla"]
    kvs = [kv_of(shape, seed=seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *kvs)
    together = jax.vmap(lambda kv: through("mixed:0.25:4:2", kv, LENGTH, shape))(stacked)
    for place, kv in enumerate(kvs):
        alone = through("mixed:0.25:4:2", kv, LENGTH, shape)
        for part in PARTS:
            assert np.isclose(getattr(together, part)[place], getattr(alone, part), atol=1e-5).mean() > 0.999


@pytest.mark.parametrize(
    "name",
    [
        "mixed",
        "mixed:0.5:4",
        "mixed:0.5:2:4",
        "mixed:0.5:4:4",
        "mixed:2:4:2",
        "mixed:-1:4:2",
        "mixed:.5:4:9",
        "mixed:0.5:4:2:1",
    ],
)
def test_names_that_cannot_be(name):
    with pytest.raises(CodecError, match="mixed needs the share of rows in more bits"):
        codec(name)


def test_components_of_layers_are_no_tokens():
    with pytest.raises(CodecError, match="components of layers are none"):
        through("xkv:2:8+mixed:0.5:4:2", kv_of(SHAPES["gqa"]), LENGTH, SHAPES["gqa"])
