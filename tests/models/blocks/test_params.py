import jax
import numpy as np
import pytest

from models.blocks.params import FEW, ParamInfo, init_params

DECLARATION = {
    "square": ParamInfo((8, 8)),
    "odd": ParamInfo((3, 5, 7)),
    "one": ParamInfo((1, 1)),
    "words": ParamInfo((9, 5), init="embedding"),
    "large": ParamInfo((2, FEW // 2 + 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_leaf_is_drawn_as_its_shape_is(dtype):
    given = init_params(DECLARATION, jax.random.key(3), dtype)
    keys = jax.random.split(jax.random.key(3), len(DECLARATION))
    for key, (name, info) in zip(keys, sorted(DECLARATION.items()), strict=True):
        scale = 0.5 if info.init == "embedding" else info.shape[-2] ** -0.5
        wanted = jax.random.normal(key, info.shape, dtype) * scale
        assert given[name].dtype == wanted.dtype
        np.testing.assert_array_equal(np.asarray(given[name]), np.asarray(wanted))


def test_a_key_that_is_traced_draws_by_the_shape():
    info = DECLARATION["odd"]
    given = jax.jit(lambda key: init_params({"odd": info}, key)["odd"])(jax.random.key(4))
    wanted = jax.jit(lambda key: jax.random.normal(jax.random.split(key, 1)[0], info.shape) * info.shape[-2] ** -0.5)
    np.testing.assert_array_equal(given, wanted(jax.random.key(4)))
