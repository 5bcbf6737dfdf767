"""The report on made-up scores; on real ones it is shown by test_runner.py and test_pages.py."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from eval.commands.evaluate import DEFAULT_METHODS
from eval.report import claims_page
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


def shown(names, *, every=False, **more):
    """The text of a report of some methods, and the run."""
    lines, samples = make(np.random.default_rng(5), methods=names)
    config = {"task": "binding", "model": "m", "seeds": [0], "batch": 9, "methods": list(names)}
    found = scores.score(get("binding"), list(names), lines, samples) | more
    own = {"config": config, "versions": {"jax": "0.0"}, "scores": found, "ttft_s": {}}
    console = Console(width=200, record=True, file=io.StringIO(), emoji=False)
    evaluation_report.print_report(own, console, every=every)
    return console.export_text(), own


def columns_of(text):
    """The titles of the tables by condition, but for condition, hops and the number of questions."""
    by_condition = text.partition("By condition")[2].partition("Findings")[0].splitlines()
    heads = [line.split() for line in by_condition if line.startswith("condition ")]
    assert all(head[:2] == ["condition", "hops"] and head[-1] == "n" for head in heads)
    return [name for head in heads for name in head[2:-1]]


LONG = ("full", "blind", "patch", "patch:64", "my_package.some.module.of_methods:trailing:8+epic:16", "patch:4+epic:8")


def test_what_few_methods_were_asked_for_is_in_every_table_within_eighty_columns():
    text, run = shown(LONG)
    tables = text.partition("Findings")[0]
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 80
    assert len(columns_of(text)) == len(LONG) and columns_of(text)[:4] == ["full", "blind", "patch", "patch:64"]
    assert "(continued)" in text and "not in this table" not in text
    assert text.count("my_package.s…") == text.count("trailing:8+epic:16") >= 3
    page = evaluation_report.page([run], {}, Path())
    assert page.count(f"`{LONG[4]}`") == 2 and f"| {LONG[4]} |" in page and "Not in this table" not in page


def test_what_of_many_methods_has_no_room_is_named(run):
    names = DEFAULT_METHODS.split(",")
    text, _ = shown(names)
    there = columns_of(text)
    words = text.partition("not in this table: ")[2].partition("; --all shows every method")[0].split()
    left = [name.strip(",") for name in words]
    assert there[:2] == ["full", "blind"] and len(there) >= 3 and sorted(there + left) == sorted(names)
    every, _ = shown(names, every=True)
    assert columns_of(every) == names and "not in this table" not in every
    assert max(len(line.rstrip()) for line in every.partition("Findings")[0].splitlines()) <= 80
    page = evaluation_report.page([run], {}, Path())
    assert "Not in this table: `blind-norotate`" in page


def test_the_page_speaks_of_the_run_alone():
    text, run = shown(LONG, failed={"epic:9": "on context 1: ValueError: no"})
    run["finished"] = "2031-02-03T04:05:06+00:00"
    assert "epic:9 is not in the tables: it failed on context 1: ValueError: no" in text
    page = evaluation_report.page([run], {}, Path())
    assert "`epic:9` is not in the tables: it failed on context 1: ValueError: no" in page
    assert "finished 2031-02-03, with jax 0.0" in page and "kamera eval binding --model m --methods full,blind" in page
    legend = page.partition("how it fills")[2].partition("## Findings")[0]
    assert "`patch:M`" in legend and "`epic:K`" in legend and "cacheblend" not in legend and "oracle" not in legend
    assert "`my_package.some.module.of_methods:trailing:8` | of another package" in legend
    for foreign in ("kamera-tiny", "embedded", "kamera eval claims", "## Figures", "SmolLM2"):
        assert foreign not in page


def test_claims_say_of_models_only_what_is_there():
    def page(*names):
        return claims_page.page([{"model": name, "claims": [], "sources": []} for name in names])

    assert "embedded" not in page("my/model") and "SmolLM2" not in page("my/model")
    assert "embedded" in page("kamera-tiny-mla") and "SmolLM2" not in page("kamera-tiny-mla")
    assert "SmolLM2-135M is" in page("smollm2", "my/model")
