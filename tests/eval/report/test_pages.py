"""Pages of measurements are what their JSON says; the recall cascade is mended."""

import json
from pathlib import Path

import pytest

from benchmarks import guard_text_page, performance_page, redraw, reliability_page, smol_vl, window
from eval.report import evaluation as evaluation_report
from eval.report import figures as evaluation_figures
from eval.report.readme import put
from models import load
from tests.hardening.measure import CLASSES

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs/results"


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "write"), redraw.pages(ROOT / "docs").items(), ids=lambda each: getattr(each, "stem", "")
)
def test_every_page_of_results_is_what_its_template_makes_of_the_measurements(path, write):
    """And `make pages` writes it again without measuring."""
    assert path.read_text(encoding="utf-8") == write()


def test_a_large_negative_share_stands_beside_the_accuracy():
    """The share of KL that is closed says nothing by itself where the reference is wrong."""
    page = (ROOT / "docs/window.md").read_text(encoding="utf-8")
    table = page.partition("\nA dependant first:\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if "kamera-tiny" in line]
    assert len(rows) == 6
    for row in rows:
        orbit, _, right, _, full = (cell.strip() for cell in row.split("|")[3:8])
        assert orbit.startswith("−") and float(right.split()[0]) >= 0.9 > float(full.split()[-1]), row


def test_performance_is_what_was_measured():
    assert (ROOT / "docs/performance.md").read_text(encoding="utf-8") == performance_page.page(ROOT / "docs")


def test_windows_are_what_was_measured():
    results = read("window")
    guards = [read(f"guard-{name}") for name in window.ATTENTIONS]
    written = window.page([results[name] for name in window.ATTENTIONS if name in results], guards)
    assert (ROOT / "docs/window.md").read_text(encoding="utf-8") == written


def test_what_a_patch_is_worth_elsewhere_is_what_was_measured():
    written = guard_text_page.page(read("guard-text"))
    assert (ROOT / "docs/guard.md").read_text(encoding="utf-8") == written


def test_pages_of_text_are_what_was_measured():
    written = (ROOT / "docs/smol-vl.md").read_text(encoding="utf-8")
    assert put(written, "measured", smol_vl.table(read("smol-vl")), "results-smol-vl") == written


def test_faults_are_what_was_tried():
    """And none of them failed, in the numbers that are asked for."""
    measured = read("reliability")
    assert (ROOT / "docs/reliability.md").read_text(encoding="utf-8") == reliability_page.page(measured)
    assert measured["classes"].keys() == CLASSES.keys()
    for name, found in measured["classes"].items():
        assert found["tried"] >= CLASSES[name][0] and not any(found["failed"].values()), name


def test_methods_are_what_was_measured():
    runs = evaluation_report.load(RESULTS / "eval-binding.json")
    figures = evaluation_figures.files(runs, ROOT / "docs/figures")
    assert (ROOT / "docs/results.md").read_text(encoding="utf-8") == evaluation_report.page(
        runs, figures, ROOT / "docs"
    )
    assert all(path.is_file() for path in figures.values())
    assert [run["config"]["model"] for run in runs] == [f"kamera-tiny-{name}" for name in window.ATTENTIONS]
    assert all(len(run["config"]["seeds"]) == 3 for run in runs)


def test_what_the_method_promises_holds_on_every_embedded_model():
    """Blind reuse keeps one hop and loses two; a patch of a quarter of the bytes gives them back."""
    for run in evaluation_report.load(RESULTS / "eval-binding.json"):
        assert [finding.holds for finding in evaluation_report.findings(run)[:3]] == [True] * 3, run["config"]["model"]


def test_a_cascade_is_mended_at_a_quarter_of_the_flops():
    """A and B come back: the page that came meanwhile and refers to both is found and formed anew; nothing else is."""
    found = window.cascade(load("kamera-tiny-gqa"), 1, lambda *_: None)
    assert found["chunks_without_c"] == 12 and found["chunks_with_c"] == 13
    assert found["plan"] >= 0.97 * found["full"] > found["unplanned"]
    assert 0 < found["worst_flops"] <= 0.25
