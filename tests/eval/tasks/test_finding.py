"""No verdict is vacuous: of any finding, of any task, whatever a run lacks."""

import itertools
import re

import numpy as np
import pytest

from eval import tasks
from eval.report.claims import Claim
from eval.tasks.finding import Finding, findings_of, judged
from eval.tasks.text.continuation import NEEDED, OTHER
from eval.tasks.text.moving import RECALLS
from eval.tasks.text.quotation import PLACES
from eval.tasks.text.seen import NEXT
from eval.tasks.text.task import TextTask

VACUOUS = (
    "nan of nan",
    "nan of 0.500",
    "0.000 of 0.000",
    "0 of 0",
    "0.0% (`epic:8`) of 0.000",
    "0.0% (`cacheblend:0.15`, 3.0% of the FLOPs) against 0.0% (`patch:12`)",
    "η nan (`patch:4`, 8.3% of the bytes)",
    "50 % in nan%, 90 % in nan% of the components",
    "0.250 of 0.000",
    "KL inf",
    "0.5 against 0.2, of 0 tokens",
)


@pytest.mark.parametrize("measured", VACUOUS)
@pytest.mark.parametrize("holds", [True, False, np.bool_(True)])
def test_a_verdict_on_nothing_is_taken_back(measured, holds):
    for made in (Finding("it holds", measured, holds), Claim("it holds", "0.5", measured, bool(holds))):
        assert made.holds is None and "nan" not in made.measured and "0.000 of 0.000" not in made.measured


@pytest.mark.parametrize(
    "measured",
    [
        "0.000 of 1.000",
        "0.000 of 0.0005",
        "1.000 of 1.000 (`patch:12`, 23.0%)",
        "0.0% (`epic:8`) against 12.5% (`patch:12`)",
        "η 0.86, KL 0.0010 of 0.0200 (`patch:10%`)",
        "0.500 (`patch:1`) against 0.000, of 12 tokens",
        "90 % of its energy is in 8% of the components, in 51% of the tokens",
        "financed by nanotechnology",
    ],
)
def test_a_verdict_on_figures_stays(measured):
    assert Finding("it", measured, False).holds is False and Finding("it", measured, np.bool_(True)).holds is True
    assert Finding("it", measured, True).measured == measured


def test_a_verdict_is_true_or_false():
    with pytest.raises(ValueError, match="is 'yes'; expected True, False or None"):
        judged("0.5 of 1.0", "yes")
    assert Finding("it", "nothing was asked", None).measured == "nothing was asked"
    assert Finding(**vars(Finding("it", "0.250 of 0.000", True))) == Finding("it", "0.250 of 0.000", True)


class Outside:
    name = "outside"

    def __init__(self, made):
        self.findings = made


def test_what_a_task_from_outside_raises_is_a_finding_too():
    def yielding(scores):
        yield Finding("first", "0.5 of 1.0", False)
        yield Finding("second", str(scores["patch:12"]), True)

    first, further = findings_of(Outside(yielding), {})
    assert first.holds is False
    assert further.claim == "further findings of the task outside" and further.holds is None
    assert further.measured == "not measured: the run has no 'patch:12'"
    (only,) = findings_of(Outside(lambda scores: [Finding("x", f"{1 / len(scores)}", True)]), {})
    assert only.holds is None and "division by zero" in only.measured
    (only,) = findings_of(Outside(lambda scores: ["it holds"]), {})
    assert only.holds is None and "'it holds' is no eval.tasks.Finding" in only.measured
    assert findings_of(Outside(lambda scores: None), {}) == []


METHODS = (
    "patch",
    "patch:1",
    "patch:4",
    "patch:10%",
    "patch:deep",
    "patch:shallow",
    "epic:8",
    "mpic:8",
    "vlcache:0.15",
) + (
    "cacheblend:0.15",
    "oracle-tokens:0.25",
    "oracle-tokens:0.5",
)


def cell(value, kl, samples=3):
    names = ("accuracy", "so far", "choice", "nll")
    return {**dict.fromkeys(names, value), "error": None, "kl": kl, "samples": samples}


def made_up(methods, conditions, value, kl, *, flips=0, changed=0.0, hops=("1", "2")):
    """Scores of a run in which every method is as right as every other, and blind reuse loses ``kl``."""

    def method(name):
        own = cell(value, 0.0 if name == "full" else kl)
        return {
            "hops": dict.fromkeys(hops, own),
            "conditions": {each: {"1": own, "2": own} for each in conditions},
            "cost": {"bytes": 1.0, "bytes_share": 0.01, "recomputed_share": 0.05, "flops_share": 0.05},
            "eta": 0.0 if kl and hops else None,
            "recovered": 0.0 if flips else None,
            "kv_error": [0.0, changed, changed],
        }

    energy = [[0.0, 0.0], [changed, min(1.0, 2 * changed)]]
    return {
        "measures": ["accuracy", "so far", "nll"],
        "methods": {name: method(name) for name in ("full", "blind", *methods)},
        "flips": flips,
        "absorbed": {"components": energy, "tokens": energy},
    }


def conditions_of(task):
    """All that questions of a task may be shown by."""
    own = list(task.conditions) if isinstance(task, TextTask) else ["plain", "text facts"]
    return [*own, *PLACES, *NEXT, *RECALLS, NEEDED, OTHER, "steps 01 – 04", "steps 05 – 08"]


NOTHING = re.compile(r"nan|inf\b|\bof 0(?:\.0+)?(?![\d.]*[1-9])|\b0\.0+%? (?:\(.*?\) )?against 0\.0+")


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_no_task_has_a_vacuous_verdict_on_a_tiny_run(name):
    """Whatever conditions were asked, methods run, and whether anything was right, lost or changed."""
    task = tasks.get(name)
    known = conditions_of(task)
    few = [(), ("patch",), ("epic:8", "cacheblend:0.15"), METHODS]
    for methods, conditions, value, kl in itertools.product(few, ([], known[:1], known), (0.0, 0.5), (0.0, 0.3)):
        scores = made_up(methods, conditions, value, kl, flips=int(value), hops=() if not conditions else ("1",))
        for found in findings_of(task, scores):
            assert not NOTHING.search(found.measured), (found, methods, conditions, value, kl)
            if found.holds is not None:
                assert kl or value, found  # nothing was right, and nothing was lost
            if not conditions and "change" not in found.claim:
                assert found.holds is None, found


def test_a_model_that_cannot_do_a_task_fails_at_nothing():
    """`blind is right in 0.000: holds` says nothing where full prefill is right in 0.000 too."""
    for name in ("page-break", "quotation"):
        task = tasks.get(name)
        found = findings_of(task, made_up(METHODS, conditions_of(task), 0.0, 0.5))
        assert [each.holds for each in found] == [None] * len(found)


def test_what_was_not_lost_is_not_given_back():
    task = tasks.get("quotation")
    found = findings_of(task, made_up(METHODS, conditions_of(task), 0.5, 0.3))
    lost, restored, oracle, *_ = found
    assert lost.holds is False and lost.measured == "0.500 of 0.500"
    assert restored.holds is oracle.holds is None and restored.measured == "blind reuse lost nothing"


def test_the_default_patch_counts_among_patches():
    task = tasks.get("continuation")
    found = findings_of(task, made_up(("patch",), conditions_of(task), 0.5, 0.3))
    assert "`patch`" in found[0].measured and found[0].holds is False
