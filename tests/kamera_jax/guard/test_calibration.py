"""From changes to nats: the prior with few drifts, the drifts with many, conservative, the same after a round trip."""

import math

import numpy as np
import pytest
from scipy import stats

import kamera_jax as kj
from eval.run.metrics import binomial_tail, clopper_pearson
from kamera_jax.guard import prior
from kamera_jax.guard.calibration import SCATTER, WEIGHT, Calibration, Drift, Fit, _regressors, calibrate
from models import load

SPEC = kj.SketchSpec((1, 3), (1.0, 0.5), 8)


def calibration(changes, kls, lost=0.0, added=0.0, moved=0.0, blind=0.1):
    every = [np.broadcast_to(each, len(kls)) for each in (changes, kls, lost, added, moved, blind)]
    return Calibration("model", SPEC, *(tuple(map(float, each)) for each in every))


def sample(seed, count=400):
    """Changes, and KL that tends to rise with them."""
    rng = np.random.default_rng(seed)
    changes = rng.uniform(0, 2, count)
    return changes, np.where(changes + 0.1 * rng.standard_normal(count) > 1.3, rng.uniform(0.1, 3, count), 1e-4)


def drawn(seed, count):
    """Drifts of a model that is like the prior, but for a cost that also rises with the change, log-normal about it."""
    rng = np.random.default_rng(seed)
    lost, added, moved = rng.uniform(0, 0.9, (3, count))
    changes = rng.uniform(0.05, 1.5, count)
    mean = 0.15 * prior.expected_of(lost, added, moved) * (changes / 0.3) ** 0.8
    kls = mean * np.exp(0.7 * rng.standard_normal(count) - 0.7**2 / 2)
    return calibration(changes, kls, lost, added, moved), mean


def restated(given):
    """The regression as least squares with the prior's observations as rows of their own."""
    expected = prior.expected_of(*(np.array(getattr(given, name)) for name in ("lost", "added", "moved")))
    rows = np.stack([np.ones(len(expected)), np.log(np.array(given.changes) / 0.3), np.log(expected / 0.01)], 1)
    off = np.log(given.kls) - np.log(expected) + SCATTER**2 / 2
    slopes, *_ = np.linalg.lstsq(np.vstack([np.sqrt(WEIGHT) * np.eye(3), rows]), [0, 0, 0, *off], rcond=None)
    left = off - rows @ slopes
    smear = (WEIGHT * np.exp(SCATTER**2 / 2) + np.exp(left).sum()) / (WEIGHT + len(off))
    squares = WEIGHT * SCATTER**2 + left @ left + WEIGHT * slopes @ slopes
    variance = squares / (WEIGHT + len(off))
    return rows, expected * np.exp(rows @ slopes - SCATTER**2 / 2) * smear, slopes, variance


@pytest.mark.parametrize("count", [1, 10, 100, 1000])
def test_the_estimate_is_least_squares_with_the_prior_as_observations(count):
    given, _ = drawn(count, count)
    _, expected, *_ = restated(given)
    rows = (given.changes, given.lost, given.added, given.moved)
    assert given.estimates(*rows) == pytest.approx(expected, rel=1e-9)
    assert given.estimate(*(row[0] for row in rows)) == pytest.approx(expected[0], rel=1e-9)


def test_the_risk_is_that_of_the_posterior():
    """Drawn: a variance, slopes given it, and a next observation given both."""
    given, _ = drawn(5, 20)
    rows, _, slopes, variance = restated(given)
    rng = np.random.default_rng(0)
    degrees = WEIGHT + 20
    variances = degrees * variance / rng.chisquare(degrees, 50_000)
    covariance = np.linalg.inv(WEIGHT * np.eye(3) + rows.T @ rows)
    noise = rng.multivariate_normal(np.zeros(3), covariance, 50_000) * np.sqrt(variances)[:, None]
    some = _regressors(*(getattr(given, name)[:4] for name in ("changes", "lost", "added", "moved")))
    x = rows[:4]
    log_kl = (some[:, 2] - SCATTER**2 / 2)[:, None] + x @ (slopes + noise).T
    log_kl += np.sqrt(variances) * rng.standard_normal(log_kl.shape)
    fit = Fit.of(_regressors(given.changes, given.lost, given.added, given.moved), np.array(given.kls))
    assert fit.risk(some, 0.03) == pytest.approx((np.exp(log_kl) > 0.03).mean(1), abs=8e-3)


def test_few_drifts_leave_the_estimate_near_the_prior_and_many_replace_it():
    at = (0.9, 0.3, 0.2, 0.1)
    expected = float(prior.expected_of(*at[1:]))
    truth = 0.15 * expected * (at[0] / 0.3) ** 0.8
    tenfold = [calibration([0.3] * n, [10 * expected] * n, *at[1:]).estimate(0.3, *at[1:]) for n in (1, 10, 1000)]
    assert expected < tenfold[0] < 3 * expected < tenfold[1] < tenfold[2] and tenfold[2] == pytest.approx(
        10 * expected, rel=0.05
    )
    assert drawn(0, 1000)[0].estimate(*at) == pytest.approx(truth, rel=0.1)
    assert all(abs(math.log(drawn(seed, 10)[0].estimate(*at) / truth)) < 1 for seed in range(5))


