"""Gradients of what is differentiable, against float64 and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.patch import apply, fit
from kamera_jax.patch.fitting import fit_rank

LAYERS = 2


def kv_of(features, split):
    return kj.KV(jnp.asarray(features[..., :split], jnp.float32), jnp.asarray(features[..., split:], jnp.float32))


def case(tokens, length, features, unchanged=False):
    """Conditioned and canonical KV whose change has well separated components, and padding that is not zero."""
    rng = np.random.default_rng(tokens + length)
    base = rng.standard_normal((LAYERS, tokens, features))
    change = np.zeros_like(base)
    for layer in range(LAYERS):
        u, _, vt = np.linalg.svd(rng.standard_normal((length, features)), full_matrices=False)
        change[layer, :length] = (u * (4.0 * 0.6 ** np.arange(u.shape[1]))) @ vt
    if unchanged:
        change[0] = 0
    change[:, length:] = rng.standard_normal((LAYERS, tokens - length, features))
    return base + change, base, rng


def loss64(conditioned, canonical, length, rank, weights):
    """The same in float64: canonical KV plus the best change of that rank, weighed."""
    change = (conditioned - canonical)[:, :length]
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    best = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
    return np.sum(weights[:, :length] * np.sin(canonical[:, :length] + best))


def loss32(conditioned, canonical, length, rank, weights):
    patched = apply(canonical, fit(conditioned, canonical, length, rank)).features
    return jnp.sum(weights[:, :length] * jnp.sin(patched[:, :length]))


@pytest.mark.parametrize("unchanged", [False, True])
@pytest.mark.parametrize(
    ("tokens", "length", "features"),
    [(16, 16, 22), (16, 9, 22), (32, 15, 22), (16, 1, 22), (256, 200, 144)],
)
def test_of_a_fit_with_padding(tokens, length, features, unchanged):
    rank = min(3, length)
    conditioned, canonical, rng = case(tokens, length, features, unchanged)
    weights = rng.standard_normal(conditioned.shape)
    split = features // 2
    given = jax.jit(jax.grad(loss32, argnums=(0, 1)), static_argnums=(2, 3))(
        kv_of(conditioned, split), kv_of(canonical, split), length, rank, jnp.asarray(weights, jnp.float32)
    )
    given = [np.asarray(each.features, np.float64) for each in given]
    for each in given:
        assert np.isfinite(each).all()
        assert not each[:, length:].any()
    if unchanged:
        return  # the best patch of no change turns any way: it has no derivative, only no NaN
    for _ in range(3):
        along = [rng.standard_normal(conditioned.shape) for _ in given]
        ends = [
            loss64(conditioned + h * along[0], canonical + h * along[1], length, rank, weights) for h in (1e-6, -1e-6)
        ]
        wanted = (ends[0] - ends[1]) / 2e-6
        size = sum(np.linalg.norm(each) for each in given)
        assert abs(sum(np.sum(a * b) for a, b in zip(given, along, strict=True)) - wanted) <= 1e-3 * size


def test_of_what_a_rank_leaves():
    conditioned, canonical, _ = case(16, 9, 22)

    def left(conditioned):
        return fit_rank(conditioned, kv_of(canonical, 11), 9, 3).residual.sum()

    def left64(conditioned):
        squares = np.linalg.svd((conditioned - canonical)[:, :9], compute_uv=False) ** 2
        return np.sum(squares[:, 3:].sum(-1) / squares.sum(-1))

    given = np.asarray(jax.grad(left)(kv_of(conditioned, 11)).features, np.float64)
    along = np.random.default_rng(0).standard_normal(conditioned.shape)
    wanted = (left64(conditioned + 1e-6 * along) - left64(conditioned - 1e-6 * along)) / 2e-6
    assert abs(np.sum(given * along) - wanted) <= 1e-3 * np.linalg.norm(given)
