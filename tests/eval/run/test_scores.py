"""Scores and findings against plain arithmetic on made-up samples."""

import math

import numpy as np
import pytest

from eval.run import metrics, scores
from eval.tasks import binding_findings, comparison, get
from tests.eval.made_up import METHODS, make


def test_scores_are_plain_means():
    lines, samples = make(np.random.default_rng(1))
    found = scores.score(get("binding"), METHODS, lines, samples)
    for name in METHODS:
        own = found["methods"][name]
        for hops in (1, 2):
            rows = [s for s in samples if s["learned"] and s["hops"] == hops]
            right = [s["methods"][name]["said"] == "red" for s in rows]
            assert math.isclose(own["hops"][str(hops)]["accuracy"], np.mean(right), abs_tol=1e-6)
            assert own["hops"][str(hops)]["samples"] == len(rows)
        several = [s for s in samples if s["learned"] and s["hops"] > 1]
        kl, blind = ([s["methods"][each]["kl"] for s in several] for each in (name, "blind"))
        assert math.isclose(own["eta"], 1 - np.mean(kl) / np.mean(blind), abs_tol=1e-6)
        answers = {each: [s["methods"][each]["said"] for s in several] for each in (name, "full", "blind")}
        assert own["flips"] == sum(a != b for a, b in zip(answers[name], answers["full"], strict=True))
        back = [a == b for a, b, c in zip(answers[name], answers["full"], answers["blind"], strict=True) if b != c]
        assert found["flips"] == len(back)
        assert own["recovered"] == (sum(back) / len(back) if back else None)
        stored = np.mean([line["methods"][name]["bytes"] for line in lines])
        assert math.isclose(own["cost"]["bytes"], stored) and math.isclose(own["cost"]["bytes_share"], stored / 100)
        ran = np.mean([line["methods"][name]["computed_tokens"] for line in lines])
        assert math.isclose(own["cost"]["tokens_avoided"], 50 - ran)
        assert math.isclose(own["cost"]["recomputed_share"], ran / 30)
        cells = [cell for length in own["lengths"].values() for cell in length.values()]
        assert sum(cell["samples"] for cell in cells) == len(several)
    assert found["methods"]["full"]["conditions"].keys() == {"a", "b"}


def test_quarters():
    assert [scores.quarter(depth) for depth in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0)] == [
        *["0 – 0.25"] * 2,
        "0.25 – 0.5",
        "0.5 – 0.75",
        *["0.75 – 1"] * 2,
    ]


def test_standard_errors_count_contexts():
    rng = np.random.default_rng(2)
    values = rng.random(40)
    mean, error = metrics.mean_and_error(values.tolist(), [str(i) for i in range(40)])
    assert math.isclose(mean, values.mean()) and math.isclose(error, values.std(ddof=1) / math.sqrt(40))
    repeated = np.repeat(values, 5).tolist()
    names = [str(i) for i in range(40) for _ in range(5)]
    assert math.isclose(metrics.mean_and_error(repeated, names)[1], error)  # five copies tell nothing new
    assert math.isnan(metrics.mean_and_error([0.0, 1.0], ["a", "a"])[1])
    with pytest.raises(ValueError, match="a cluster for each"):
        metrics.mean_and_error([1.0], [])


def measured(**accuracies):
    """Scores in which only what a claim reads is there."""
    lines, samples = make(np.random.default_rng(0), 6)
    found = scores.score(get("binding"), METHODS, lines, samples)
    for name, own in found["methods"].items():
        own["hops"]["1"]["accuracy"] = own["hops"]["2"]["accuracy"] = accuracies.get(name, 1.0)
        own["cost"]["bytes_share"] = own["cost"]["recomputed_share"] = 0.2
    return found


def test_claims_hold_and_fail():
    good = measured(blind=0.5) | {"flips": 3}
    good["methods"]["blind"]["hops"]["1"]["accuracy"] = 0.98
    good["methods"]["patch:2"]["recovered"] = 0.9
    good["methods"]["cacheblend:0.25"]["recovered"] = 0.3
    found = {each.claim.split(":")[0]: each.holds for each in binding_findings.findings(good)}
    assert found["blind reuse keeps one hop"] and found["blind reuse loses two hops"]
    assert found["a patch of ≤ 25% of the bytes keeps two hops"]
    assert found["recomputing ≤ 25% of the tokens does not recover as many flipped answers"]
    assert not found["even an oracle needs about half the tokens"]
    bad = measured(**{"blind": 0.9, "patch:2": 0.5})
    found = {each.claim.split(":")[0]: each.holds for each in binding_findings.findings(bad)}
    assert not found["blind reuse keeps one hop"] and not found["blind reuse loses two hops"]
    assert not found["a patch of ≤ 25% of the bytes keeps two hops"]


@pytest.mark.parametrize("nothing", ["wrong", "not asked", "unchanged"])
def test_of_what_was_not_seen_nothing_is_claimed(nothing):
    """A model that answers nothing, a run without such questions, and chunks that absorbed nothing."""
    found = measured(**dict.fromkeys(METHODS, 0.0) if nothing == "wrong" else {})
    if nothing == "not asked":
        for own in found["methods"].values():
            own["hops"] = {}
    if nothing == "unchanged":
        found["absorbed"] = {"components": [[0.0] * 3], "tokens": [[0.0] * 3]}
    found = binding_findings.findings(found)
    claims = {each.claim.split(":")[0]: each for each in found}
    assert not [each.measured for each in found if "nan" in each.measured or "0.000 of 0.000" in each.measured]
    if nothing == "unchanged":
        assert claims["the change is low-rank over features, diffuse over tokens"].holds is None
    else:
        assert claims["blind reuse keeps one hop"].holds is claims["blind reuse loses two hops"].holds is None
        assert claims["a patch of ≤ 25% of the bytes keeps two hops"].holds is None


def test_methods_over_the_budget_are_not_compared():
    found = measured()
    found["methods"]["patch:2"]["cost"]["bytes_share"] = 0.3
    found["methods"]["cacheblend:0.25"]["cost"]["recomputed_share"] = 0.3
    assert comparison.patches(found, 0.25) == [] and comparison.recomputing(found, 0.25) == []
    holds = {each.claim.split(":")[0]: each.holds for each in binding_findings.findings(found)}
    assert holds["a patch of ≤ 25% of the bytes keeps two hops"] is None


def test_the_share_that_holds_the_energy_is_read_off_the_curve():
    curve = [min(1.0, 2 * share) for share in comparison.SHARES]
    found = {"absorbed": {"tokens": [[0.0] * len(curve), curve]}}
    assert math.isclose(binding_findings.share_for(found, "tokens", 0.9), 0.45, abs_tol=0.01)
