"""What the guard decides, what it says, and what is done with a patch that it refuses."""

from dataclasses import replace

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ModelMismatchError, PatchMismatchError, StalePatchError, WindowFullError
from kamera_jax.guard.policy import Verdict
from tests import oracles

SPEC = kj.SketchSpec((0,), tokens=4)


@pytest.fixture(scope="module")
def patch(random_vlm, chunks):
    """Of the second chunk, behind the first."""
    return kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], rank=1000, sketch=SPEC)


@pytest.fixture(scope="module")
def calibration(random_vlm, build, chunks, patch):
    """Safe up to half the change that the third chunk in place of the first makes; KL rises with the change."""
    stale = kj.staleness(build((chunks[2], None)), chunks[1], patch).change
    changes = tuple(stale * step / 600 for step in range(600))
    kls = tuple(0.001 if change < stale / 2 else 1.0 for change in changes)
    every = (1.0,) * 600  # of that drift all is lost, and all is new
    return kj.Calibration(random_vlm.fingerprint, SPEC, changes, kls, every, every, (0.0,) * 600, kls)


def one_more(calibration, change, kl):
    """The calibration with another drift of that kind."""
    more = {"changes": change, "kls": kl, "lost": 1.0, "added": 1.0, "moved": 0.0, "blind": kl}
    return replace(calibration, **{name: (*getattr(calibration, name), value) for name, value in more.items()})


@pytest.fixture
def present(build, chunks):
    return build((chunks[0], None))


@pytest.fixture
def stale(build, chunks):
    """A window in which the patch's antecedent is gone, and another chunk stands in its place."""
    return build((chunks[2], None))


def test_accepts_what_is_unchanged_and_says_why_it_refuses(calibration, chunks, patch, build, present, stale):
    policy = kj.ReusePolicy(calibration=calibration)
    accepted, refused = (policy.judge(window, chunks[1], patch) for window in (present, stale))
    assert accepted == Verdict(True, 0.0, "its antecedents are those it was formed on")
    assert not refused.accept and refused.estimate_kl > 0.05 and "above" in refused.reason
    assert chunks[0].key[:12] in refused.reason and chunks[2].key[:12] in refused.reason
    assert kj.ReusePolicy(2.0, calibration=calibration).judge(stale, chunks[1], patch).accept is False, "never seen"
    generous = one_more(calibration, 10.0, 1.0)
    within = kj.ReusePolicy(2.0, calibration=generous).judge(stale, chunks[1], patch)
    assert within.accept and "within" in within.reason


def test_judges_at_a_place(calibration, chunks, patch, build):
    policy = kj.ReusePolicy(calibration=calibration)
    window = build((chunks[0], None), (chunks[2], None))
    assert policy.judge(window, chunks[1], patch, at=1).accept
    assert not policy.judge(window, chunks[1], patch, at=0).accept


def test_what_the_calibration_does_not_know_is_reused_as_it_was_formed_alone(
    random_vlm, calibration, chunks, patch, present, stale
):
    bare = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], rank=1000)
    other = replace(calibration, sketch=kj.SketchSpec((1,)))
    harmful = replace(calibration, kls=(1.0,) * 600)
    for policy, given in (
        (kj.ReusePolicy(calibration=calibration), bare),
        (kj.ReusePolicy(calibration=other), patch),
        (kj.ReusePolicy(calibration=harmful), patch),
    ):
        assert policy.judge(present, chunks[1], given) == Verdict(
            True, 0.0, "its antecedents are those it was formed on"
        )
        refused = policy.judge(stale, chunks[1], given)
        assert not refused.accept and "calibration" in refused.reason
        assert refused.estimate_kl > 0.1 if policy.calibration is harmful else refused.estimate_kl == float("inf")


def test_append_reuses_what_is_accepted(random_vlm, calibration, chunks, patch, present):
    window, verdict = kj.append_checked(random_vlm, present, chunks[1], patch, kj.ReusePolicy(calibration=calibration))
    assert verdict.accept and window.entries[-1].patch is patch
    assert window.keys == kj.append(present, chunks[1], patch).keys


@pytest.mark.parametrize("fallback", ["patch", "reprefill"])
def test_fallbacks_run_the_chunk_on_the_window_as_it_stands(random_vlm, calibration, chunks, patch, stale, fallback):
    policy = kj.ReusePolicy(fallback=fallback, calibration=calibration)
    window, verdict = kj.append_checked(random_vlm, stale, chunks[1], patch, policy)
    assert not verdict.accept
    entry = window.entries[-1]
    full = kj.prefill(random_vlm, [chunks[2], chunks[1]]).entries[-1]
    if fallback == "patch":
        assert entry.chunk is chunks[1] and entry.patch.antecedents == stale.keys and entry.patch.sketch.spec == SPEC
        kv = kj.patch.apply(entry.chunk.kv, entry.patch.factors)
    else:
        assert entry.patch is None and entry.chunk.antecedents == stale.keys
        kv = entry.chunk.kv
    given, expected = (np.asarray(each.features)[:, : chunks[1].length] for each in (kv, full.chunk.kv))
    assert oracles.relative(given, expected).max() <= 1e-4
    assert policy.judge(stale, chunks[1], entry.patch).accept if fallback == "patch" else True


def test_error_says_why_and_leaves_the_window(random_vlm, calibration, chunks, patch, stale):
    policy = kj.ReusePolicy(fallback="error", calibration=calibration)
    before = stale.entries
    with pytest.raises(StalePatchError, match=f"not safe here.*{chunks[0].key[:12]} is gone"):
        kj.append_checked(random_vlm, stale, chunks[1], patch, policy)
    assert stale.entries is before


def test_errors(random_vlm, random_vlm_bf16, calibration, chunks, patch, stale, build):
    with pytest.raises(ValueError, match="above 0"):
        kj.ReusePolicy(0.0)
    with pytest.raises(ValueError, match="above 0"):
        kj.ReusePolicy(float("nan"))
    odd = kj.ReusePolicy()
    object.__setattr__(odd, "fallback", "retry")  # past the annotation, which is checked under test
    with pytest.raises(ValueError, match="fallback must be one of"):
        odd.__post_init__()
    policy = kj.ReusePolicy(calibration=calibration)
    with pytest.raises(PatchMismatchError):
        policy.judge(stale, chunks[0], patch)
    with pytest.raises(ModelMismatchError, match="calibrate this model"):
        kj.ReusePolicy(calibration=replace(calibration, model="another")).judge(stale, chunks[1], patch)
    with pytest.raises(ModelMismatchError):
        kj.append_checked(random_vlm_bf16, stale, chunks[1], patch, policy)
    with pytest.raises(ValueError, match="at must be"):
        policy.judge(stale, chunks[1], patch, at=-1)
    full = build((chunks[2], None), capacity=32)
    with pytest.raises(WindowFullError):
        kj.append_checked(random_vlm, full, chunks[1], patch, policy)


def test_with_a_calibration_a_chunk_without_a_patch_costs_what_was_measured(calibration, chunks, build, stale):
    policy = kj.ReusePolicy(calibration=calibration)
    assert policy.judge(build(), chunks[1], None) == Verdict(True, 0.0, "it stands behind what it was run behind")
    refused = policy.judge(stale, chunks[1], None)
    assert not refused.accept and refused.estimate_kl == calibration.bare_estimate
    harmless = replace(calibration, blind=(0.001,) * 600)
    accepted = kj.ReusePolicy(calibration=harmless).judge(stale, chunks[1], None)
    assert (
        accepted.accept and accepted.estimate_kl >= harmless.bare_estimate and "by the calibration" in accepted.reason
    )
