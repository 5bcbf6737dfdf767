"""The page of a language model on real text: it is what was measured, and it is made from runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import tasks
from eval.commands import real_text as command
from eval.commands.real_text import CORPORA, PLANS, Plan
from eval.methods import parse_all
from eval.report import real_text
from eval.tasks.text import corpus
from eval.tiny.vocabulary import VOCABULARY

ROOT = Path(__file__).parents[3]
MODEL = "kamera-tiny-gqa"


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.task)
def test_what_is_planned_can_be_run(plan):
    """Tasks, their settings and methods exist, and the parts of the page are conditions of theirs."""
    parse_all(plan.methods)
    for name in CORPORA:
        task = tasks.get(plan.named(name))
        assert task.corpus == name and plan.limits[name] >= 1
        assert plan.folder(name).endswith(f"-{name}") and not set(plan.folder(name)) & set(":=,/")
    for _, _, measure in real_text.parts(task.name, ["c"]):
        assert measure in ("accuracy", "so far", "nll", "choice")


@pytest.fixture
def two_corpora(monkeypatch):
    """Two corpora of words that the model has, and few contexts of three tasks on them."""
    words = [word for word in VOCABULARY if word.isalpha()]

    def texts(seed):
        rng = np.random.default_rng(seed)
        return ("\n\n".join(" ".join(rng.choice(words, 9)) for _ in range(60)) for _ in range(2))

    made_up = {name: (lambda seed=seed: texts(seed), dict) for seed, name in enumerate(("one", "two"))}
    monkeypatch.setattr(corpus, "BUILTIN", made_up)
    monkeypatch.setattr(command, "CORPORA", tuple(made_up))
    plans = (
        Plan("quotation:tokens=36", ("full", "blind", "patch:1"), {"one": 2, "two": 1}),
        Plan("induction:tokens=6,documents=2", ("full", "blind", "patch:2"), {"one": 2, "two": 2}, seeds=(0,)),
        Plan("slide:tokens=16,passages=6,reference=history", ("full", "blind"), {"one": 3, "two": 3}, seeds=(0,)),
    )
    monkeypatch.setattr(command, "PLANS", plans)
    return plans


def test_the_page_is_made_from_runs_and_goes_on_where_it_was_stopped(two_corpora, tmp_path, capsys):
    run = ["--model", MODEL, "--output", str(tmp_path / "runs")]
    files = ["--json", str(tmp_path / "real.json"), "--page", str(tmp_path / "real.md")]
    command.main([*run, "--corpora", "one", *files])
    partly = json.loads((tmp_path / "real.json").read_text(encoding="utf-8"))
    assert [record["corpus"] for record in partly["runs"]] == ["one"] * 3
    assert partly["missing"] == [plan.named("two") for plan in two_corpora]
    assert f"Not measured yet: `{two_corpora[0].named('two')}`, " in (tmp_path / "real.md").read_text(encoding="utf-8")
    command.main([*run, *files])
    assert "one: " not in capsys.readouterr().err.rpartition("two: ")[2]
    measured = json.loads((tmp_path / "real.json").read_text(encoding="utf-8"))
    records = measured["runs"]
    assert measured["missing"] == []
    assert [(record["task"], record["corpus"]) for record in records] == [
        (name, each) for name in ("quotation", "induction", "slide") for each in ("one", "two")
    ]
    assert records[::2] == partly["runs"]
    page = (tmp_path / "real.md").read_text(encoding="utf-8")
    assert page == real_text.page(measured) and "Not measured yet" not in page
    assert "`one` 6 contexts with 96 questions, data seeds 0, 1, 2; `two` 3 contexts with 48 questions" in page
    quotation, induction, slide = (page.split("\n## ")[i] for i in (1, 2, 3))
    assert "**next token: accuracy** (contexts: 6 of `one`, 3 of `two`)\n" in quotation
    assert "| method | cost | one: accuracy | KL | η | two: accuracy | KL | η |" in quotation
    choice = induction.partition("**which of the texts: choice**")[2].partition("**")[0]
    assert "| `patch:2` | " in choice and " of bytes |" in choice and "the history reference" in slide
    (row,) = (each for each in records[0]["rows"] if each["method"] == "blind" and each["what"] == "next token")
    written = (tmp_path / "runs/quotation-tokens-36-one/samples.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    own = [line for line in lines if line["condition"] == "next tokens 01"]
    assert row["questions"] == len(own) == 6
    assert row["kl"][0] == pytest.approx(np.mean([line["methods"]["blind"]["kl"] for line in own]), rel=1e-4)
    right = [line["methods"]["blind"]["token"] == line["next_token"] for line in own]
    assert row["score"][0] == pytest.approx(np.mean(right), abs=1e-5) and row["eta"][0] == 0
    slid = {each["method"]: each for each in records[4]["rows"]}
    assert slid["full"]["kl"][0] > 0  # the reference is not what is in the window now


def test_the_page_is_what_was_measured():
    """Nothing is typed by hand; and the file stays small."""
    path = ROOT / "docs/results/real-text.json"
    measured = json.loads(path.read_text(encoding="utf-8"))
    records = measured["runs"]
    assert (ROOT / "docs/real-text.md").read_text(encoding="utf-8") == real_text.page(measured)
    assert len(records) + len(measured["missing"]) == len(PLANS) * len(CORPORA)
    assert path.stat().st_size < 300_000
    limits = {(*plan.task.partition(":")[::2], name): plan.limits[name] for plan in PLANS for name in CORPORA}
    for record in records:
        assert record["limit"] == limits[record["task"], record["settings"], record["corpus"]]


def test_what_does_not_hold_is_named_first():
    found = [{"claim": "it is so", "measured": "0.1", "holds": each} for each in (True, False, None)]
    record = {
        "task": "quotation",
        "settings": "",
        "corpus": "one",
        "model": "m",
        "seeds": [0],
        "contexts": 1,
        "questions": 1,
        "costs": {"full": {"bytes_share": 0.0, "recomputed_share": 2.0}},
        "rows": [
            {"what": "w", "measure": "nll", "method": "full", "contexts": 1, "questions": 1}
            | {"score": [2.0, None], "kl": [0.0, None], "eta": [None, None]}
        ],
        "findings": found,
    }
    opening, section = real_text.page({"runs": [record, {**record, "corpus": "two", "rows": []}], "missing": []}).split(
        "\n## "
    )
    assert "`one`: 1 findings hold, 1 do not." in opening and "quotation: it is so: 0.1" in opening
    assert "**w: nll** (contexts: 1 of `one`, 0 of `two`)" in section
    assert "| `full` | all tokens | 2.000 | 0.0000 | – | – | – | – |" in section
