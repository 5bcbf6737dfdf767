"""The folder of a run: one process at a time, nothing twice, and what is damaged is named and left as it is."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eval.commands.main import main
from eval.report import evaluation
from eval.run import folder as module
from eval.run import runner, scores
from eval.run.folder import (
    CONTEXTS,
    LOCK,
    RESULTS,
    SAMPLES,
    TIMING,
    DuplicateError,
    OtherRunError,
    RunFolder,
    RunningError,
    alone,
)
from eval.tasks import get
from tests.eval import made_up

ROOT = Path(__file__).parents[3]
CONFIG = {"task": "binding", "model": "made-up", "methods": list(made_up.METHODS), "seeds": [0], "limit": 12}


@pytest.fixture
def run(tmp_path):
    """A finished run of twelve made-up contexts, in groups of three."""
    path = tmp_path / "run"
    config = CONFIG | {"task_version": get("binding").version}
    contexts, samples = made_up.make(np.random.default_rng(0))
    made = RunFolder.open(path, {"config": config, "versions": {}})
    for first in range(0, 12, 3):
        made.append(contexts[first : first + 3], samples[4 * first : 4 * first + 12])
    made.finish(scores.score(get("binding"), config["methods"], contexts, samples))
    return path


GROUPS = [[str(each) for each in range(first, first + 3)] for first in range(0, 12, 3)]


def resumed(path):
    identity = {name: json.loads((path / RESULTS).read_text())[name] for name in ("config", "versions")}
    with RunFolder.opened(path, identity) as opened:
        return opened.resume(GROUPS)


def content(path):
    return {each.name: each.read_bytes() for each in path.iterdir() if each.name != LOCK}


def test_a_second_process_says_who_runs_there(run):
    before = content(run)
    with alone(run):
        code = (
            "import sys; from pathlib import Path; from eval.run.folder import *; from eval.run import runner\n"
            "for call in (lambda: runner.rescore(Path(sys.argv[1])), lambda: RunFolder.opened(Path(sys.argv[1]), {})"
            ".__enter__()):\n"
            "    try: call()\n"
            "    except RunningError as error: print(error)\n"
        )
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, str(run)], env=environment, cwd=ROOT, capture_output=True, text=True
        )
    expected = f"another kamera eval runs in {run}: process {os.getpid()}; wait until it is done, or give --output"
    assert [line[: len(expected)] for line in done.stdout.splitlines()] == [expected] * 2, done.stderr
    assert content(run) == before and resumed(run) == 4


def test_the_command_says_who_runs_there_before_it_loads_a_model(run, monkeypatch, capsys):
    monkeypatch.setattr("models.load", lambda *_: pytest.fail("a model was loaded"))
    with alone(run):
        for more in ([], ["--rescore"]):
            assert main(["eval", "binding", "--output", str(run), *more]) == 1
            assert capsys.readouterr().err.startswith(
                f"kamera: another kamera eval runs in {run}: process {os.getpid()};"
            )


def test_two_at_once_write_everything_once(run, tmp_path):
    """Both begin in the same new folder: one writes all groups, the other is refused."""
    contexts = [json.loads(line) for line in (run / CONTEXTS).read_text().splitlines()]
    samples = [json.loads(line) for line in (run / SAMPLES).read_text().splitlines()]
    identity = {"config": {"seeds": [1]}}
    start = threading.Barrier(2)
    written = threading.Barrier(2)
    outcomes = []

    def evaluate():
        start.wait()
        try:
            with RunFolder.opened(tmp_path / "new", identity) as opened:
                assert opened.resume(GROUPS) == 0
                for first in range(0, 12, 3):
                    opened.append(contexts[first : first + 3], samples[4 * first : 4 * first + 12])
                written.wait()
            outcomes.append("all")
        except RunningError as error:
            outcomes.append(f"refused by process {os.getpid()}" in f"refused by {str(error).partition(': ')[2]}")
            written.wait()

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"all", True}
    assert (tmp_path / "new" / SAMPLES).read_bytes() == (run / SAMPLES).read_bytes()


@pytest.mark.parametrize("name", [CONTEXTS, SAMPLES])
@pytest.mark.parametrize("times", [1, 48])
def test_what_is_there_twice_is_never_reported(run, name, times):
    lines = (run / name).read_bytes().splitlines(keepends=True)
    (run / name).write_bytes(b"".join([*lines, *lines[:times]]))
    before = content(run)
    for call in (resumed, runner.rescore, evaluation.load):
        with pytest.raises(DuplicateError, match=r"has '0.*' twice, in lines 1 and \d+: .* into an empty folder"):
            call(run)
    assert content(run) == before


@pytest.mark.parametrize("name", [CONTEXTS, SAMPLES])
@pytest.mark.parametrize("damage", [b"\n", b"{\n", b"[]\n", b"\xff\n", b'{"id": 3}\n', b"[" * 9999 + b"\n", b"\0" * 99])
def test_a_damaged_line_is_named_and_nothing_is_deleted(run, name, damage):
    lines = (run / name).read_bytes().splitlines(keepends=True)
    (run / name).write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    before = content(run)
    for call in (resumed, runner.rescore, evaluation.load):
        with pytest.raises(OtherRunError, match=rf"line 5 of .*{name} is damaged"):
            call(run)
    assert content(run) == before


@pytest.mark.parametrize("left", [b'{"id": "48', b"\0" * 40, b"\xff\xfe", b'{"id": "x"', b'{"half": \n'])
def test_a_line_that_a_killed_writer_left_is_written_again(run, left):
    whole = content(run)
    (run / SAMPLES).write_bytes(b"".join(whole[SAMPLES].splitlines(keepends=True)[:40]) + left)
    assert resumed(run) == 3
    assert (run / SAMPLES).read_bytes() == b"".join(whole[SAMPLES].splitlines(keepends=True)[:36])
    assert (run / CONTEXTS).read_bytes() == b"".join(whole[CONTEXTS].splitlines(keepends=True)[:9])


@pytest.mark.parametrize("name", [RESULTS, TIMING, CONTEXTS, SAMPLES])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "list", "empty", "deep", "binary"])
def test_what_is_no_file_of_a_run_is_named(run, tmp_path, name, kind):
    file = run / name
    file.unlink(missing_ok=True)
    (tmp_path / "outside").write_text("keep me")
    making = {
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "link": lambda: file.symlink_to(tmp_path / "outside"),
        "list": lambda: file.write_text("[1]\n"),
        "empty": lambda: file.write_text(""),
        "deep": lambda: file.write_text("[" * 10**5),
        "binary": lambda: file.write_bytes(b"\xff" * 99),
    }
    making[kind]()
    with pytest.raises((OtherRunError, ValueError)) as caught:
        evaluation.load(run)
    assert isinstance(caught.value, OtherRunError) or "NotRegular" in type(caught.value).__name__
    assert (tmp_path / "outside").read_text() == "keep me"


def test_a_folder_that_is_moved_away_is_named(run, tmp_path):
    identity = {name: json.loads((run / RESULTS).read_text())[name] for name in ("config", "versions")}
    with RunFolder.opened(run, identity) as opened:
        run.rename(tmp_path / "away")
        with pytest.raises(OtherRunError, match="was moved or removed while this run wrote to it"):
            opened.append([], [])
        run.mkdir()  # another run's
        with pytest.raises(OtherRunError, match="was moved or removed"):
            opened.append([], [])
    assert list(run.iterdir()) == []


def test_what_was_killed_while_it_began_goes_on(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{RESULTS}.partial").write_text("{")
    (tmp_path / "run" / LOCK).touch()
    assert RunFolder.open(tmp_path / "run", {"config": {}}).resume(GROUPS) == 0
    assert module.read_json(tmp_path / "run" / RESULTS) == {"config": {}, "complete": False}
