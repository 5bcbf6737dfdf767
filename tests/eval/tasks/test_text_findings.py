"""Findings of the tasks on real text, from made-up scores."""

import pytest

from eval import tasks
from eval.tasks.text import findings


def cell(accuracy, kl, samples=10):
    return {"2": {"accuracy": accuracy, "so far": accuracy / 2, "nll": 1.0, "error": 0.0, "kl": kl, "samples": samples}}


def made_up(**methods):
    """Scores of one condition: accuracy, KL and share of the bytes of each method."""
    cost = {"recomputed_share": 0.1, "flops_share": 0.1}
    return {
        "measures": ["accuracy", "so far", "nll"],
        "methods": {
            name: {"conditions": {"c": cell(accuracy, kl)}, "cost": {**cost, "bytes_share": share}}
            for name, (accuracy, kl, share) in methods.items()
        },
    }


def test_findings_are_arithmetic_on_the_scores():
    scores = made_up(
        **{
            "full": (0.8, 0.0, 0.0),
            "blind": (0.1, 0.5, 0.0),
            "patch:1": (0.79, 0.05, 0.015),
            "patch:10%": (0.8, 0.01, 0.1),
            "epic:8": (0.2, 0.4, 0.0),
            "oracle-tokens:0.5": (0.5, 0.3, 0.5),
        }
    )
    assert findings.eta(scores, "patch:1") == pytest.approx(0.9)
    lost, restored, oracle = findings.lost_and_restored(scores, "c", "it", oracle=True)
    assert lost.holds and restored.holds and oracle.holds
    assert "`patch:1`, 1.5%" in restored.measured and oracle.measured == "0.500 of 0.800"
    assert findings.patch_closes(scores, 0.1, 0.95).holds and not findings.patch_closes(scores, 0.02, 0.95).holds
    assert findings.patch_closes(scores, 0.001, 0.5).holds is None
    assert findings.tokens_close_less(scores, 0.15, 0.1).holds
    assert "0.200 (`epic:8`)" in findings.boundary(scores, "c").measured
    (unable,) = findings.lost_and_restored(made_up(full=(0.1, 0.0, 0.0), blind=(0.0, 1.0, 0.0)), "c", "it", oracle=True)
    assert unable.holds is None and "no claim, as this model cannot do it" in unable.claim
    lost, *_ = findings.lost_and_restored(scores, "c", "it", oracle=True, measure="so far")
    assert lost.measured == "0.050 of 0.400"
    (none,) = findings.lost_and_restored(scores, "another condition", "it", oracle=True)
    assert none.holds is None
    (unable,) = findings.lost_and_restored(scores, "c", "it", oracle=True, able=0.85)
    assert unable.holds is None
    _, restored = findings.lost_and_restored(scores, "c", "it", oracle=False, components=1)
    assert restored.holds and "≤ 1 components" in restored.claim and "`patch:1`" in restored.measured
    assert findings.at_most(scores, "blind", "c", 0.1, "it").holds
    assert not findings.at_most(scores, "blind", "c", 0.09, "it").holds
    assert findings.at_most(scores, "epic:16", "c", 0.1, "it").holds is None
    assert findings.components_reach(scores, 1, "c", 0.79, "it").holds
    assert not findings.components_reach(scores, 8, "c", 0.795, "it").holds  # patch:10% is not told by components
    assert findings.components_reach(scores, 8, "another condition", 0.1, "it").holds is None
    assert findings.tokens_close_at_most(scores, "epic", "EPIC", 0.2).measured.startswith("η 0.20 (`epic:8`, 10%")
    assert not findings.tokens_close_at_most(scores, "epic", "EPIC", 0.19).holds
    assert findings.tokens_close_at_most(scores, "cacheblend", "CacheBlend", 0.2).holds is None
    assert findings.near(scores, 0.1, 0.01, "it").holds and not findings.near(scores, 0.1, 0.009, "it").holds
    assert "blind 0.5000" in findings.near(scores, 0.1, 0.02, "it").measured


@pytest.mark.parametrize("name", sorted(set(tasks.TASKS) - {"binding"}))
def test_findings_are_made_of_runs_of_few_methods(name):
    """Without patches, and without samples of most conditions."""
    scores = made_up(full=(0.8, 0.0, 0.0), blind=(0.1, 0.5, 0.0))
    assert all(finding.holds is None or finding.measured for finding in tasks.get(name).findings(scores))
