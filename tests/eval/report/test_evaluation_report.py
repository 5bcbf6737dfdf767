"""The report on made-up scores; on real ones it is shown by test_runner.py and test_pages.py."""

import io

import numpy as np
import pytest
from rich.console import Console

from eval.commands.evaluate import DEFAULT_METHODS
from eval.report import evaluation as evaluation_report
from eval.report import figures as evaluation_figures
from eval.run import scores
from eval.tasks import get
from tests.eval.made_up import make


@pytest.fixture(scope="module")
def run():
    """A run of every default method."""
    methods = DEFAULT_METHODS.split(",")
    lines, samples = make(np.random.default_rng(1), methods=methods)
    config = {"task": "binding", "model": "kamera-tiny-gqa", "seeds": [0, 1, 2], "batch": 9, "methods": methods}
    seconds = {name: {"all": 0.01 * (1 + i)} for i, name in enumerate(methods)}
    return {
        "config": config,
        "versions": {"jax": "0.0"},
        "scores": scores.score(get("binding"), methods, lines, samples),
        "ttft_s": seconds,
    }


def test_tables_fit_eighty_columns(run):
    console = Console(width=200, record=True, emoji=False)
    evaluation_report.print_report(run, console)
    text = console.export_text()
    tables = text.partition("Findings")[0]
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 80
    for name in run["config"]["methods"]:
        assert sum(line.startswith(name + " ") for line in text.splitlines()) == 2


def test_a_run_without_questions_that_models_learn_has_a_report_too(run, tmp_path):
    lines, samples = make(np.random.default_rng(3))
    for place, sample in enumerate(samples):
        sample["learned"] = False
        if place % 2:
            del sample["distance"]
    methods = list(lines[0]["methods"])
    found = scores.score(get("binding"), methods, lines, samples)
    assert found["compared"] == 0 and found["methods"]["blind"]["eta"] is None
    unlearned = {**run, "config": {**run["config"], "methods": methods}, "scores": found}
    evaluation_report.print_report(unlearned, Console(width=200, record=True, file=io.StringIO()))
    drawn = evaluation_figures.draw([unlearned], tmp_path / "figures")
    assert "| `blind` | " in evaluation_report.page([unlearned], drawn, tmp_path)


def test_labels_that_only_some_samples_have_are_scored():
    lines, samples = make(np.random.default_rng(4))
    for sample in samples[::2]:
        del sample["distance"]
    methods = list(lines[0]["methods"])
    found = scores.score(get("binding"), methods, lines, samples)
    assert "" in found["methods"]["full"]["distances"]


def test_the_page_has_every_method_and_figure(run, tmp_path):
    page = evaluation_report.page([run], evaluation_figures.files([run], tmp_path / "figures"), tmp_path)
    for name in run["config"]["methods"]:
        assert f"| `{name}` |" in page
    assert page.count("](figures/binding-") == len(evaluation_figures.FIGURES)


def test_families_are_told_apart_by_colour_and_by_marker():
    colours, markers = zip(*evaluation_figures.STYLES.values(), strict=True)
    assert len(set(colours)) == len(colours) and len(set(markers)) == len(markers)
    assert {evaluation_figures.family(name) for name in DEFAULT_METHODS.split(",")} <= evaluation_figures.STYLES.keys()
