"""The prior of uncalibrated models: what changed before a chunk, what that is expected to cost, and the verdicts."""

import itertools
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.guard import prior
from kamera_jax.handle import columns_of
from tests.kamera_jax.guard.kl_of_prior import expected

A, B, C, D, X, Y = (letter * 64 for letter in "abcdxy")
SHARES = (0.2, 0.3, 0.5)


def found(antecedents, present, shares=None):
    shares = prior.uniform(len(antecedents)) if shares is None else shares
    return prior.difference(antecedents, shares, present)


@pytest.mark.parametrize("seed", range(40))
def test_the_estimate_is_what_a_plain_restatement_says(seed):
    rng = np.random.default_rng(seed)
    keys = [A, B, C, D, X, Y][: int(rng.integers(2, 7))]
    antecedents = tuple(rng.choice(keys, int(rng.integers(0, 5))).tolist())
    present = tuple(rng.choice(keys, int(rng.integers(0, 6))).tolist())
    shares = rng.dirichlet(np.ones(len(antecedents))).tolist() if antecedents else []
    assert prior.expected_kl(found(antecedents, present, shares)) == pytest.approx(
        expected(antecedents, shares, present), rel=1e-9
    )


def test_what_was_measured_is_in_order():
    formed = (A, B, C)
    unlike = {
        "same": (A, B, C),
        "first gone": (B, C),
        "order": (B, A, C),
        "last gone": (A, B),
        "only the first left": (A,),
        "all gone": (),
        "all strangers": (X, Y, D),
    }
    estimates = [prior.expected_kl(found(formed, present, SHARES)) for present in unlike.values()]
    assert estimates == sorted(estimates) and len(set(estimates)) == len(estimates)
    assert prior.expected_kl(found(formed, (A, B, C), SHARES)) == prior.KEPT


def test_a_patch_with_nothing_left_is_worse_than_none():
    for count, present in itertools.product((1, 3, 9), ((), (X,), (X, Y), (X,) * 12)):
        keys = tuple(f"{i:064d}" for i in range(count))
        estimate = prior.expected_kl(found(keys, present))
        assert found(keys, present).nothing_left and estimate > prior.expected_bare_kl(len(present))
        assert not prior.accepted(estimate, 0.05)
    one_left = prior.expected_kl(found((A, B, C), (C, X), SHARES))
    assert one_left < prior.expected_bare_kl(2)


def test_without_antecedents_all_that_came_is_missing():
    assert prior.expected_kl(found((), ())) == prior.KEPT
    assert not found((), (X,)).nothing_left
    for present in ((X,), (X, Y, X)):
        assert found((), present).added == 1.0
        assert prior.expected_kl(found((), present)) > prior.expected_bare_kl(len(present)) > 0
    assert prior.expected_bare_kl(0) == 0.0


def test_a_chunk_that_stands_there_twice_is_matched_once():
    twice = found((A, B, A), (B, A), SHARES)
    assert twice.gone == ((A, 0.2),) and not twice.new and not twice.moved
    more = found((A, B), (A, A, B), (0.4, 0.6))
    assert not more.gone and [key for key, _ in more.new] == [A] and not more.moved
    assert found((A, A), (A, A), (0.4, 0.6)) == replace(found((A, A), (A, A), (0.4, 0.6)), gone=(), new=(), moved=0.0)


def test_moved_is_the_lighter_side_of_a_change_of_places():
    assert found((A, B, C), (C, A, B), SHARES).moved == pytest.approx(0.5)
    assert found((A, B, C), (B, A, C), SHARES).moved == pytest.approx(0.2)
    assert found((A, B, C), (X, A, B, Y, C), SHARES).moved == 0.0
    assert found((A, B, C), (C, X, B), SHARES).moved == pytest.approx(0.3)


def test_a_new_chunk_is_expected_to_take_what_stood_as_near():
    assert found((A, B, C), (A, B, X), SHARES).new == ((X, 0.5),)
    assert found((A, B, C), (X, A, B, C), SHARES).new == ((X, 0.2),)
    assert found((A, B, C), (A, X, B, C), SHARES).new == ((X, 0.2),)
    assert found((A, B, C), (A, B, X), SHARES).added == pytest.approx(0.5)
    assert found((A, B, C), (X, A, B, C), SHARES).added == pytest.approx(0.2 / 1.2)


def test_shares_are_of_the_deeper_layers_and_alike_where_antecedents_got_nothing():
    mass = np.array([[0.9, 0.0], [0.9, 0.0], [0.1, 0.3], [0.1, 0.1]])
    assert prior.shares_of(mass) == pytest.approx((1 / 3, 2 / 3))
    assert prior.shares_of(np.zeros((4, 3))) == prior.uniform(3)
    assert prior.shares_of(np.full((4, 2), np.nan)) == (0.5, 0.5)
    assert prior.shares_of(np.zeros((4, 0))) == ()
    assert sum(prior.shares_of(np.random.default_rng(0).random((30, 7)))) == pytest.approx(1.0)


