"""Multi-head latent attention: both forms against each other and against a float64 restatement."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax import rope
from kamera_jax.kv import KV
from models.blocks.attention import Latent, grouped_attention
from models.blocks.params import is_info
from tests import oracles

WIDTH = 20
CASES = {
    "plain": Latent(heads=4, latent_dim=12, nope_dim=8, rope_dim=4, value_dim=6),
    "query latent": Latent(heads=3, latent_dim=10, nope_dim=6, rope_dim=8, value_dim=16, query_latent_dim=7),
    "YaRN": Latent(heads=2, latent_dim=24, nope_dim=4, rope_dim=4, value_dim=4, score_factor=1.37),
}
SHAPES = [(9, 0, 0), (1, 13, 4), (5, 32, 0)]
"""Present and past tokens, and how many of those are not seen."""


def case(name, tokens, slots, dtype=jnp.float32):
    """Attention, parameters, residual stream, absolute positions and what came before."""
    attention = CASES[name]
    rng = np.random.default_rng(tokens * 100 + slots)

    def leaf(info):
        return jnp.asarray(rng.normal(info.init == "ones", info.shape[0] ** -0.5, info.shape), dtype)

    layer = jax.tree.map(leaf, attention.declaration(WIDTH), is_leaf=is_info)
    h = jnp.asarray(rng.normal(size=(tokens, WIDTH)), dtype)
    positions = jnp.asarray(slots + 5 + np.arange(tokens), jnp.float32)[None]
    past = None
    if slots:
        widths = (attention.rope_dim, attention.latent_dim)
        past = KV(*(jnp.asarray(rng.normal(size=(slots, width)), dtype) for width in widths))
    return attention, layer, h, positions, past


def spec_of(attention):
    return rope.RopeSpec(tuple(rope.inverse_frequencies(attention.rope_dim, 100.0).tolist()), attention.rope_dim)


@partial(jax.jit, static_argnames=("attention", "absorb", "hidden"))
def run(attention, layer, h, positions, past, *, absorb, hidden=0):
    """Causal attention; the first ``hidden`` of the past are not seen."""
    slots = 0 if past is None else past.rot.shape[0]
    tokens = h.shape[0]
    mask = np.concatenate([np.ones((tokens, slots), bool), np.tri(tokens, dtype=bool)], axis=1)
    mask[:, :hidden] = False

    def attend(q, parts):
        k, v = (jnp.concatenate(each) for each in zip(*parts, strict=True))
        return grouped_attention(q, k, v, jnp.asarray(mask), attention.scale)[0], None

    def rotated(x):
        return rope.rotate(x, positions, spec_of(attention))

    out, kv, _ = attention(layer, h, rotated, () if past is None else (past,), attend, absorb=absorb)
    return out, kv


rotate = jax.jit(rope.rotate, static_argnames="spec")


def in_f64(attention, layer, h, positions, past, hidden=0):
    """The definition: every head's keys and values written out, one query at a time."""
    layer = jax.tree.map(np.float64, layer)
    h = np.float64(h)
    positions = np.float64(positions)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * weight

    def rotate(x):
        return oracles.rotate_by(spec_of(attention), x, positions)

    q = h @ layer["q"]["w"] if "q" in layer else norm(h @ layer["q_a"]["w"], layer["q_norm"]) @ layer["q_b"]["w"]
    q = q.reshape(len(h), attention.heads, -1)
    q_nope = q[..., : attention.nope_dim]
    q_rope = rotate(q[..., attention.nope_dim :])
    down = h @ layer["kv_a"]["w"]
    latent = norm(down[:, : attention.latent_dim], layer["kv_norm"])
    k_pe = down[:, attention.latent_dim :]
    own = (k_pe, latent)
    k_pe = rotate(k_pe[:, None])[:, 0]
    slots = 0 if past is None else len(past.rot)
    if past is not None:
        k_pe = np.concatenate([past.rot, k_pe])
        latent = np.concatenate([past.free, latent])
    up = layer["kv_b"]["w"].reshape(attention.latent_dim, attention.heads, -1)
    out = np.zeros((len(h), attention.heads, attention.value_dim))
    for t, head in np.ndindex(*out.shape[:2]):
        seen = slice(hidden, slots + t + 1)
        key, value = np.split(latent[seen] @ up[:, head], [attention.nope_dim], axis=-1)
        scores = (key @ q_nope[t, head] + k_pe[seen] @ q_rope[t, head]) * attention.score_factor
        scores /= np.sqrt(attention.nope_dim + attention.rope_dim)
        probabilities = np.exp(scores - scores.max())
        out[t, head] = probabilities @ value / probabilities.sum()
    return out.reshape(len(h), -1) @ layer["o"]["w"], own


