"""Products with weights in int8, as TPUs run them and to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compiled
from models.blocks.int8 import Int8Weight, floats, product, rows, stored, tied_logits

WIDTH = 2048
INNER = 4096


def weight(rng, shape, path="text/layers/mlp/up/w"):
    return stored(path, jnp.asarray(rng.standard_normal(shape), jnp.float32))


@pytest.mark.parametrize("target", compiled.targets("v5e"))
def test_a_tpu_reads_the_codes_and_no_dequantised_copy(target):
    """The product of a few tokens, which is what decoding waits for."""
    x = jax.ShapeDtypeStruct((16, WIDTH), jnp.bfloat16)
    codes = jax.ShapeDtypeStruct((WIDTH, INNER), jnp.int8)
    scale = jax.ShapeDtypeStruct((1, INNER), jnp.float32)

    def multiplied(x, codes, scale):
        return product(x, Int8Weight(codes, scale, jnp.bfloat16)).astype(x.dtype)

    program = compiled.compile_for(target, multiplied, x, codes, scale)
    whole = WIDTH * INNER + 2 * 16 * (WIDTH + INNER) + 4 * INNER
    assert compiled.hbm_bytes(program) <= 1.1 * whole


def test_a_product_is_that_of_the_dequantised_weight():
    rng = np.random.default_rng(0)
    small = weight(rng, (2, 24, 40))
    x = jnp.asarray(rng.standard_normal((3, 5, 24)), jnp.float32)
    layer = jax.tree.map(lambda leaf: leaf[1], small)
    wanted = np.asarray(x, np.float64) @ np.asarray(floats(layer), np.float64)
    np.testing.assert_allclose(product(x, layer), wanted, rtol=0, atol=1e-5)


def test_no_value_is_off_by_more_than_half_a_step_of_its_channel():
    rng = np.random.default_rng(1)
    whole = jnp.asarray(rng.standard_normal((2, 24, 40)) * np.exp(rng.standard_normal((2, 1, 40))), jnp.float32)
    small = stored("text/layers/attn/q/w", whole)
    step = np.abs(np.asarray(whole)).max(1, keepdims=True) / 127
    assert small.scale.shape == (2, 1, 40) and small.shape == whole.shape
    assert (np.abs(np.asarray(floats(small)) - np.asarray(whole)) <= 0.5 * step * (1 + 1e-5)).all()


def test_words_have_their_own_scale_as_rows_and_as_logits():
    rng = np.random.default_rng(2)
    words = weight(rng, (50, 16), "text/embed/w")
    assert words.scale.shape == (50, 1)
    index = jnp.asarray([3, 49, 0])
    np.testing.assert_array_equal(rows(words, index), floats(words)[index])
    hidden = jnp.asarray(rng.standard_normal((4, 16)), jnp.float32)
    wanted = np.asarray(hidden, np.float64) @ np.asarray(floats(words), np.float64).T
    np.testing.assert_allclose(tied_logits(words, hidden), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "path, shape",
    [
        ("text/norm", (16,)),
        ("text/layers/attn_norm", (3, 16)),
        ("text/layers/attn/q/b", (3, 16)),
        ("text/moe_layers/mlp/router/w", (3, 16, 8)),
        ("vision/layers/mlp/up/w", (3, 16, 8)),
        ("projector/w", (16, 8)),
    ],
)
def test_what_is_no_matrix_of_the_language_model_stays(path, shape):
    leaf = jnp.ones(shape)
    assert stored(path, leaf) is leaf


def test_a_channel_of_zeros_stays_zero():
    small = stored("text/head/w", jnp.zeros((8, 4)))
    assert not np.asarray(floats(small)).any() and np.isfinite(np.asarray(small.scale)).all()
