"""Suites: read from YAML, run into folders that are gone on with, and compared with the published numbers."""

import json
import math

import pytest

from eval.commands.main import main
from eval.report import leaderboard, suite
from eval.run import suites
from eval.tasks import get
from tests.eval.tasks.published import fixtures

TEXT = """
name: ours
tables:
  - title: needles
    task: mm-niah:part=retrieval-text
    data: MM-NIAH
    measure: score
    published: {full: 0.5, "patch:4": [0.4, 0.6]}
    source: a table of ours
"""


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_of_the_project_names_tasks_and_methods_that_there_are(name):
    from eval.methods import parse_all

    for table in suites.read(name).tables:
        task = get(f"{table.task},data=DIR" if table.data and ":" in table.task else table.task)
        parse_all(table.methods)
        assert table.methods[:2] == ("full", "blind") and "2606.23581" in table.source
        if not table.data:
            assert not table.condition or any(each.startswith(table.condition) for each in task.conditions)


def test_the_orders_suite_meets_three_and_four_passages_in_every_order():
    task = get("orders:passages=3+4")
    outlines = task.outline((0,), 240)
    four = [outline for outline in outlines if outline.layout == "4 passages, one patch for all orders"]
    assert len(four) == 60 and len({outline.layout for outline in outlines}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title: needles", "titel: needles"), "unknown field 'titel'; did you mean title"),
        (("name: ours", "name: 3"), "name is 3; expected a text"),
        (("tables:", "table:"), "did you mean tables"),
        (("[0.4, 0.6]", "[0.4]"), r"published patch:4 is \[0.4\]; expected a number"),
        (("full: 0.5", "full: high"), "published full is 'high'"),
        (("measure: score", "limit: 0\n    measure: score"), "limit is 0"),
        (("measure: score", "seeds: [x]\n    measure: score"), "seeds is"),
        (("source: a table of ours", ""), "source is None"),
        (("name: ours", "name: !!python/object/apply:os.system [x]"), "is no YAML"),
        (("name: ours", "name: [" * 5000), "is no YAML"),
    ],
)
def test_what_is_no_suite_is_named(tmp_path, change, message):
    path = tmp_path / "suite.yaml"
    path.write_text(TEXT.replace(*change))
    with pytest.raises(suites.SuiteError, match=message):
        suites.read(path)


def test_a_suite_that_is_not_there_is_named():
    with pytest.raises(suites.SuiteError, match="did you mean mm-niah"):
        suites.read("mm-nia")


def test_a_paired_test_is_mcnemars_or_of_the_mean_by_contexts():
    own = [1.0] * 6 + [0.0] * 4
    other = [0.0] * 5 + [1.0] + [0.0] * 4
    names = [str(i) for i in range(10)]
    found = suite.paired(own, other, names)
    assert found["mean"] == 0.5 and found["p"] == 2 * 0.5**5 and found["test"] == "McNemar, exact"
    assert suite.paired(own, own, names)["p"] == 1.0
    clustered = suite.paired([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.25], ["a", "a", "b", "b"])
    # Differences by context: 1 and -0.25 about a mean of 0.1875 each; spread 2 * 0.625^2 * 2 / 1, error its root / 4.
    assert clustered["mean"] == 0.1875 and math.isclose(clustered["error"], 0.3125, abs_tol=1e-6)
    assert math.isclose(clustered["p"], math.erfc(0.6 / math.sqrt(2)), abs_tol=1e-6)
    assert suite.paired([0.5], [0.0], ["a"])["p"] is None


def test_a_suite_is_run_gone_on_with_and_shown_beside_the_published_numbers(tmp_path, capsys):
    """And its run enters a leaderboard; before it, a dry run says what it takes."""
    fixtures.mm_niah(tmp_path / "data/MM-NIAH")
    (tmp_path / "ours.yaml").write_text(TEXT)
    data = ["--data", str(tmp_path / "data"), "--model", "kamera-tiny-gqa"]
    command = ["eval", "suite", str(tmp_path / "ours.yaml"), *data, "--output", str(tmp_path / "out")]
    assert main(["eval", "suite", str(tmp_path / "ours.yaml"), "--model", "kamera-tiny-gqa"]) == 1
    assert "--data DIR, with MM-NIAH in it" in capsys.readouterr().err
    files = ["--json", str(tmp_path / "suite.json"), "--page", str(tmp_path / "suite.md")]
    assert main([*command, *files]) == 0
    (table,) = json.loads((tmp_path / "suite.json").read_text())["tables"]
    assert [row["method"] for row in table["rows"]] == ["full", "blind", "patch:4"]
    assert table["rows"][2]["published"] == [0.4, 0.6] and table["rows"][0]["n"] == 1
    assert "| patch:4 |" in (tmp_path / "suite.md").read_text()
    before = (tmp_path / "out/needles/timing.json").read_bytes()  # when each group was finished
    assert main([*command, *files]) == 0
    assert (tmp_path / "out/needles/timing.json").read_bytes() == before
    assert "0.4 – 0.6" in capsys.readouterr().out
    assert main(["eval", "leaderboard", str(tmp_path / "out"), "--page", str(tmp_path / "board.md")]) == 0
    board = (tmp_path / "board.md").read_text()
    assert "## mm-niah:part=retrieval-text" in board and str(tmp_path) not in board and "calculate_scores.py" in board
    runs = leaderboard.found([tmp_path / "out", tmp_path / "out/needles"])
    assert len(runs) == 1
    dry = ["eval", "mm-niah:part=retrieval-text", "--data", str(tmp_path / "data/MM-NIAH"), "--dry-run"]
    assert main([*dry, "--methods", "patch:4,cacheblend:0.15", "--json", str(tmp_path / "dry.json")]) == 0
    (found,) = json.loads((tmp_path / "dry.json").read_text())
    config = json.loads((tmp_path / "out/needles/contexts.jsonl").read_text().splitlines()[0])
    assert found["contexts"] == found["questions"] == 1 and found["chunks"] == 5 and found["tokens"] == config["tokens"]
    steps = found["flops"]
    assert steps["running again"] == pytest.approx(0.15 * steps["full prefill"]) and found["hours"] > 0
    assert math.isclose(steps["full prefill"], config["methods"]["full"]["flops"], rel_tol=0.2)


def test_a_folder_without_runs_is_no_leaderboard(tmp_path, capsys):
    assert main(["eval", "leaderboard", str(tmp_path)]) == 1
    assert "has no run of kamera eval" in capsys.readouterr().err
