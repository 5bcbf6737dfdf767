"""The guard's benchmark on real text: its drifts are what they are called, and its page counts what was measured."""

import json

import numpy as np
import pytest

from benchmarks import guard_text
from benchmarks.text_drifts import BLIND, KINDS, LONG_KINDS, Case, drifted
from kamera_jax.guard import prior

FORMED = ("p4", "p5", "p6")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_drifts_are_what_they_are_called(kind, seed):
    formed = [f"p{i}" for i in range(7)] if kind in LONG_KINDS else list(FORMED)
    before = drifted(np.random.default_rng(seed), kind, formed)
    gone = [name for name in formed if name not in before]
    new = [name for name in before if name not in formed]
    kept = [name for name in before if name in formed]
    expected = {
        "order": (0, 0),
        "edit": (1, 1),
        "first gone": (1, 0),
        "insertion": (0, 1),
        "only the last left": (2, 0),
        "one stranger": (1, 1),
        "last gone": (1, 0),
        "all strangers": (3, 3),
        "to the front": (3, 0),
        "long, slid": (2, 0),
        "long, back at the end": (2, 2),
        "long, edit": (1, 1),
        "long, two strangers": (2, 2),
        "long, half gone": (3, 0),
        BLIND: (3, 3),
    }
    assert (len(gone), len(new)) == expected.get(kind, (0, 0))
    assert (kept == sorted(kept)) is (kind != "order")
    assert kind != "first gone" or gone == formed[:1]
    assert kind != "last gone" or gone == formed[-1:]
    assert kind != "only the last left" or before == formed[-1:]


def cases(texts=8, seed=0):
    """Cases of both corpora whose KL is about what the prior expects."""
    rng = np.random.default_rng(seed)
    found = []
    for name in guard_text.CORPORA:
        for text in range(texts):
            for kind in KINDS:
                formed = tuple(f"p{i}" for i in range(7)) if kind in LONG_KINDS else FORMED
                before = tuple(drifted(rng, kind, formed))
                mass = rng.random((30, len(formed) + 2))
                case = Case(name, text, kind, formed, before, mass.tolist(), [0.3] * 30, 0.0, 0.05)
                kl = prior.expected_kl(guard_text._difference(case)) * np.exp(0.3 * rng.standard_normal())
                found.append(Case(**{**case.plain(), "reuse": float(kl), "formed": formed, "before": before}))
    return found


def test_what_is_counted_is_what_the_policy_would_say():
    found = guard_text.Cases(cases())
    accepted = found.by_prior()
    for case, of, estimate in zip(found.cases, accepted, found.estimate, strict=True):
        same = case.kind in guard_text.SAME
        assert of == (same or estimate * prior.MARGIN <= guard_text.MAX_KL)
    blind = found.estimate[found.kinds == BLIND]
    assert blind == pytest.approx(prior.KEPT), "the same chunks without their patches"
    on = found.corpus == "pydoc"
    by_calibration, calibration = found.calibrated(on)
    assert len(calibration.kls) == (on & ~found.same).sum() and by_calibration[found.same].all()
    assert by_calibration[~found.same].any() and not by_calibration.all()
    result = guard_text.judged(found, accepted, on)
    assert result["cases"] == on.sum()
    assert result["harmless_accepted"]["share"] == pytest.approx(accepted[on & found.harmless].mean(), abs=1e-3)
    assert result["accepted_within_budget"]["share"] == pytest.approx(found.harmless[on & accepted].mean(), abs=1e-3)
    fitted = guard_text.fitted_prior(found, on)
    assert fitted["LOST"] == pytest.approx(prior.LOST, rel=0.4)


def test_a_half_written_line_ends_a_file(tmp_path):
    path = tmp_path / "cases.jsonl"
    some = cases(texts=1)[:3]
    path.write_text("".join(json.dumps(case.plain()) + "\n" for case in some) + '{"corpus": "py', encoding="utf-8")
    assert guard_text.read(path) == some
