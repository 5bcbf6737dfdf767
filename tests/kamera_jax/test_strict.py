"""The story of a window under each of JAX's strict modes: nothing is refused, and no bit and no key is another.

Strict promotion of dtypes and ranks holds in every test; see `tests.conftest`. Experts and latents in 64-bit mode are
compared in `test_citizen_x64`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from tests.kamera_jax.story import same, story
from tests.kamera_jax.toy import Toy

MODES = ("materialise", "in_place")
STRICT = {
    "x64": lambda: jax.enable_x64(True),
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "nans": lambda: jax.debug_nans(True),
    "leaks": lambda: jax.checking_leaks(),
}


def whole_story(vlm, mode):
    """The story of windows, and what a session comes to: its answers, its window, what was evicted."""
    arrays, keys, tokens = story(vlm, mode)
    session = kj.Session(vlm, 160, mode=mode, rank=4)
    known = [session.add(text) for text in ("the sky is blue", "a star stands on the page", "circle")]
    asked = session.ask("where?", max_new_tokens=2)
    session.add("another page that takes the place of the first")
    session.recall(known[0])
    session.replace(known[0], "the sky is red")
    left = session.ask("what colour?", max_new_tokens=2, keep=False)
    arrays |= {
        f"session{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(session.window)
    }
    return arrays, [*keys, *session.keys, *session.evicted], (*tokens, asked.tokens, left.tokens)


@pytest.fixture(scope="module", params=MODES)
def plain(request):
    assert jax.config.values["jax_numpy_dtype_promotion"] == "strict"
    assert jax.config.values["jax_numpy_rank_promotion"] == "raise"
    return request.param, whole_story(Toy(), request.param)


@pytest.mark.parametrize("strict", STRICT)
def test_a_backbone(plain, strict):
    mode, wanted = plain
    with STRICT[strict]():
        given = whole_story(Toy(), mode)
    same(given, wanted)


@pytest.fixture(scope="module", params=MODES)
def plain_embedded(request):
    return request.param, story(load("kamera-tiny-gqa", dtype="float32"), request.param)


@pytest.mark.parametrize("strict", ["x64", "nans", "leaks"])
def test_an_embedded_model(plain_embedded, strict):
    mode, wanted = plain_embedded
    with STRICT[strict]():
        given = story(load("kamera-tiny-gqa", dtype="float32"), mode)
    same(given, wanted)


def test_a_nan_is_found_where_there_is_one():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.jit(jnp.log)(jnp.float32(-1))
    with jax.checking_leaks(), pytest.raises(Exception, match="Leaked"):
        leaked = []
        jax.jit(lambda x: leaked.append(x) or x)(1.0)
