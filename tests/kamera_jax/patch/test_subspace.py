"""The strongest components against numpy's float64 SVD: on spectra of every kind, at every rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax import patch
from kamera_jax.kv import KV
from kamera_jax.patch import subspace

found = jax.jit(subspace.components, static_argnames=("count", "seed"))
N = 160


def spectra(n):
    i = np.arange(1.0, n + 1)
    gaussian = np.linalg.svd(np.random.default_rng(5).standard_normal((n, n)), compute_uv=False) / np.sqrt(n)
    return {
        "flat": np.ones(n),
        "gaussian": gaussian,
        "slow": i**-0.25,
        "power": i**-1.0,
        "steep": 0.8**i,
        "long": 0.98**i,
        "linear": 1 - i / (n + 1),
        "step": np.where(i <= 20, 1.0, 0.05),
        "rank 5": np.where(i <= 5, 1.0 / i, 0.0),
        "nothing": np.zeros(n),
    }


def change(tokens, features, length, dtype=jnp.float32, seed=0):
    """One layer for each spectrum; rows past ``length`` are zero."""
    rng = np.random.default_rng(seed)
    n = min(length, features)
    layers = []
    for strengths in spectra(n).values():
        u, v = (np.linalg.qr(rng.standard_normal((rows, n)))[0] for rows in (length, features))
        layers.append(np.pad((u * strengths) @ v.T, ((0, tokens - length), (0, 0))))
    return jnp.asarray(np.stack(layers), dtype).astype(jnp.float32)


def left(delta, components, ranks):
    """Energy that the first components leave of each layer, f64 [ranks, L], and the least that can be."""
    u, v = (np.asarray(x, np.float64) for x in (components.u, components.v))
    rest = np.array(delta, np.float64)
    lefts = []
    squares = np.linalg.svd(rest, compute_uv=False) ** 2
    for rank in range(ranks):
        rest -= u[:, rank, :, None] * v[:, rank, None, :]
        lefts.append((rest**2).sum((1, 2)))
    return np.stack(lefts), np.stack([squares[:, rank:].sum(-1) for rank in range(1, ranks + 1)])


CASES = {
    "square": (N, N, N, 8),
    "wide": (152, 192, 152, 32),
    "tall": (192, 144, 192, 20),
    "padded": (192, 160, 150, 32),
    "fewer rows than columns of the sketch": (152, 160, 21, 32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_what_is_left_is_the_least_within_a_percent_at_every_rank(name, dtype):
    tokens, features, length, count = CASES[name]
    delta = change(tokens, features, length, dtype)
    components = found(delta, count)
    assert count <= components.u.shape[1] < min(tokens, features)  # or this would say nothing of the iteration
    total = (np.asarray(delta, np.float64) ** 2).sum((1, 2))
    found_left, least = left(delta, components, count)
    assert (found_left <= 1.01 * least + 1e-6 * total).all()
    # What form_patch says is left comes from these, not from another pass.
    energy, rest = (np.asarray(x, np.float64) for x in (components.energy, components.rest))
    np.testing.assert_allclose(energy.sum(-1) + rest, total, rtol=1e-5)
    said = energy[:, count:].sum(-1) + rest
    np.testing.assert_allclose(said, found_left[-1], rtol=1e-3, atol=1e-5 * total.max())


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (1, 8), (128, 128)])
def test_small_changes_are_decomposed_whole(shape):
    delta = jnp.asarray(np.random.default_rng(1).standard_normal((2, *shape)), jnp.float32)
    components = found(delta, 4)
    assert components.u.shape[1] == min(shape) and (components.rest == 0).all()
    total = (np.asarray(delta, np.float64) ** 2).sum((1, 2))
    found_left, least = left(delta, components, min(shape))
    assert (found_left <= 1.0001 * least + 1e-9 * total).all()


def test_the_same_seed_gives_the_same_bits():
    delta = change(N, N, N)
    one = found(delta, 8, 3)
    again = jax.jit(lambda x: subspace.components(x, 8, 3))(delta)
    other = found(delta, 8, 4)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert (one.v != other.v).any()


def test_a_large_chunks_patch():
    rng = np.random.default_rng(7)
    length = 150
    rot = 96
    canonical = rng.standard_normal((3, N, 192))
    delta = np.einsum("ltm,m,lmf->ltf", rng.standard_normal((3, N, 30)), 0.8 ** np.arange(30),
                      rng.standard_normal((3, 30, 192)))  # fmt: skip
    delta[0] = 0.0
    delta[1, :, :] = delta[1] * 0.1
    kvs = [
        KV(*(jnp.asarray(part, jnp.float32) for part in np.split(x, [rot], -1))) for x in (canonical + delta, canonical)
    ]
    delta = delta[:, :length]
    squares = np.linalg.svd(delta, compute_uv=False) ** 2
    fitted = jax.jit(patch.fit_rank, static_argnames="rank")(*kvs, length, 8)
    assert fitted.factors.ranks.tolist() == [0, 8, 8] and (fitted.factors.u[..., length:] == 0).all()
    expected = np.where(squares.sum(-1) > 0, squares[:, 8:].sum(-1) / np.maximum(squares.sum(-1), 1e-30), 0.0)
    np.testing.assert_allclose(fitted.residual, expected, rtol=0.011, atol=1e-5)
    np.testing.assert_allclose(patch.residual(*kvs, fitted.factors, length), expected, rtol=0.011, atol=1e-5)
    # From 0.999 on more components are needed than were looked for at first.
    for energy in (0.5, 0.9, 0.99999):
        kept = np.cumsum(squares[1:], -1) / squares[1:].sum(-1, keepdims=True)
        ranks = patch.fit_energy(*kvs, length, energy).factors.ranks
        assert ranks[0] == 0 and np.abs(np.asarray(ranks[1:]) - (1 + (kept < energy).sum(-1))).max() <= 1
