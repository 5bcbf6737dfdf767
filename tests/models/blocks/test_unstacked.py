"""Layers as arrays of their own: in the memory of the stacked ones, and what is computed with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.kv import Segment
from kamera_jax.rope import RopeSpec, inverse_frequencies
from models import load
from models.blocks import unstacked
from models.blocks.attention import GroupedQuery, Latent
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.moe import Experts
from models.blocks.params import init_params
from models.forward import forward
from tests.models.test_forward_by_blocks import pool_of, state_of

WIDTH = 32
DECODERS = {
    "gqa": (GroupedQuery(heads=4, kv_heads=2, head_dim=8), None),
    "mla, experts": (
        Latent(heads=4, latent_dim=16, nope_dim=8, rope_dim=8, value_dim=8),
        Experts(4, 2, 16, shared_size=16),
    ),
}


def decoder_of(kind):
    attention, experts = DECODERS[kind]
    rope = RopeSpec(tuple(inverse_frequencies(8, 100.0).tolist()), 8)
    dense = 0 if experts is None else 1
    config = DecoderConfig(50, WIDTH, 64, 2, 1e-6, attention, rope, True, experts, dense)
    return config, {"text": init_params(text_declaration(config), jax.random.key(3))}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_layers_one_by_one_give_what_a_scan_of_them_gives(kind, pooled):
    config, params = decoder_of(kind)
    rng = np.random.default_rng(5)
    state = state_of(rng, config, 48, (pool_of(rng, config),) if pooled else ())
    tokens = jnp.asarray(rng.integers(0, 50, 3), jnp.int32)
    segment = Segment({"tokens": tokens}, jnp.asarray([[300.0, 301.0, 302.0]]), jnp.int32(3))
    run = jax.jit(partial(forward, config, logits_at=jnp.arange(3), collect=("queries",)))
    apart = unstacked.unstacked(params, 0)
    assert type(apart["text"]["layers"]) is tuple
    given = run(apart, segment, state)
    expected = run(params, segment, state)
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_layers_lie_in_the_memory_of_the_stack():
    _, params = decoder_of("gqa")
    apart = unstacked.unstacked(params, 0)["text"]["layers"]
    for place, layer in enumerate(apart):
        for own, stack in zip(jax.tree.leaves(layer), jax.tree.leaves(params["text"]["layers"]), strict=True):
            np.testing.assert_array_equal(own, stack[place])
            within = own.unsafe_buffer_pointer() - stack.unsafe_buffer_pointer()
            assert within == place * own.nbytes


def test_they_stay_stacked_where_it_does_not_pay():
    _, params = decoder_of("gqa")
    assert unstacked.unstacked(params, unstacked.LEAST_BYTES) is params
    odd = {"text": {"layers": {"w": jnp.ones((2, 7, 5))}}}  # of 140 bytes each: the second can be no array there
    assert unstacked.unstacked(odd, 0) is odd


def test_what_was_deleted_is_not_read_through_its_views(monkeypatch):
    monkeypatch.setattr(unstacked, "LEAST_BYTES", 0)
    model = frozenset("a")
    _, params = decoder_of("gqa")
    apart = unstacked.views(model, params)
    assert apart is not params and unstacked.views(model, params) is apart
    params["text"]["layers"]["mlp"]["up"]["w"].delete()
    assert unstacked.views(model, params) is params
    _, fresh = decoder_of("gqa")
    other = unstacked.views(model, fresh)  # a model moved, or tuned
    assert other["text"]["embed"]["w"] is fresh["text"]["embed"]["w"] and other is not apart


def test_parameters_that_are_traced_are_taken_as_they_are():
    _, params = decoder_of("gqa")
    seen = []
    jax.make_jaxpr(lambda own: seen.append(unstacked.views(frozenset(), own) is own))(params)
    assert seen == [True]


@pytest.mark.parametrize(("weights", "several"), [(None, False), ("int8", True)])
def test_the_same_tokens_are_generated(monkeypatch, weights, several):
    vlm = load("kamera-tiny-gqa", weights=weights)
    window = kj.append(kj.Window.empty(vlm, 128), kj.encode(vlm, "the star is on the first page"))
    text = "what is on the page?"

    def generated():
        if several:
            return [each.tokens for each in kj.generate_many(vlm, [window] * 2, (text, "star"), max_new_tokens=6)]
        return kj.generate(vlm, window, text, max_new_tokens=6, keep=False).tokens

    expected = generated()
    monkeypatch.setattr(unstacked, "LEAST_BYTES", 0)
    unstacked._VIEWS.clear()
    assert type(vlm.decoding_params(vlm.params)["text"]["layers"]) is tuple
    assert generated() == expected
