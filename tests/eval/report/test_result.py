"""`eval.evaluate` and its result, the samples of a run, and methods that fail."""

import io
import json
import sys

import pytest
from rich.console import Console

import eval as evidence
from eval import Result, evaluate
from eval.commands.main import main
from eval.report import evaluation, samples
from eval.run.folder import OtherRunError
from eval.tasks import Context, Finding, Outline, Question
from models import load

METHODS = ["patch:12", "parts_that_fail:Fails", "parts_that_fail:Late"]
PARTS = """
class Fails:
    def prepare(self, batch): return None
    def apply(self, batch, windows, prepared): return 1 / 0
    def cost(self, batch, prepared): raise NotImplementedError

class Late(Fails):
    def apply(self, batch, windows, prepared): return batch.blind
    def cost(self, batch, prepared): raise ValueError("too dear\\nand more")
"""


class Moons:
    """Two texts and a question; a run of it lacks what one of its findings takes."""

    name = "moons"
    version = 1
    contexts = 2
    max_new_tokens = 2

    def outline(self, seeds, limit):
        return [Outline(f"{seed}/{i}", "two", seed) for seed in seeds for i in range(limit)]

    def draw(self, outline):
        return Context(["a red star. a blue moon.", "a pink tree."], [Question("what colour is the star?", ["red"])])

    def score(self, question, said):
        return {"exact": float(said.strip() in question.answers)}

    def findings(self, scores):
        yield Finding("it is read", f"{scores['methods']['full']['hops']['1']['exact']:.3f}", True)
        yield Finding("patches help", str(scores["methods"]["patch:7"]["eta"]), True)


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def result(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "parts_that_fail.py").write_text(PARTS)
    sys.path.append(str(folder))
    try:
        yield evaluate("binding", vlm, methods=METHODS, seeds=(0, 1), limit=1, batch=1, repeats=0, progress=False)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("parts_that_fail", None)


def test_a_result_says_what_was_measured(result):
    assert result.methods == ["full", "blind", "patch:12"] and result.path is None
    assert result.record["config"]["limit"] == 1 and result.record["config"]["task"] == "binding"
    assert len(result.samples) == 12
    table = {row["method"]: row for row in result.table()}
    assert list(table) == result.methods and result.scores["blind"] == {
        name: value for name, value in table["blind"].items() if name != "method"
    }
    right = [each["methods"]["blind"]["scores"]["accuracy"] for each in result.samples if each["hops"] == 2]
    assert table["blind"]["two hops accuracy"] == sum(right) / len(right)
    assert table["full"]["two hops accuracy"] == table["full"]["eta"] == 1 and table["full"]["ttft_ms"] is None
    assert 0 < table["patch:12"]["bytes_share"] < 1 and table["patch:12"]["eta"] > 0.9
    assert [finding.holds for finding in result.findings[:3]] == [True] * 3


def test_a_result_shows_itself(result):
    assert repr(result) == "<Result of binding on kamera-tiny-gqa: 2 contexts, 12 questions, full, blind, patch:12>"
    shown = str(result)
    assert max(len(line) for line in shown.partition("parts_that_fail")[0].splitlines()) <= 80
    assert (
        shown.startswith("binding on kamera-tiny-gqa: 2 contexts, 12 questions\nmethod ") and "What it costs" in shown
    )
    assert result._repr_html_().count("<tr>") == 4 and "<td>patch:12</td>" in result._repr_html_()
    console = Console(file=io.StringIO(), width=200)
    result.report(console=console)
    assert "Findings" in console.file.getvalue() and "By condition and hops" in console.file.getvalue()
    page = result.page()
    assert "## Figures" not in page and "kamera eval binding --model kamera-tiny-gqa" in page and "finished 20" in page


def test_a_method_that_fails_is_left_out_and_said(result):
    assert result.failed == {
        "parts_that_fail:Fails": "on context 0/plain/0: ZeroDivisionError: division by zero",
        "parts_that_fail:Late": "on context 0/plain/0: ValueError: too dear",
    }
    for shown in (str(result), result._repr_html_(), result.page()):
        assert "it failed on context 0/plain/0: ZeroDivisionError: division by zero" in shown
    assert all(sample["methods"].keys() == {"full", "blind", "patch:12"} for sample in result.samples)
    contexts = [json.loads(line) for line in result.files["contexts.jsonl"].splitlines()]
    assert [set(context.get("failed", ())) for context in contexts] == [
        set(METHODS[1:]),
        set(),
    ]  # it is not tried again


