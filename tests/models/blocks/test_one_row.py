"""The product of a single row: against float64, and what it is lowered to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks import int8
from models.blocks.one_row import PART, REPEATED, WIDE, matmul, row_matmul, summed

SHAPES = {"narrow": (3 * PART, 40), "odd": (77, 12), "wide": (60, WIDE + 3), "one part": (PART, 16), "a value": (1, 1)}


def case(name, dtype=jnp.float32):
    inner, columns = SHAPES[name]
    rng = np.random.default_rng(inner)
    x = jnp.asarray(rng.normal(size=(1, inner)), dtype)
    return x, jnp.asarray(rng.normal(size=(inner, columns)) * inner**-0.5, dtype)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_sum_equals_float64(name, dtype):
    x, matrix = case(name, dtype)
    exact = np.float64(x) @ np.float64(matrix)
    for given in (jax.jit(summed)(x, matrix), jax.jit(row_matmul)(x, matrix), summed(x[0], matrix)[None]):
        assert given.dtype == jnp.float32 and given.shape == exact.shape
        # Products of halves are exact in f32.
        np.testing.assert_allclose(given, exact, atol=2e-6)


def test_codes_are_multiplied_as_they_are():
    x, matrix = case("narrow")
    codes = jnp.round(matrix * 100).astype(jnp.int8)
    np.testing.assert_allclose(summed(x, codes), np.float64(x) @ np.float64(codes), rtol=1e-6, atol=1e-4)


def products(function, *arguments, platform):
    """How many products a program has when it is lowered for a platform, and its text."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.dot_general"), text


@pytest.mark.parametrize("weight", [lambda matrix: matrix, lambda matrix: int8.stored("text/head/w", matrix)])
def test_only_a_gpu_sums_and_only_a_single_row(weight):
    x, matrix = case("narrow")
    stored = weight(matrix)
    for platform, count in {"cpu": 1, "tpu": 1, "cuda": 0}.items():
        assert products(int8.product, x, stored, platform=platform)[0] == count
    for rows in (jnp.concatenate([x, x]), jnp.stack([x, x])):
        assert products(int8.product, rows, stored, platform="cuda")[0] == 1


def test_a_cpu_multiplies_rows_of_bf16_that_are_all_the_same():
    for dtype, rows in {jnp.bfloat16: REPEATED, jnp.float32: 1}.items():
        x, matrix = case("narrow", dtype)
        _, text = products(row_matmul, x, matrix, platform="cpu")
        assert f"-> tensor<{rows}x{matrix.shape[1]}xf32>" in text
    _, text = products(row_matmul, *case("narrow", jnp.bfloat16), platform="tpu")
    assert "-> tensor<1x" in text


def test_a_batch_of_single_rows_is_one_product():
    x, matrix = case("odd")
    rows = jnp.stack([x, 2 * x, -x])
    batch = jax.vmap(row_matmul, in_axes=(0, None))
    count, text = products(batch, rows, matrix, platform="cuda")
    assert count == 1 and "stablehlo.reduce" not in text
    np.testing.assert_allclose(batch(rows, matrix), np.float64(rows) @ np.float64(matrix), atol=2e-6)
    both = jnp.stack([matrix, matrix + 1, -matrix])
    np.testing.assert_allclose(
        jax.vmap(row_matmul)(rows, both), np.float64(rows) @ np.float64(both), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        jax.vmap(row_matmul, in_axes=(None, 0))(x, both), np.float64(x) @ np.float64(both), rtol=1e-5, atol=1e-5
    )


def test_it_is_differentiated_as_the_product_is():
    x, matrix = case("odd")

    def loss(function):
        return lambda x, matrix: jnp.square(function(x, matrix)).sum()

    for mode in (jax.grad, jax.jacfwd):
        ours = mode(loss(row_matmul), argnums=(0, 1))(x, matrix)
        theirs = mode(loss(matmul), argnums=(0, 1))(x, matrix)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    rows = jnp.stack([x, -x])
    ours = jax.vmap(jax.grad(loss(row_matmul)), in_axes=(0, None))(rows, matrix)
    np.testing.assert_allclose(ours, jnp.stack([jax.grad(loss(matmul))(each, matrix) for each in rows]), rtol=1e-5)