def test_a_margin_stands_between_what_is_expected_and_what_is_accepted():
    assert prior.accepted(0.05 / prior.MARGIN, 0.05) and prior.MARGIN >= 1
    assert not prior.accepted(0.0501 / prior.MARGIN, 0.05)
    assert not prior.accepted(math.inf, 0.05)


@pytest.fixture(scope="module")
def patch(random_vlm, chunks):
    """Of the third chunk, behind the others."""
    return kj.form_patch(random_vlm, chunks[2], antecedents=chunks[:2], rank=4)


def test_a_verdict_without_a_calibration_is_the_priors(random_vlm, chunks, texts, patch, build):
    policy = kj.ReusePolicy()
    shares = prior.shares_of(np.asarray(patch.mass)[:, :2])
    keys = tuple(chunk.key for chunk in chunks[:2])
    for before in ([1], [0], [1, 0], []):
        window = build(*((chunks[i], None) for i in before))
        verdict = policy.judge(window, chunks[2], patch)
        estimate = expected(keys, shares, window.keys)
        assert verdict.estimate_kl == pytest.approx(estimate)
        assert verdict.accept is (estimate * prior.MARGIN <= 0.05)
        assert f"expected {estimate:.3g} nats by the prior of uncalibrated models" in verdict.reason
    gone = policy.judge(build((chunks[1], None), (texts[0], None)), chunks[2], patch).reason
    assert f"antecedent {keys[0][:12]} is gone ({shares[0]:.0%} of attention); chunk {texts[0].key[:12]} is new" in gone
    assert (
        "stand in another order" in policy.judge(build((chunks[1], None), (chunks[0], None)), chunks[2], patch).reason
    )
    kept = policy.judge(build((chunks[0], None), (chunks[1], None)), chunks[2], patch)  # without the patch it had
    assert kept.estimate_kl == prior.KEPT and "not their patches" in kept.reason
    assert policy.judge(kj.prefill(random_vlm, chunks[:2]), chunks[2], patch).estimate_kl == 0.0


def test_a_verdict_of_the_prior_touches_no_device(chunks, patch, build):
    window = build((chunks[1], None))
    policy = kj.ReusePolicy()
    columns_of(patch, "mass")
    with jax.transfer_guard("disallow"):
        assert math.isfinite(policy.judge(window, chunks[2], patch).estimate_kl)
        assert policy.judge(window, chunks[2], None).estimate_kl == prior.BARE


def test_what_has_no_key_is_not_estimated(chunks, patch, build):
    policy = kj.ReusePolicy()
    nameless = replace(chunks[0])
    for window, of in ((build((nameless, None)), patch), (build((chunks[1], None)), replace(patch, chunk=patch.chunk))):
        verdict = policy.judge(window, chunks[2], of)
        assert not verdict.accept and verdict.estimate_kl == math.inf and "without keys" in verdict.reason
    for window, chunk in ((build((nameless, None)), chunks[2]), (build(), replace(chunks[2]))):
        bare = policy.judge(window, chunk, None)
        assert not bare.accept and bare.estimate_kl == math.inf and "without a key" in bare.reason


def test_a_chunk_without_a_patch(random_vlm, chunks, build):
    policy = kj.ReusePolicy()
    window = build((chunks[0], None), (chunks[1], None))
    front = policy.judge(window, chunks[2], None, at=0)
    assert front.accept and front.estimate_kl == 0.0
    behind = policy.judge(window, chunks[2], None)
    assert behind.estimate_kl == prior.BARE and not behind.accept and "no patch" in behind.reason
    assert kj.ReusePolicy(prior.MARGIN * prior.BARE).judge(window, chunks[2], None).accept

    prefilled = kj.prefill(random_vlm, chunks)
    (*before, last) = prefilled.entries
    as_run = policy.judge(prefilled, last.chunk, None, at=2)
    assert as_run.accept and as_run.estimate_kl == 0.0 and "what it was run behind" in as_run.reason
    moved = policy.judge(kj.slide(prefilled, 1), last.chunk, None, at=1)  # one of two is gone
    keys = tuple(entry.chunk.key for entry in before)
    assert moved.estimate_kl == pytest.approx(expected(keys, (0.5, 0.5), keys[1:]))
    assert f"antecedent {keys[0][:12]} is gone (50% of attention)" in moved.reason

    alone = kj.encode(random_vlm, "the page is red", preamble=None)
    nothing = policy.judge(build(), alone, None)
    assert nothing.estimate_kl == prior.BARE and "behind nothing" in nothing.reason


def test_a_patch_of_nothing_left_is_not_chosen_before_none(chunks, patch, texts, build):
    policy = kj.ReusePolicy(1.0)
    for window in (build(), build((texts[0], None)), build((texts[0], None), (texts[1], None))):
        with_patch = policy.judge(window, chunks[2], patch).estimate_kl
        assert policy.judge(window, chunks[2], None).estimate_kl < with_patch
