"""The how-tos, followed to the letter: the files that they say to save, and the commands that they say to run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.commands.eval_command import read_config
from tests.xla_flags import FLAGS

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'--8<-- "(?P<path>.*)"\n')


def steps(page):
    """In order: ("save", name, text) and ("run", command) of a page."""
    for block in BLOCK.finditer((ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")):
        text = block["text"]
        if included := INCLUDED.fullmatch(text):
            yield "save", Path(included["path"]).name, (ROOT / included["path"]).read_text(encoding="utf-8")
        elif named := re.match(r"# (\w+\.py)\n", text):
            yield "save", named[1], text
        elif block["kind"] == "":
            yield from (("run", line) for line in text.splitlines())


@pytest.fixture
def follow(tmp_path):
    """Follows a page in an empty folder; returns by command its exit status and what it printed."""
    installed = tmp_path / "bin"
    installed.mkdir()
    script = installed / "kamera"  # as pip writes it: the folder of the script is on Python's path, the current one not
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom eval.commands.main import main\nsys.exit(main())\n", encoding="utf-8"
    )
    script.chmod(0o755)
    (installed / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    (installed / "python").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{installed}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "COLUMNS": "80",
    }
    folder = tmp_path / "empty"
    folder.mkdir()

    def follow(page):
        printed = {}
        for kind, *what in steps(page):
            if kind == "save":
                (folder / what[0]).write_text(what[1], encoding="utf-8")
                continue
            (line,) = what
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
            printed[line] = done.stdout
        return printed

    follow.folder = folder
    return follow


def test_a_task(follow):
    printed = follow("task")
    ran, reported, sampled, rescored, again, in_python = printed.values()
    assert "my_task:Colours on kamera-tiny-gqa: 18 contexts, 72 questions" in ran and ran.startswith(reported.rstrip())
    assert "exact match" in reported and "blind reuse keeps 0.9 of full prefill's F1" in reported
    assert ": holds" in reported and "nan" not in reported
    assert len(list((follow.folder / "out/figures").iterdir())) == 5
    page = (follow.folder / "out/report.md").read_text(encoding="utf-8")
    assert "kamera eval my_task:Colours --model kamera-tiny-gqa" in page and "(figures/" in page
    assert sampled.count("expected") == 3 == sampled.count("patch:12  ") and "3 of 72 questions" in sampled
    assert reported in rescored
    assert "patch:4" in again and "patch:12" not in again.partition("Findings")[0]
    assert (follow.folder / "out/smaller/run.toml").read_text() != (follow.folder / "out/run/run.toml").read_text()
    assert "colours on" not in again and re.search(r"^0\.\d+ \[|^1\.0 \[True\]", in_python, re.MULTILINE)


def test_a_method(follow):
    ran, sampled = follow("method").values()
    assert re.search(r"^my_method:trailing:8 +\d\.\d{3}", ran, re.MULTILINE)
    assert "answered wrong, of" in sampled
    lines = (follow.folder / "out/run/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("my_method:trailing:8" in json.loads(line)["methods"] for line in lines)


def test_a_backbone(follow):
    own, checked, evaluated = follow("backbone").values()
    patched, blind = map(float, re.findall(r"(\d\.\de-\d+)", own))
    assert patched < blind / 10
    moved, whole = map(float, re.findall(r"^(?:moved|patched): (\S+)", checked, re.MULTILINE))
    assert moved <= 1e-5 and whole <= 1e-5 and "<Fidelity ok=" in checked
    kl = {
        name: float(kl) for name, kl in re.findall(r"^(blind|patch:\d+) +\S+ ± \S+ +(\d\.\d+)", evaluated, re.MULTILINE)
    }
    assert kl["blind"] > kl["patch:4"] > kl["patch:12"] >= 0
    assert "epic:4 is not in the tables: it failed on context" in evaluated and "fills_slots" in evaluated
    assert len((follow.folder / "own_backbone.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_what_the_page_on_tasks_shows_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    (shown,) = [block["text"] for block in BLOCK.finditer(text) if block["kind"] == "python"]
    (toml,) = [block["text"] for block in BLOCK.finditer(text) if block["kind"] == "toml"]
    (tmp_path / "run.toml").write_text(toml, encoding="utf-8")
    read = read_config(tmp_path / "run.toml")
    assert read["task"] == "continuation:tokens=128" and read["methods"] == "full,blind,patch:10%"
    monkeypatch.chdir(tmp_path)
    exec(compile(shown, "docs/tasks.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "binding on kamera-tiny-gqa: 2 contexts, 12 questions" in printed and "'blind': " in printed
    assert "<Result of binding on kamera-tiny-gqa" in printed and (tmp_path / "out/kept/results.json").is_file()


@pytest.mark.parametrize(("page", "count"), [("task", 6), ("method", 2), ("backbone", 3)])
def test_pages_say_what_to_run(page, count):
    assert sum(kind == "run" for kind, *_ in steps(page)) == count
