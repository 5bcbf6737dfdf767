import jax.numpy as jnp
import numpy as np

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