def test_the_command_says_that_a_method_failed(result, tmp_path, capsys, monkeypatch):
    folder = result.save(tmp_path / "run")
    assert main(["eval", "report", str(folder)]) == 0
    assert "parts_that_fail:Late is not in the tables: it failed on context" in capsys.readouterr().out
    assert main(["eval", "--config", str(folder / "run.toml"), "--model", "nothing"]) == 1
    assert "no model" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    given = ["--methods", METHODS[1], "--seeds", "0", "--limit", "1", "--repeats", "0", "--json", "run.json"]
    assert main(["eval", "binding", *given]) == 1
    shown = capsys.readouterr()
    assert "parts_that_fail:Fails failed; to try again, run it into another folder" in shown.err
    (own,) = (tmp_path / "out").iterdir()  # the run has a folder of its own, and the same command finds it again
    assert own.name.startswith("binding-kamera-tiny-gqa-") and f"The run is in out/{own.name}" in shown.out
    (record,) = json.loads((tmp_path / "run.json").read_text())
    assert list(record["scores"]["methods"]) == ["full", "blind"]
    before = (own / "samples.jsonl").read_bytes()
    assert main(["eval", "--config", str(own / "run.toml")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [own.name]
    assert (own / "samples.jsonl").read_bytes() == before


def test_a_result_is_saved_and_loaded(result, tmp_path):
    folder = result.save(tmp_path / "deep" / "run")
    assert {path.name for path in folder.iterdir()} == set(result.files) and len(result.files) == 5
    loaded = Result.load(str(folder))
    assert loaded.record == result.record and loaded.samples == result.samples and loaded.path == folder
    assert str(loaded) == str(result) and evaluation.load(folder) == [result.record]
    with pytest.raises(OtherRunError, match="not an empty folder"):
        result.save(folder)
    with pytest.raises(OtherRunError, match="has no results.json"):
        Result.load(tmp_path)
    with pytest.raises(OtherRunError, match="no folder of a run"):
        Result.load(tmp_path / "nowhere")


def test_samples_are_those_that_methods_answered_differently_or_wrong(result, tmp_path, capsys):
    wrong = [each for each in result.samples if each["methods"]["blind"]["said"] not in each["answers"]]
    assert wrong and [each["id"] for each in result.wrong("blind")] == [each["id"] for each in wrong]
    assert result.wrong("patch:12") == [] and {each["id"] for each in wrong} <= {
        each["id"] for each in result.different()
    }
    assert result.different("full") and all(
        each["methods"].keys() == {"full", "blind"} for each in result.different("full")
    )
    with pytest.raises(samples.UnknownMethodError, match="no method 'patch:4'; it has full, blind, patch:12"):
        result.different("patch:4")

    folder = str(result.save(tmp_path / "run"))
    written = tmp_path / "samples.json"
    assert (
        main(["eval", "samples", folder, "--wrong", "--method", "blind", "--limit", "1", "--json", str(written)]) == 0
    )
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert wrong[0]["question"] in shown and f"expected                  {wrong[0]['answers'][0]}\n" in shown
    assert f"{wrong[0]['methods']['blind']['said']}  (accuracy 0, KL " in shown and "patch:12" not in shown
    assert f"1 of {len(wrong)} questions answered wrong, of 12 in the run\n--limit {len(wrong)} shows" in shown
    records = json.loads(written.read_text())
    assert [each["id"] for each in records] == [each["id"] for each in wrong]
    assert records[0]["methods"]["blind"]["scores"] == {"accuracy": 0.0}
    assert main(["eval", "samples", folder, "--all"]) == 0
    assert "12 of 12 questions that were asked" in (shown := capsys.readouterr().out) and shown.count("expected") == 12
    assert main(["eval", "samples", folder, "--wrong", "--method", "patch:12"]) == 0
    assert "0 of 0 questions answered wrong, of 12 in the run\n--all shows every question" in capsys.readouterr().out


def test_a_task_may_be_an_object(vlm):
    result = evaluate(Moons(), vlm, methods="patch:4", seeds=3, limit=1, repeats=0, progress=lambda *_: None)
    assert result.record["config"]["task"] == "moons" and result.scores["full"]["exact"] == 1.0
    read, further = result.findings
    assert read.holds is True and further.measured == "not measured: the run has no 'patch:7'"
    for what in ("task", "model"):
        assert f"\n# The {what} was given as an object in Python" in result.files["run.toml"].decode()
    console = Console(file=io.StringIO(), width=80)
    result.report(console=console)
    assert "it is read" in console.file.getvalue() and "it is read" in result.page()
    assert evaluate(Moons, vlm, methods=[], seeds=3, limit=1, repeats=0, progress=False).methods == ["full", "blind"]


def test_what_is_no_task_is_refused(vlm):
    class Binding(Moons):
        name = "binding"

    with pytest.raises(ValueError, match="named 'binding', as a built-in one"):
        evaluate(Binding(), vlm)
    with pytest.raises(ValueError, match="what is to be evaluated is of type int, and no task"):
        evaluate(3, vlm)
    with pytest.raises(ValueError, match="did you mean binding"):
        evaluate("bindin", vlm)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        evidence.evaluat  # noqa: B018
