"""Patches against numpy's float64 SVD."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax import patch
from kamera_jax.kv import KV
from tests import oracles

L = 2
# name: T, Fr, Ff, length
SHAPES = {"wide": (16, 24, 24, 16), "tall": (48, 8, 12, 48), "padded": (16, 24, 24, 11), "padded-tall": (48, 8, 12, 40)}
DTYPES = (jnp.float32, jnp.bfloat16)
full = jax.jit(partial(patch.fit, rank=1000))


def fit(conditioned, canonical, length, rank):
    # One compilation a shape; that this equals the fit at that rank has its own test.
    return patch.truncate(full(conditioned, canonical, length), rank)


def split(features, rot, dtype=jnp.float32):
    features = jnp.asarray(features, dtype)
    return KV(features[..., :rot], features[..., rot:])


def pair(shape, dtype=jnp.float32, seed=0, change=0.5, rank=None, junk=0.0):
    """Conditioned and canonical KV whose change decays over its components, as measured ones do."""
    tokens, rot, free, length = SHAPES[shape]
    rng = np.random.default_rng(seed)
    canonical = np.asarray(rng.standard_normal((L, tokens, rot + free)).astype(dtype), np.float64)
    n = min(tokens, rot + free)
    strength = 0.7 ** np.arange(n) * (np.arange(n) < (n if rank is None else rank))
    difference = np.einsum(
        "ltm,m,lmf->ltf", rng.standard_normal((L, tokens, n)), strength, rng.standard_normal((L, n, rot + free))
    )
    difference *= change * np.linalg.norm(canonical) / max(np.linalg.norm(difference), 1e-30)
    conditioned = canonical + difference
    canonical[:, length:] = junk
    conditioned[:, length:] = -junk
    return split(conditioned, rot, dtype), split(canonical, rot, dtype), length


def wide(kv, length):
    return np.asarray(kv.features, np.float64)[:, :length]


def spectrum(conditioned, canonical, length):
    """Squared singular values of the change per layer, f64."""
    return np.linalg.svd(wide(conditioned, length) - wide(canonical, length), compute_uv=False) ** 2


def left_over(conditioned, canonical, factors, length):
    """Energy of what the factors leave of the change, with nothing rounded but the factors: f64[L]."""
    u, v = (np.asarray(x, np.float64) for x in (factors.u, factors.v))
    delta = np.stack([u[i, :r].T @ v[i, :r] for i, r in enumerate(np.asarray(factors.ranks))])[:, :length]
    return ((wide(conditioned, length) - wide(canonical, length) - delta) ** 2).sum((1, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5])
def test_fit_is_optimal(shape, rank):
    conditioned, canonical, length = pair(shape)
    factors = fit(conditioned, canonical, length, rank=rank)
    squares = spectrum(conditioned, canonical, length)
    best = squares[:, rank:].sum(-1)
    total = squares.sum(-1)
    assert (left_over(conditioned, canonical, factors, length) <= 1.01 * best + 1e-6 * total).all()
    assert (np.asarray(factors.ranks) == rank).all() and factors.u.shape == (L, rank, SHAPES[shape][0])


@pytest.mark.parametrize("shape", ["wide", "padded-tall"])
def test_fit_is_optimal_in_bf16_up_to_its_rounding(shape):
    conditioned, canonical, length = pair(shape, jnp.bfloat16)
    factors = fit(conditioned, canonical, length, rank=5)
    assert factors.u.dtype == factors.v.dtype == jnp.bfloat16
    squares = spectrum(conditioned, canonical, length)
    # Two factors, each rounded to within 2^-9 of every value.
    rounding = (2 * 2.0**-9) ** 2 * squares.sum(-1)
    assert (left_over(conditioned, canonical, factors, length) <= 1.01 * squares[:, 5:].sum(-1) + rounding).all()


@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 1e-5), (jnp.bfloat16, 2.0**-8)], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", [0.01, 0.1, 1.0])
def test_full_rank_restores(shape, dtype, bound, change):
    conditioned, canonical, length = pair(shape, dtype, change=change)
    factors = fit(conditioned, canonical, length, rank=1000)
    restored = patch.apply(canonical, factors)
    assert restored.rot.dtype == restored.free.dtype == dtype
    assert oracles.relative(wide(restored, length), wide(conditioned, length)).max() <= bound


def test_apply_equals_float64():
    conditioned, canonical, length = pair("padded")
    factors = fit(conditioned, canonical, length, rank=3)
    factors = factors.replace(ranks=jnp.array([3, 1], jnp.int32))
    u, v = (np.asarray(x, np.float64) for x in (factors.u, factors.v))
    expected = np.asarray(canonical.features, np.float64)
    expected = expected + np.stack([u[0].T @ v[0], u[1, :1].T @ v[1, :1]])
    np.testing.assert_allclose(patch.apply(canonical, factors).features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_is_the_share_left_and_falls_with_the_rank(shape):
    conditioned, canonical, length = pair(shape)
    squares = spectrum(conditioned, canonical, length)
    residuals = []
    for rank in (1, 2, 4, 8, 1000):
        factors = fit(conditioned, canonical, length, rank=rank)
        residuals.append(np.asarray(patch.residual(conditioned, canonical, factors, length)))
        np.testing.assert_allclose(residuals[-1], squares[:, rank:].sum(-1) / squares.sum(-1), rtol=0.01, atol=1e-6)
    assert (np.diff(residuals, axis=0) < 0).all()


@pytest.mark.parametrize("shape", ["padded", "padded-tall"])
@pytest.mark.parametrize("junk", [1e3, np.nan])
def test_padding_does_not_matter(shape, junk):
    clean = pair(shape)
    dirty = pair(shape, junk=junk)
    factors = fit(*clean, rank=8)
    length = clean[-1]
    same = fit(*dirty, rank=8)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(factors), jax.tree.leaves(same), strict=True))
    assert (factors.u[..., length:] == 0).all()
    energy = patch.fit_energy(*dirty, energy=0.9).factors
    assert (energy.ranks == patch.fit_energy(*clean, energy=0.9).factors.ranks).all()
    residual = patch.residual(*dirty[:2], same, length)
    np.testing.assert_allclose(residual, patch.residual(*clean[:2], factors, length), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", ["wide", "padded-tall"])
def test_a_change_of_low_rank_takes_no_more(shape, dtype):
    conditioned, canonical, length = pair(shape, dtype, rank=3)
    factors = fit(conditioned, canonical, length, rank=8)
    assert (np.asarray(factors.ranks) == 3).all()
    assert (factors.u[:, 3:] == 0).all() and (factors.v[:, 3:] == 0).all()
    assert patch.nbytes(factors, length) == L * 3 * (length + sum(SHAPES[shape][1:3])) * dtype.dtype.itemsize


def test_a_layer_without_change_has_rank_zero():
    conditioned, canonical, length = pair("padded")
    conditioned = jax.tree.map(lambda new, old: new.at[0].set(old[0]), conditioned, canonical)
    for factors in (
        fit(conditioned, canonical, length, rank=4),
        patch.fit_energy(conditioned, canonical, length, 0.9).factors,
    ):
        assert factors.ranks[0] == 0 and factors.ranks[1] > 0
        assert patch.residual(conditioned, canonical, factors, length)[0] == 0
        restored = patch.apply(canonical, factors)
        assert (restored.rot[0] == canonical.rot[0]).all() and (restored.free[0] == canonical.free[0]).all()
    nothing = patch.fit_energy(canonical, canonical, length, 1.0).factors
    assert (nothing.ranks == 0).all() and patch.nbytes(nothing, length) == 0


@pytest.mark.parametrize("tokens, features", [(1, 2), (2, 2), (1, 8)])
def test_tiny(tokens, features):
    rng = np.random.default_rng(0)
    conditioned, canonical = (split(rng.standard_normal((1, tokens, features)), 1) for _ in range(2))
    factors = fit(conditioned, canonical, tokens, 4)
    assert int(factors.ranks[0]) <= min(tokens, features)
    np.testing.assert_allclose(patch.apply(canonical, factors).features, conditioned.features, rtol=0, atol=1e-6)


def test_deterministic():
    first, second = (fit(*pair("tall"), rank=8) for _ in range(2))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


@pytest.mark.parametrize("shape", ["padded", "tall"])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_energy_is_kept_with_the_fewest_components(shape, energy):
    conditioned, canonical, length = pair(shape)
    # Layers of unlike spectra, so that their ranks differ.
    low, _, _ = pair(shape, rank=2)
    conditioned = jax.tree.map(lambda rows, flat: rows.at[1].set(flat[1]), conditioned, low)
    factors = patch.fit_energy(conditioned, canonical, length, energy).factors
    squares = spectrum(conditioned, canonical, length)
    kept = np.cumsum(squares, -1) / squares.sum(-1, keepdims=True)
    assert factors.ranks.tolist() == (1 + (kept < energy).sum(-1)).tolist()
    lost = left_over(conditioned, canonical, factors, length) / squares.sum(-1)
    assert (lost <= 1 - energy + 1e-5).all()
    assert factors.u.shape[1] == factors.v.shape[1] >= factors.ranks.max()


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_truncate_equals_the_fit_at_that_rank(rank):
    conditioned, canonical, length = pair("padded")
    cut = patch.truncate(patch.fit(conditioned, canonical, length, 1000), rank)
    fitted = patch.fit(conditioned, canonical, length, rank)
    assert (cut.ranks == fitted.ranks).all()
    assert (cut.u == fitted.u).all() and (cut.v == fitted.v).all()


def test_limit_is_truncate_in_the_same_shape():
    conditioned, canonical, length = pair("padded")
    factors = full(conditioned, canonical, length)
    limited = patch.limit(factors, 3)
    cut = patch.truncate(factors, 3)
    assert limited.u.shape == factors.u.shape and (limited.ranks == cut.ranks).all()
    assert (limited.u[:, :3] == cut.u).all() and (limited.v[:, :3] == cut.v).all()
    assert (limited.u[:, 3:] == 0).all() and (limited.v[:, 3:] == 0).all()
    assert patch.nbytes(limited, length) == patch.nbytes(cut, length)


def test_bytes():
    conditioned, canonical, length = pair("padded", jnp.bfloat16)
    factors = fit(conditioned, canonical, length, rank=3)
    one = L * (length + 48) * 2
    assert patch.nbytes(factors, length) == 3 * one
    assert patch.nbytes(factors.replace(ranks=jnp.array([1, 2], jnp.int32)), length) == 3 * one // 2
    sizes = {"layers": L, "length": length, "features": 48, "itemsize": 2}
    assert [patch.rank_for_bytes(most, **sizes) for most in (one, 3 * one - 1, 3 * one)] == [1, 2, 3]
    with pytest.raises(ValueError, match=f"max_bytes={one - 1} is below one component.*{one} bytes"):
        patch.rank_for_bytes(one - 1, **sizes)


def test_errors():
    conditioned, canonical, length = pair("wide")
    for rank in (0, -1):
        with pytest.raises(ValueError, match=f"rank of at least 1; got {rank}"):
            patch.fit(conditioned, canonical, length, rank)
        with pytest.raises(ValueError, match=f"rank of at least 1; got {rank}"):
            patch.truncate(patch.fit(conditioned, canonical, length, 1), rank)
    for energy in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"got {energy}"):
            patch.fit_energy(conditioned, canonical, length, energy)
    other = dataclasses.replace(canonical, free=canonical.free[..., 1:])
    with pytest.raises(ValueError, match="must agree"):
        patch.fit(conditioned, other, length, 1)
    with pytest.raises(ValueError, match="must agree"):
        patch.fit_energy(conditioned, other, length, 0.5)


def within(conditioned, canonical, length, count, widest=1000, **options):
    return jax.jit(partial(patch.fit_bytes, widest=widest, **options))(conditioned, canonical, length, count)


@pytest.mark.parametrize("shape", ["padded", "tall"])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_budget_goes_to_the_components_of_most_energy(shape, count):
    conditioned, canonical, length = pair(shape)
    # The second layer changes less and in fewer directions.
    weak = pair(shape, rank=4, change=0.1, seed=0)[0]
    conditioned = jax.tree.map(lambda rows, low: rows.at[1].set(low[1]), conditioned, weak)
    squares = spectrum(conditioned, canonical, length)
    fitted = within(conditioned, canonical, length, count, int8=False)
    threshold = np.sort(squares.ravel())[::-1][count - 1]
    assert fitted.factors.ranks.tolist() == (squares >= threshold * 0.999).sum(-1).tolist()
    ranks = np.asarray(fitted.factors.ranks)
    least = np.array([squares[i, rank:].sum() for i, rank in enumerate(ranks)])
    assert (left_over(conditioned, canonical, fitted.factors, length) <= 1.01 * least + 1e-6 * squares.sum(-1)).all()
    np.testing.assert_allclose(fitted.residual, least / squares.sum(-1), rtol=0.01, atol=1e-6)


def test_a_budget_pays_for_no_rounding_and_no_layer_above_the_widest():
    conditioned, canonical, length = pair("padded", rank=3)
    conditioned = jax.tree.map(lambda new, old: new.at[0].set(old[0]), conditioned, canonical)
    assert within(conditioned, canonical, length, 20).factors.ranks.tolist() == [0, 3]
    narrow = within(conditioned, canonical, length, 20, widest=2).factors
    assert narrow.ranks.tolist() == [0, 2] and narrow.u.shape[1] == 2


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", ["padded", "tall"])
def test_int8_loses_a_rounding_of_each_component(shape, dtype):
    conditioned, canonical, length = pair(shape, dtype)
    exact = patch.fit_rank(conditioned, canonical, length, 6, int8=False).factors
    small = patch.fit_rank(conditioned, canonical, length, 6, int8=True).factors
    assert small.u.dtype == small.v.dtype == jnp.int8 and small.scale.dtype == jnp.float32
    assert (small.u[..., length:] == 0).all()
    # Each value within half a step, a 127th of the component's largest; so u v within the two half steps together.
    u, v = (np.asarray(x, np.float64) for x in exact.floats(jnp.float32))
    near = np.asarray(small.u, np.float64)[..., :, None] * np.asarray(small.v, np.float64)[..., None, :]
    near *= np.asarray(small.scale, np.float64)[..., None, None]
    most = [np.abs(x).max(-1)[..., None, None] for x in (u, v)]
    # bf16 rounds the exact ones once more, by 2^-9 each.
    step = 0.5 / 127 + (0 if dtype == jnp.float32 else 2.0**-8)
    bound = step * (most[0] * np.abs(v)[:, :, None, :] + most[1] * np.abs(u)[..., None]) + step**2 * most[0] * most[1]
    assert (np.abs(near - u[..., None] * v[:, :, None, :]) <= 1.01 * bound + 1e-7).all()
    given, wanted = (wide(patch.apply(canonical, factors), length) for factors in (small, exact))
    assert oracles.relative(given, wanted).max() < (0.01 if dtype == jnp.float32 else 0.015)


def test_int8_factors_are_cut_and_counted_as_others_are():
    conditioned, canonical, length = pair("padded")
    factors = patch.fit_rank(conditioned, canonical, length, 6, int8=True).factors
    assert patch.nbytes(factors, length) == L * 6 * (length + 48 + 4)
    cut = patch.truncate(factors, 2)
    limited = patch.limit(factors, 2)
    assert cut.scale.shape == (L, 2) and (limited.scale[:, :2] == cut.scale).all() and (limited.scale[:, 2:] == 0).all()
    for name in ("u", "v"):
        whole = getattr(limited, name)
        part = getattr(cut, name)
        assert (whole[:, :2] == part).all() and (whole[:, 2:] == 0).all()
    one, other = (patch.apply(canonical, each) for each in (cut, limited))
    # Products of two widths round apart in their last bit.
    np.testing.assert_allclose(one.features, other.features, rtol=1e-6, atol=1e-6)
    u, v = (np.asarray(x, np.float64) for x in (cut.u, cut.v))
    expected = np.einsum("lm,lmt,lmf->ltf", np.asarray(cut.scale, np.float64), u, v)
    expected += np.asarray(canonical.features, np.float64)
    np.testing.assert_allclose(one.features, expected, rtol=0, atol=1e-5)
    nothing = patch.fit_rank(canonical, canonical, length, 3, int8=True).factors
    assert (nothing.ranks == 0).all() and np.isfinite(np.asarray(nothing.scale)).all()
