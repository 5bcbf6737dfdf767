"""Layers of a stack as JAX scans them, and on a CPU no stack of bf16 that is converted as a whole."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.scanning import layer_of, scan

LAYERS = 5
ROWS = 6
WIDTH = 8


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(params=["bfloat16", "float32"])
def stacks(request, rng):
    """Matrices in the dtype, biases in f32 beside them, and whole numbers."""
    w = jnp.asarray(rng.standard_normal((LAYERS, WIDTH, WIDTH)) / WIDTH, request.param)
    return {
        "w": w,
        "b": jnp.asarray(rng.standard_normal((LAYERS, WIDTH)), jnp.float32),
        "n": jnp.arange(LAYERS, dtype=jnp.int32),
    }


def step(x, weights):
    h = jnp.matmul(x, weights["w"], preferred_element_type=jnp.float32) + weights["b"][None] * weights["n"].astype(
        jnp.float32
    )
    x = jnp.tanh(h).astype(x.dtype)
    return x, {"kv": x * 2, "mass": h.sum(0), "none": None}


def start(stacks, rng):
    return jnp.asarray(rng.standard_normal((ROWS, WIDTH)), stacks["w"].dtype)


def same(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float64), np.asarray(other, np.float64))


def test_results_are_those_of_jax(stacks, rng):
    x = start(stacks, rng)
    same(jax.jit(lambda x, s: scan(step, x, s))(x, stacks), jax.jit(lambda x, s: jax.lax.scan(step, x, s))(x, stacks))


def test_results_are_those_of_jax_under_vmap(stacks, rng):
    x = jnp.stack([start(stacks, rng) for _ in range(3)])
    each = jax.jit(jax.vmap(lambda x: scan(step, x, stacks)))(x)
    same(each, jax.jit(jax.vmap(lambda x: jax.lax.scan(step, x, stacks)))(x))


def test_derivatives_are_those_of_jax(stacks, rng):
    x = start(stacks, rng)

    def loss(scanning, w, x):
        last, outputs = scanning(step, x, {**stacks, "w": w})
        return (last.astype(jnp.float32) ** 2).sum() + (
            outputs["kv"].astype(jnp.float32) * outputs["mass"][:, None]
        ).sum()

    given = jax.jit(jax.grad(lambda w, x: loss(scan, w, x), argnums=(0, 1)))(stacks["w"], x)
    expected = jax.jit(jax.grad(lambda w, x: loss(jax.lax.scan, w, x), argnums=(0, 1)))(stacks["w"], x)
    assert all(np.abs(np.asarray(leaf, np.float64)).max() > 0 for leaf in given)
    same(given, expected)


def test_a_layer_is_that_of_the_stack_with_its_derivative(stacks):
    index = jnp.int32(3)
    np.testing.assert_array_equal(jax.jit(layer_of)(stacks["w"], index), stacks["w"][3])
    given = jax.jit(jax.grad(lambda w: (layer_of(w, index).astype(jnp.float32) * 3).sum()))(stacks["w"])
    expected = np.zeros(given.shape)
    expected[3] = 3
    np.testing.assert_array_equal(np.asarray(given, np.float64), expected)


@pytest.mark.parametrize("what", ["scan", "layer_of"])
def test_on_a_cpu_no_stack_of_bf16_is_converted(what):
    """With XLA's own scan the same search finds a conversion: it looks for what is meant."""
    layers = 7
    rows = 8
    width = 16
    w = jnp.ones((layers, width, width), jnp.bfloat16)
    x = jnp.ones((rows, width), jnp.bfloat16)

    def of_layers(scanning, cut):
        def run(x, w):
            if what == "scan":
                return scanning(lambda x, each: (jnp.matmul(x, each), x), x, w)
            return jax.lax.fori_loop(0, layers, lambda index, x: jnp.matmul(x, cut(w, index)), x)

        return jax.jit(run).lower(x, w).compile().as_text()

    def converted(program):
        return re.findall(rf"f32\[{layers},(?:{width},{width}|{rows},{width})\]\S* (?:convert|fusion)", program)

    assert converted(of_layers(jax.lax.scan, lambda w, index: jax.lax.dynamic_index_in_dim(w, index, keepdims=False)))
    assert not converted(of_layers(scan, layer_of))
