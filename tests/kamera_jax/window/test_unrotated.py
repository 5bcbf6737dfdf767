"""Layers without RoPE, in every way that keys come into a window or are read, against float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.kv import KV, Factors, KVSpec
from kamera_jax.rope import RopeSpec, inverse_frequencies
from kamera_jax.window.reuse import relocate, write
from tests import oracles

LAYERS, TOKENS, LENGTH, HEADS, DIM, RANK = 5, 16, 13, 2, 8, 3
PLAIN = RopeSpec(tuple(inverse_frequencies(DIM, 1e4).tolist()), DIM, scale=1.25)
SPECS = {
    "two of five": replace(PLAIN, unrotated=(1, 4)),
    "the first": replace(PLAIN, unrotated=(0,)),
    "all": replace(PLAIN, unrotated=(0, 1, 2, 3, 4)),
    "partial, and layers past the last": replace(
        PLAIN, inv_freq=PLAIN.inv_freq[:2], layout="interleaved", unrotated=(2, 7)
    ),
}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def chunk(patched):
    rng = np.random.default_rng(3)
    rot, free = rng.standard_normal((2, LAYERS, TOKENS, HEADS * DIM), np.float32)
    kv = KV(jnp.asarray(rot), jnp.asarray(free))
    if not patched:
        return kv, None
    u = rng.standard_normal((LAYERS, RANK, TOKENS), np.float32)
    v = rng.standard_normal((LAYERS, RANK, 2 * HEADS * DIM), np.float32)
    return kv, Factors(jnp.asarray(u), jnp.asarray(v), jnp.array([3, 2, 0, 1, 3], jnp.int32))


def expected(spec, kv, factors, positions):
    """Every layer by itself: rotated, or where it is not at a position that turns nothing, without the scale."""
    still = replace(spec, scale=1.0, unrotated=())
    patch = () if factors is None else (factors.u, factors.v, factors.ranks)
    turned = oracles.relocate(spec, kv.rot, kv.free, positions, LENGTH, *patch)
    kept = oracles.relocate(still, kv.rot, kv.free, 0 * positions, LENGTH, *patch)
    layers = np.isin(np.arange(LAYERS), spec.unrotated)[:, None, None]
    return np.where(layers, kept[0], turned[0]), turned[1]


POSITIONS = jnp.arange(TOKENS, dtype=jnp.float32)[None] + 5


@pytest.mark.parametrize("patched", [False, True])
def test_relocate_leaves_their_keys(spec, patched):
    kv, factors = chunk(patched)
    given = relocate(kv, factors, POSITIONS, LENGTH, spec)
    for ours, oracle in zip(given, expected(spec, kv, factors, np.asarray(POSITIONS)), strict=True):
        np.testing.assert_allclose(ours, oracle, atol=3e-6)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("slot, implementation", [(16, None), (9, "xla")])
def test_write_leaves_their_keys(spec, patched, slot, implementation):
    kv, factors = chunk(patched)
    kvspec = KVSpec(LAYERS, HEADS * DIM, HEADS * DIM, HEADS, spec, "float32", "f")
    state = write(kvspec.empty_state(48), slot, kv, factors, POSITIONS, LENGTH, spec, implementation)
    for ours, oracle in zip((state.rot, state.free), expected(spec, kv, factors, np.asarray(POSITIONS)), strict=True):
        np.testing.assert_allclose(ours[:, slot : slot + LENGTH], oracle[:, :LENGTH], atol=3e-6)
        outside = np.delete(np.asarray(ours), np.s_[slot : slot + LENGTH], axis=1)
        assert not outside.any()


def test_write_is_vmapped_and_compiled(spec):
    kv, factors = chunk(True)
    kvspec = KVSpec(LAYERS, HEADS * DIM, HEADS * DIM, HEADS, spec, "float32", "f")
    states, kvs, patches = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (kvspec.empty_state(32), kv, factors))

    def one(state, kv, factors):
        return write(state, 0, kv, factors, POSITIONS, LENGTH, spec)

    given = jax.jit(jax.vmap(one))(states, kvs, patches).rot[1]
    np.testing.assert_allclose(
        given[:, :LENGTH],
        write(kvspec.empty_state(32), 0, kv, factors, POSITIONS, LENGTH, spec).rot[:, :LENGTH],
        atol=1e-6,
    )


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_layer_s_heads_are_rotated_or_not(spec, layer):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((TOKENS, HEADS, DIM), np.float32))
    given = kj.rope.rotate(x, POSITIONS, spec, layer)
    if layer in spec.unrotated:
        np.testing.assert_array_equal(given, x)
    else:
        np.testing.assert_array_equal(given, kj.rope.rotate(x, POSITIONS, replace(spec, unrotated=())))


@pytest.mark.parametrize("layers", [(1, 0), (1, 1), (-1,)])
def test_layers_are_named_once_and_in_order(layers):
    with pytest.raises(ValueError, match="expected each once, in order, counted from 0"):
        replace(PLAIN, unrotated=layers)


def test_what_is_kept_of_other_models_is_as_before():
    """Keys of chunks are digests of it."""
    assert PLAIN.plain.keys() == {"inv_freq", "head_dim", "layout", "sections", "section_layout", "scale"}
