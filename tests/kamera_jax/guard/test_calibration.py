"""From changes to nats: isotonic, conservative, and the same after a round trip."""

import math

import numpy as np
import pytest
from scipy import stats

import kamera_jax as kj
from eval.run.metrics import binomial_tail, clopper_pearson
from kamera_jax.guard.calibration import Calibration, Drift, calibrate
from models import load

SPEC = kj.SketchSpec((1, 3), (1.0, 0.5), 8)


def calibration(changes, kls):
    return Calibration("model", SPEC, tuple(map(float, changes)), tuple(map(float, kls)))


def sample(seed, count=400):
    """Changes, and KL that tends to rise with them."""
    rng = np.random.default_rng(seed)
    changes = rng.uniform(0, 2, count)
    return changes, np.where(changes + 0.1 * rng.standard_normal(count) > 1.3, rng.uniform(0.1, 3, count), 1e-4)


def test_the_estimate_is_isotonic_regression():
    changes, kls = sample(0, 40)
    given = calibration(changes, kls)
    order = np.argsort(changes)
    y = kls[order]
    # The minimax form: the largest, over what comes no later, of the smallest mean up to what comes no earlier.
    expected = [max(min(y[i : k + 1].mean() for k in range(j, len(y))) for i in range(j + 1)) for j in range(len(y))]
    assert [given.estimate(change) for change in changes[order]] == pytest.approx(expected)
    assert given.estimate(changes.max() + 1e-3) == math.inf
    assert given.estimate(0.0) == pytest.approx(expected[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_threshold_is_the_largest_that_is_safe(seed):
    changes, kls = sample(seed)
    limit = calibration(changes, kls).threshold(0.05, failures=0.02)
    assert limit > 0

    def safe(at):
        accepted = changes <= at
        return ((kls[accepted] > 0.05).sum() + 1) / (accepted.sum() + 1) <= 0.02

    assert safe(limit)
    assert not any(safe(change) for change in changes[changes > limit])


def test_too_few_drifts_accept_nothing():
    assert calibration(range(98), [0.0] * 98).threshold(0.05) < 0
    assert calibration(range(99), [0.0] * 99).threshold(0.05) == 98
    assert calibration(range(99), [0.0] * 98 + [1.0]).threshold(0.05) < 0
    assert calibration([1.0] * 500, [0.0] * 499 + [1.0]).threshold(0.05) == 1.0
    assert calibration([1.0] * 500, [1.0] + [0.0] * 495 + [1.0] * 4).threshold(0.05) < 0, "accepted together"


@pytest.mark.parametrize("successes, trials, probability", [(0, 1, 0.3), (3, 40, 0.05), (17, 300, 0.06), (5, 5, 0.2)])
def test_binomial_tail(successes, trials, probability):
    expected = stats.binom.cdf(successes, trials, probability)
    assert binomial_tail(successes, trials, probability) == pytest.approx(expected)


@pytest.mark.parametrize("successes, trials", [(0, 20), (20, 20), (7, 20), (995, 1000), (1, 1)])
def test_clopper_pearson(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_json_and_back():
    given = calibration(*sample(4, 10))
    assert Calibration.from_json(given.to_json()) == given
    every = Calibration("model", kj.SketchSpec((0,)), (1.0,), (2.0,))
    assert Calibration.from_json(every.to_json()) == every


def test_errors():
    with pytest.raises(ValueError, match="one KL for each change"):
        calibration([1.0], [])
    with pytest.raises(ValueError, match="one KL for each change"):
        calibration([], [])
    for changes, kls in (([-1.0], [0.0]), ([math.nan], [0.0]), ([0.0], [math.inf])):
        with pytest.raises(ValueError, match="finite"):
            calibration(changes, kls)
    with pytest.raises(ValueError, match="fields model, sketch, changes, kls"):
        Calibration.from_json('{"model": "m"}')
    with pytest.raises(ValueError, match="at least one trial"):
        clopper_pearson(0, 0)


@pytest.fixture(scope="module")
def gqa():
    return load("kamera-tiny-gqa")


def test_calibrate_measures_what_staleness_and_verify_say(gqa):
    first, second, third = (
        kj.encode(gqa, text) for text in ("a red star.", "a blue moon. a red key.", "a green star.")
    )
    patch = kj.form_patch(gqa, second, antecedents=[first], rank=8, sketch=SPEC)
    probes = ["what colour is the moon?"]
    empty = kj.Window.empty(gqa, 128)
    drifts = [Drift(kj.append(empty, chunk), second, patch, probes) for chunk in (first, third)]
    found = calibrate(gqa, drifts)
    assert (found.model, found.sketch) == (gqa.fingerprint, SPEC)
    assert found.changes == tuple(kj.staleness(drift.window, second, patch).change for drift in drifts)
    assert found.changes[0] < found.changes[1]
    reports = [kj.verify(gqa, kj.append(drift.window, second, patch), probes).kl for drift in drifts]
    assert found.kls == pytest.approx([max(kl, 0.0) for kl in reports])

    with pytest.raises(ValueError, match="no drifts"):
        calibrate(gqa, [])
    other = kj.form_patch(gqa, second, antecedents=[first], rank=8, sketch=kj.SketchSpec((0,)))
    with pytest.raises(ValueError, match="different sketches"):
        calibrate(gqa, [drifts[0], Drift(drifts[0].window, second, other, probes)])