@pytest.mark.parametrize("count, least", [(100, 0.03), (290, 0.15), (1000, 0.3)])
def test_of_what_is_accepted_nearly_all_is_within_the_budget(count, least):
    new, _ = drawn(99, 4000)
    harmless = np.array(new.kls) <= 0.05
    right = []
    safe = []
    for seed in range(6):
        given, _ = drawn(seed, count)
        limit = given.threshold(0.05)
        accepted = given.estimates(new.changes, new.lost, new.added, new.moved) <= limit
        right.append(accepted[harmless].mean())
        safe.append(harmless[accepted].mean() if accepted.any() else 1.0)
    assert np.mean(safe) >= 0.985 and min(safe) >= 0.965
    assert np.mean(right) >= least


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_threshold_is_the_largest_that_is_safe(seed):
    changes, kls = sample(seed)
    given = calibration(changes, kls)
    limit = given.threshold(0.05, failures=0.02)
    estimates = given.estimates(changes, *np.zeros((3, len(changes))))
    assert limit in estimates and (np.argsort(estimates) == np.argsort(changes)).all()

    def safe(at):
        accepted = estimates <= at
        return ((kls[accepted] > 0.05).sum() + 1) / (accepted.sum() + 1) <= 0.02

    assert safe(limit)
    assert not any(safe(estimate) for estimate in estimates[estimates > limit])


def test_what_was_counted_decides_where_there_is_enough_of_it():
    """Cheap drifts of which one in twenty is harmful, whatever they look like: no regression sees it."""
    changes = np.linspace(0.01, 2, 400)
    kls = np.where(np.arange(400) % 20 == 10, 3.0, 1e-4)
    assert calibration(changes, kls).threshold(0.05) < 0
    assert calibration(changes, np.full(400, 1e-4)).threshold(0.05) > 0
    one = np.full(400, 1e-4)
    one[-1] = 3.0
    given = calibration(changes, one)
    largest = given.estimates(changes, *np.zeros((3, 400))).max()
    assert given.threshold(0.05) == pytest.approx(largest), "2 of 401 are few enough"
    together = calibration(np.full(400, 1.0), [*[1e-4] * 395, *[3.0] * 5])
    assert together.threshold(0.05) < 0, "accepted together"


def test_a_few_harmless_drifts_let_like_ones_be_accepted():
    """No 99 of them are needed where all cost far less than the budget, and none of them is beyond what was seen."""
    given = calibration([0.2, 0.3] * 10, [0.0004, 0.0006] * 10, lost=0.2)
    limit = given.threshold(0.05)
    assert 0 < limit < 0.05 and limit == pytest.approx(given.estimate(0.3, 0.2))
    assert given.estimate(1.5, 1.0, 1.0) > limit
    assert given.threshold(0.0005) < 0
    assert calibration([0.2, 0.3] * 10, [0.4, 0.6] * 10, lost=0.2).threshold(0.05) < 0


def test_chunks_without_patches():
    given = calibration([0.3] * 100, [0.01] * 100, blind=0.01)
    assert given.bare_estimate == pytest.approx((100 * 0.01 + WEIGHT * prior.BARE) / (100 + WEIGHT))
    assert given.accepts_bare(0.05) and not given.accepts_bare(0.03) and not given.accepts_bare(0.005)
    assert not calibration([0.3] * 98, [0.01] * 98, blind=0.001).accepts_bare(0.05)
    assert not calibration([0.3] * 100, [0.01] * 100, blind=[0.06] + [0.001] * 99).accepts_bare(0.05)


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
    every = Calibration("model", kj.SketchSpec((0,)), (1.0,), (2.0,), (0.5,), (0.25,), (0.0,), (3.0,))
    assert Calibration.from_json(every.to_json()) == every


def test_errors():
    with pytest.raises(ValueError, match="one value of each kind for each drift.*1 changes, 0 kls"):
        Calibration("model", SPEC, (1.0,), (), (0.0,), (0.0,), (0.0,), (0.0,))
    with pytest.raises(ValueError, match="at least one"):
        calibration([], [])
    with pytest.raises(ValueError, match="from 0 to 1"):
        calibration([1.0], [0.1], lost=1.5)
    with pytest.raises(ValueError, match="not finite"):
        calibration([1.0], [0.1], blind=math.nan)
    for changes, kls in (([-1.0], [0.0]), ([math.nan], [0.0]), ([0.0], [math.inf])):
        with pytest.raises(ValueError, match="finite"):
            calibration(changes, kls)
    with pytest.raises(ValueError, match="fields model, sketch, changes, kls, lost, added, moved, blind; got"):
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
    bare = [kj.verify(gqa, kj.append(drift.window, second), probes).kl for drift in drifts]
    assert found.blind == pytest.approx(bare)
    assert (found.lost, found.added, found.moved) == ((0.0, 1.0), (0.0, 1.0), (0.0, 0.0))

    with pytest.raises(ValueError, match="no drifts"):
        calibrate(gqa, [])
    other = kj.form_patch(gqa, second, antecedents=[first], rank=8, sketch=kj.SketchSpec((0,)))
    with pytest.raises(ValueError, match="different sketches"):
        calibrate(gqa, [drifts[0], Drift(drifts[0].window, second, other, probes)])
