import jax.numpy as jnp
import numpy as np
import pytest

from eval.run import metrics


def test_kl_against_float64():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 5, 3, 40))
    a, b = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p, q))
    expected = (a * np.log(a / b)).sum(-1)
    measured = metrics.kl(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
    assert np.abs(np.asarray(measured) - expected).max() <= 2e-6


def test_eta_is_the_share_of_the_baselines_kl_that_is_closed():
    rng = np.random.default_rng(1)
    reference, method, baseline = jnp.asarray(rng.normal(size=(3, 6, 11)), jnp.float32)
    assert metrics.eta(reference, reference, baseline) == 1.0
    assert metrics.eta(reference, baseline, baseline) == 0.0
    closer = 0.5 * reference + 0.5 * baseline
    assert 0 < metrics.eta(reference, closer, baseline) < 1
    expected = 1 - float(metrics.kl(reference, method).mean()) / float(metrics.kl(reference, baseline).mean())
    assert abs(metrics.eta(reference, method, baseline) - expected) <= 1e-6


def test_accuracy():
    logits = jnp.asarray([[0.0, 1.0], [3.0, 2.0], [0.0, 5.0]])
    assert metrics.accuracy(logits, np.array([1, 1, 1])) == 2 / 3


def test_the_error_of_eta_is_that_of_the_ratio_of_cluster_sums():
    """Against the jackknife over clusters, which it is the first-order form of, and on cases known by hand."""
    rng = np.random.default_rng(5)
    clusters = [str(c) for c in range(200) for _ in range(3)]
    blind = rng.gamma(2.0, size=600) * np.repeat(rng.gamma(2.0, size=200), 3)
    ours = 0.3 * blind * rng.uniform(0.5, 1.5, 600)
    eta, error = metrics.eta_and_error(ours.tolist(), blind.tolist(), clusters)
    assert abs(eta - (1 - ours.sum() / blind.sum())) <= 1e-12
    a, b = (each.reshape(200, 3).sum(1) for each in (ours, blind))
    left_out = 1 - (a.sum() - a) / (b.sum() - b)
    jackknife = np.sqrt(199 / 200 * np.square(left_out - left_out.mean()).sum())
    assert abs(error - jackknife) <= 0.02 * jackknife
    assert metrics.eta_and_error([0.5, 1.0], [1.0, 2.0], ["a", "b"]) == (0.5, 0.0)
    (one, none) = metrics.eta_and_error([0.5, 1.0], [1.0, 1.0], ["a", "a"])
    assert one == 0.25 and np.isnan(none)
    assert all(np.isnan(each) for each in metrics.eta_and_error([0.0], [0.0], ["a"]))
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        metrics.eta_and_error([0.0], [0.0, 1.0], ["a"])
