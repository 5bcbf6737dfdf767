"""merge_states against one softmax over everything, and where parts hold nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import merge_states
from tests import oracles

Q = 3
N = 2
D = 8


def parts(sizes, seed, dtype=jnp.float32, spread=1.0):
    """Attention over disjoint keys: the parts, and the whole in f64."""
    rng = np.random.default_rng(seed)
    scores = [spread * rng.standard_normal((Q, N, size)) for size in sizes]
    values = [rng.standard_normal((size, D)) for size in sizes]

    def attend(scores, values):
        if not len(values):
            return np.zeros((Q, N, D)), np.full((Q, N), -np.inf)
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        return weights / total @ values, (top + np.log(total))[..., 0]

    outs, lses = zip(*(attend(*part) for part in zip(scores, values, strict=True)), strict=True)
    whole = attend(np.concatenate(scores, -1), np.concatenate(values))
    return [jnp.asarray(x, dtype) for x in outs], [jnp.asarray(x, jnp.float32) for x in lses], whole


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    spread=st.sampled_from([1.0, 60.0]),
)
@settings(max_examples=50)
def test_equals_one_softmax(sizes, seed, spread):
    outs, lses, (out, lse) = parts(sizes, seed, spread=spread)
    # What an empty part holds is not read.
    outs = [jnp.full_like(part, jnp.nan) if size == 0 else part for part, size in zip(outs, sizes, strict=True)]
    for merged in (merge_states(outs, lses), merge_states(jnp.stack(outs), jnp.stack(lses))):
        assert merged[0].dtype == merged[1].dtype == jnp.float32
        assert oracles.relative(merged[0], out).max() <= 2e-5
        if sum(sizes):
            assert np.allclose(merged[1], lse, rtol=2e-6, atol=2e-5)
        else:
            assert np.isneginf(merged[1]).all()


def test_bfloat16_is_rounded_once():
    outs, lses, _ = parts([3, 4, 2], 0, jnp.bfloat16)
    out, _ = merge_states(outs, lses)
    exact, _ = merge_states([part.astype(jnp.float32) for part in outs], lses)
    assert out.dtype == jnp.bfloat16 and (out == exact.astype(jnp.bfloat16)).all()


def test_in_any_order_and_grouping():
    outs, lses, _ = parts([3, 0, 4, 2], 0)
    at_once = merge_states(outs, lses)
    first = merge_states(outs[:2], lses[:2])
    second = merge_states(outs[2:], lses[2:])
    for a, b in zip(at_once, merge_states(*zip(second, first, strict=True)), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0)])
def test_gradients_are_finite_and_those_of_the_softmax(sizes):
    outs, lses, _ = parts(sizes, 0)

    def loss(outs, lses):
        out, lse = merge_states(outs, lses)
        return (out * jnp.arange(D, dtype=jnp.float32)[None, None, :]).sum() + jnp.where(lse > -jnp.inf, lse, 0.0).sum()

    grads = jax.grad(loss, argnums=(0, 1))(outs, lses)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    for out, lse, grad_out, grad_lse, size in zip(outs, lses, *grads, sizes, strict=True):
        if not size:
            assert (grad_out == 0).all() and (grad_lse == 0).all()
            continue
        merged, whole = merge_states(outs, lses)
        share = np.exp(np.asarray(lse - whole))[..., None]
        weights = np.arange(D)
        assert np.allclose(grad_out, share * weights, rtol=1e-5, atol=1e-6)
        by_hand = share[..., 0] * (1 + ((np.asarray(out) - np.asarray(merged)) * weights).sum(-1))
        assert np.allclose(grad_lse, by_hand, rtol=1e-4, atol=1e-5)


def test_vmap_and_jit():
    rows = [parts([2, 0, 3], seed)[:2] for seed in (0, 1)]
    batched = jax.jit(jax.vmap(merge_states))(*jax.tree.map(lambda *x: jnp.stack(x), *rows))
    for i, row in enumerate(rows):
        for a, b in zip(batched, merge_states(*row), strict=True):
            assert np.allclose(a[i], b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "outs, lses, message",
    [
        ([], [], "at least one; got 0 and 0"),
        ([jnp.zeros((2, 4))], [], "got 1 and 0"),
        ([jnp.zeros((2, 4))], [jnp.zeros((2, 1))], "every part needs"),
        ([jnp.zeros((2, 4))], [jnp.zeros(2, jnp.bfloat16)], "every part needs"),
        ([jnp.zeros((2, 4)), jnp.zeros((2, 5))], [jnp.zeros(2)] * 2, "every part needs"),
        ([jnp.zeros((2, 4)), jnp.zeros((2, 4), jnp.bfloat16)], [jnp.zeros(2)] * 2, "every part needs"),
    ],
)
def test_what_does_not_fit_is_refused(outs, lses, message):
    with pytest.raises(ValueError, match=message):
        merge_states(outs, lses)
