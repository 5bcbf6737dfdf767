"""The task and the method that the documentation shows, from a folder on the path, through the command line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from eval.commands.main import main
from eval.methods import parse

ROOT = Path(__file__).parents[3]
TASK = "my_task:Colours"
METHOD = "my_method:trailing:2"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The files that the pages say to save."""
    folder = tmp_path / "path"
    folder.mkdir()
    for page in ("task", "method"):
        text = (ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            name = re.match(r"# (\w+\.py)\n", code)
            assert name is not None
            (folder / name[1]).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("my_task", "my_method"):
        sys.modules.pop(name, None)


def test_a_task_and_a_method_of_another_package(package, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    given = ["--seeds", "0,1", "--limit", "2", "--batch", "2", "--output", str(run)]
    assert main(["eval", TASK, "--methods", f"full,blind,patch:4,{METHOD}", *given]) == 0
    shown = capsys.readouterr().out
    assert "f1" in shown and "exact match" in shown and METHOD in shown
    assert "blind reuse keeps 0.9 of full prefill's F1" in shown and "hop" not in shown.partition("Findings")[2]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * 2 * 4
    assert all(sample["methods"].keys() == {"full", "blind", "patch:4", METHOD} for sample in samples)
    right = sum(sample["methods"]["full"]["said"] in sample["answers"] for sample in samples)
    assert right >= 0.9 * len(samples)  # it is the generated text without its end-of-turn token
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert scores["methods"]["full"]["hops"]["1"]["exact match"] == right / len(samples)
    assert 0 < scores["methods"][METHOD]["cost"]["recomputed_share"] < 1

    before = (run / "results.json").read_bytes()
    monkeypatch.setattr("models.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["eval", TASK, "--output", str(run), "--rescore"]) == 0
    assert (run / "results.json").read_bytes() == before
    for sample in samples:
        sample["methods"]["blind"]["said"] = ""
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    page = tmp_path / "page.md"
    assert main(["eval", TASK, "--output", str(run), "--rescore"]) == 0
    assert main(["eval", "report", str(run), "--figures", str(tmp_path / "figures"), "--page", str(page)]) == 0
    assert "0.000 of 1.000: does not hold" in page.read_text() and METHOD in page.read_text()
    assert "embedded" not in page.read_text() and "paper" not in page.read_text()  # it is the user's run
    assert "two hops" not in page.read_text()
    assert len(list((tmp_path / "figures").iterdir())) == 5

    shutil.rmtree(package)
    for name in ("my_task", "my_method"):
        monkeypatch.delitem(sys.modules, name)
    capsys.readouterr()
    assert main(["eval", "report", str(run), "--page", str(page)]) == 0  # tables need no task
    assert "not shown, as the task 'my_task:Colours' needs" in capsys.readouterr().out
    assert "## Findings" not in page.read_text()
    assert main(["eval", TASK, "--output", str(run), "--rescore"]) == 1
    assert "no module my_task" in capsys.readouterr().err


def test_the_example_method_stands_behind_others(package):
    assert len(parse(f"patch:4+{METHOD}").parts) == 2
