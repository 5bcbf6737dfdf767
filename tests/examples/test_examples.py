"""The examples run as they stand, and answer what the pages say."""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANSWERS = dict(re.findall(r"- (what .*\?) (\w+)", (ROOT / "examples/pages/questions.md").read_text()))


def run(name, capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_questions_about_a_pdf(capsys, monkeypatch):
    shown = run("pdf_questions", capsys, monkeypatch)
    asked = dict(re.findall(r"^(what .*\?) (\w+)  \(", shown, re.MULTILINE))
    assert len(asked) == 3 and asked.items() <= ANSWERS.items()
    assert len(re.findall(r"^page \d: \d+ tokens", shown, re.MULTILINE)) == 3


def test_a_step_of_an_agent(capsys, monkeypatch):
    shown = run("agent_step", capsys, monkeypatch)
    asked = re.findall(r"^(what .*\?) (\w+)  \((\w+)\.png, \d+% sure\)$", shown, re.MULTILINE)
    assert len(asked) == 4 and {(question, answer) for question, answer, _ in asked} <= ANSWERS.items()
    assert [page for _, _, page in asked] == ["first", "second", "third", "first"]
    assert "compiled 3 times, for [0, 1, 2] pages in view" in shown and "('', '')" in shown


def test_methods_on_a_folder_of_images(capsys, monkeypatch, tmp_path):
    for place, name in enumerate(("first", "second", "third")):
        (tmp_path / f"{place}.png").write_bytes((ROOT / f"examples/pages/{name}.png").read_bytes())
    questions = [question for question in ANSWERS if "flower" in question or "star" in question]
    (tmp_path / "questions.txt").write_text("\n".join(questions))
    arguments = (tmp_path, "--questions", tmp_path / "questions.txt", "--ranks", 12)
    rows = [line.split() for line in run("compare_methods", capsys, monkeypatch, *arguments).splitlines()]
    assert rows[0][:3] == ["full", "blind", "patch:12"]
    for full, _, patched, *question in rows[1:3]:
        assert full == patched == ANSWERS[" ".join(question)]
    full, blind, patched = map(float, rows[3][:3])
    assert full == 0 and patched < 0.05 < blind


def test_a_backbone_of_ones_own(capsys, monkeypatch):
    shown = run("own_backbone", capsys, monkeypatch)
    patched, blind = map(float, re.findall(r"(\d\.\de-\d+)", shown))
    assert 0 <= patched < blind / 10
    lines = (ROOT / "examples/own_backbone.py").read_text().splitlines()
    assert len(lines) <= 60


def test_an_agent_says_what_it_reused_and_why(capsys, monkeypatch, tmp_path):
    shown = run("agent", capsys, monkeypatch, "--turns", 12)
    counts = dict(re.findall(r"^\| (?:encoded, )?([a-z -]+) \| (\d+) \|", shown, re.MULTILINE))
    assert sum(map(int, re.findall(r"^\| [a-z, -]+ \| (\d+) \|", shown, re.MULTILINE))) == 12
    assert int(counts["nothing"]) > 0 and int(counts["fresh patch"]) > 0
    assert len(re.findall(r"^  document +\d+: [a-z -]+: \w", shown, re.MULTILINE)) == 10 and "seen=12" in shown
