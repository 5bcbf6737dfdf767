"""Every task on a published benchmark, end to end, on a tiny random model: killed and resumed, it is the same."""

import json
import shutil

import pytest

from eval.report import evaluation
from eval.run import rescoring, runner
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES
from eval.tasks import get
from models import load
from tests.eval.tasks.published import fixtures
from tests.models import tiny_ports

METHODS = ("full", "blind", "patch:16", "cacheblend:0.15")

HEAVY = ("video-mme", "two-page-docqa:of")
"""These go through what others do too, but for the files, which test_reading.py reads."""

CASES = [pytest.param(name, marks=[pytest.mark.soak] * name.startswith(HEAVY)) for name in fixtures.TASKS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2.5-VL with random weights, from a folder of the hub's format."""
    return load(tiny_ports.write(tmp_path_factory.mktemp("model"), "gqa"))


def task_of(name, folder):
    folder.mkdir(exist_ok=True)
    return f"{name}{',' if ':' in name else ':'}data={fixtures.TASKS[name](folder)}"


def content(folder):
    return {name: (folder / name).read_bytes() for name in (RESULTS, CONTEXTS, SAMPLES)}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_same_where_it_was_killed_and_resumed(model, tmp_path, name, monkeypatch):
    monkeypatch.setattr(type(get(name)), "max_new_tokens", 4)
    run = runner.Run(task_of(name, tmp_path / "data"), "tiny", METHODS, seeds=(0,), repeats=0)
    whole = tmp_path / "whole"
    record = runner.evaluate(model, run, whole)
    scores = record["scores"]
    assert scores["contexts"] == len(get(run.task).all) >= 2 and not scores.get("failed")
    assert tuple(scores["methods"]) == METHODS
    assert record["sources"]["variant"] and any(key.startswith("sha256 of ") for key in record["sources"])
    for line in (whole / SAMPLES).read_text().splitlines():
        assert all("said" in answer for answer in json.loads(line)["methods"].values())
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    lines = (whole / SAMPLES).read_bytes()
    (killed / SAMPLES).write_bytes(lines[: len(lines) - len(lines.splitlines()[-1]) // 2])
    unfinished = {key: value for key, value in record.items() if key != "scores"} | {"complete": False}
    (killed / RESULTS).write_text(json.dumps(unfinished))
    runner.evaluate(model, run, killed)
    assert content(killed) == content(whole)
    shutil.rmtree(tmp_path / "data")
    rescoring.rescore(killed)  # from its lines alone
    assert content(killed) == content(whole)
    evaluation.print_report(evaluation.load(whole)[0])