def error(given, expected):
    given = np.float64(given)
    expected = np.float64(expected)
    assert given.shape == expected.shape
    return np.abs(given - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens, slots, hidden", SHAPES)
def test_both_forms_are_the_definition(name, tokens, slots, hidden):
    given = case(name, tokens, slots)
    exact, own = in_f64(*given, hidden=hidden)
    outputs = []
    for absorb in (True, False):
        out, kv = run(*given, absorb=absorb, hidden=hidden)
        assert error(out, exact) <= 1e-5
        assert error(kv.rot, own[0]) <= 1e-5 and error(kv.free, own[1]) <= 1e-5
        outputs.append(np.asarray(out))
    assert error(*outputs) <= 1e-5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens, slots, hidden", SHAPES)
def test_left_open_the_form_is_the_cheaper_one(name, tokens, slots, hidden):
    given = case(name, tokens, slots)
    programs = {form: str(run.trace(*given, absorb=form, hidden=hidden).jaxpr) for form in (True, False, None)}
    assert programs[True] != programs[False]
    assert programs[None] == programs[given[0].absorbs(tokens, slots)]


@pytest.mark.parametrize("name", CASES)
def test_bf16_forms_round_alike(name):
    """Neither form is farther from f64 than rounding what enters the scores and the output: a few ulps of bf16."""
    given = case(name, 5, 32, jnp.bfloat16)
    exact, _ = in_f64(*given)
    errors = {}
    for absorb in (True, False):
        out, kv = run(*given, absorb=absorb)
        assert out.dtype == kv.rot.dtype == kv.free.dtype == jnp.bfloat16
        errors[absorb] = np.linalg.norm(np.float64(out) - exact) / np.linalg.norm(exact)
    assert max(errors.values()) <= 4 * 2**-8, errors


@pytest.mark.parametrize("name", CASES)
def test_what_is_cached_stands_for_itself(name):
    """Five tokens after three give what eight give at once, in either form."""
    attention, layer, h, positions, _ = case(name, 8, 0)
    whole, kv = run(attention, layer, h, positions, None, absorb=False)
    past = KV(rotate(kv.rot[:3, None], positions[:, :3], spec_of(attention))[:, 0], kv.free[:3])
    for absorb in (True, False):
        rest, _ = run(attention, layer, h[3:], positions[:, 3:], past, absorb=absorb)
        assert error(rest, np.asarray(whole)[3:]) <= 1e-5


def flops(attention, tokens, slots, absorb):
    """Multiply-adds of T tokens' attention over S past ones that depend on the form; per head."""
    pairs = tokens * (slots + tokens)
    expanded = attention.nope_dim + attention.value_dim
    if absorb:  # queries into the latent space, scores and sums over it, and outputs back
        return tokens * attention.latent_dim * expanded + pairs * (2 * attention.latent_dim + attention.rope_dim)
    return (slots + tokens) * attention.latent_dim * expanded + pairs * (expanded + attention.rope_dim)


@pytest.mark.parametrize("name", [*CASES, "Kimi-VL"])
def test_the_form_with_fewer_flops_is_chosen(name):
    kimi = Latent(heads=16, latent_dim=512, nope_dim=128, rope_dim=64, value_dim=128)
    attention = kimi if name == "Kimi-VL" else CASES[name]
    for tokens in (1, 2, 16, 64, 128, 170, 171, 512):
        for slots in (0, 1, 16, 256, 4096):
            cheaper = flops(attention, tokens, slots, True) < flops(attention, tokens, slots, False)
            assert attention.absorbs(tokens, slots) == cheaper


def test_decoding_absorbs_and_prefill_does_not():
    kimi = Latent(heads=16, latent_dim=512, nope_dim=128, rope_dim=64, value_dim=128)
    assert kimi.absorbs(1, 4096) and kimi.absorbs(16, 4096)
    assert not kimi.absorbs(1024, 0) and not kimi.absorbs(512, 4096) and not kimi.absorbs(1, 0)


def test_what_is_cached_is_counted():
    attention = CASES["query latent"]
    assert attention.kv_widths == (8, 10, 1)
    assert attention.scale == pytest.approx((6 + 8) ** -0.5)
    assert CASES["YaRN"].scale == pytest.approx(8**-0.5 * 1.37)
