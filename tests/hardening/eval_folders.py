"""Folders of `kamera eval` that are damaged or shared: reported as they were, resumed to the same end, or refused.

Nothing is run: the lines are made up. A case damages a folder, reports it and scores it, and then goes on with the run
as a process that was killed would. What is reported is what the undamaged run says, or a value that was changed in a
line (lines have no digests); never a sample twice, and never less than all.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from eval.report import evaluation
from eval.run import runner, scores
from eval.run.folder import CONTEXTS, LOCK, RESULTS, SAMPLES, TIMING, OtherRunError, RunFolder, RunningError, expected
from eval.tasks import get
from kamera_jax.errors import NotRegularError
from tests.eval import made_up

NAMED = (OtherRunError, NotRegularError, FileNotFoundError)
NAMES = (RESULTS, CONTEXTS, SAMPLES, TIMING)
DAMAGE = ("cut", "flip", "drop-line", "double-line", "double-all", "swap", "garbage", "nul", "not-text", "list", "deep")
INSTEAD = ("missing", "folder", "pipe", "link", "device", "empty")
SHARED = ("other-process", "two-writers", "interleaved", "moved", "foreign", "begun", "file-in-its-place", "partial")
GROUPS = [[str(each) for each in range(first, first + 3)] for first in range(0, 12, 3)]
CONFIG = {"task": "binding", "model": "made-up", "methods": list(made_up.METHODS), "seeds": [0], "limit": 12}
IDENTITY = {"config": CONFIG | {"task_version": get("binding").version}, "versions": {}}


def cases(folder, count, seed):
    """Every damage of every file, and what is shared; then damage again, at other places."""
    every = [(damage, name) for name in NAMES for damage in (*DAMAGE, *INSTEAD)]
    every += [(shared, SAMPLES) for shared in SHARED]
    order = np.random.default_rng(seed).permutation(len(every))
    return [(*every[order[number % len(every)]], number) for number in range(count)]


def written(path, groups=4):
    """A run of made-up contexts, up to a group; finished where it is the last."""
    contexts, samples = made_up.make(np.random.default_rng(0))
    made = RunFolder.open(path, IDENTITY)
    for first in range(0, 3 * groups, 3):
        made.append(contexts[first : first + 3], samples[4 * first : 4 * first + 12])
    if groups == 4:
        made.finish(scores.score(get("binding"), CONFIG["methods"], contexts, samples))
        times = {"chunks": 3, "contexts": 3, "ttft_s": dict.fromkeys(CONFIG["methods"], 0.5)}
        (path / TIMING).write_text(json.dumps({str(number): times for number in range(4)}))
    return contexts, samples


def judge(case, folder):
    """What was tried, where it went wrong."""
    fault, name, seed = case
    contexts, samples = written(folder / "good")
    good = evaluation.load(folder / "good")
    path = folder / "run"
    outside = folder / "outside"
    outside.write_text("keep me")
    if fault in SHARED:
        return _shared(fault, path, contexts, samples)
    written(path)
    changed = _damage(fault, path / name, np.random.default_rng(seed), outside)
    before = _content(path)
    verdict = _reported(path, good, may_differ=changed) or _scored(path, good, changed, before)
    verdict = verdict or _resumed(path, contexts, samples, name)
    return verdict or ("" if outside.read_text() == "keep me" else "outside: a link was written through")


def _damage(fault, file, rng, outside):
    """Damage a file; returns whether a value in it may have changed so that nothing can tell."""
    content = bytearray(file.read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    at = int(rng.integers(len(content)))
    row = int(rng.integers(len(lines)))
    if fault in INSTEAD:
        file.unlink()
        {
            "missing": lambda: None,
            "folder": file.mkdir,
            "pipe": lambda: os.mkfifo(file),
            "link": lambda: file.symlink_to(outside),
            "device": lambda: file.symlink_to("/dev/zero"),
            "empty": file.touch,
        }[fault]()
        return False
    other = (row + 1) % len(lines)
    made = {
        "cut": lambda: content[:at],
        "flip": lambda: content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :],
        "drop-line": lambda: b"".join(lines[:row] + lines[row + 1 :]),
        "double-line": lambda: b"".join(lines[: row + 1] + lines[row:]),
        "double-all": lambda: content * 2,
        "swap": lambda: b"".join(lines[{row: other, other: row}.get(number, number)] for number in range(len(lines))),
        "garbage": lambda: b"".join([*lines[:row], b"{garbage\n", *lines[row + 1 :]]),
        "nul": lambda: content[:at] + bytes(len(content) - at),
        "not-text": lambda: content[:at] + b"\xff\xfe" + content[at:],
        "list": lambda: b"[[1], 2]\n",
        "deep": lambda: b"[" * 10**5 + b"\n",
    }
    file.write_bytes(bytes(made[fault]()))
    return fault in ("flip", "swap") or (fault in ("drop-line", "double-line") and file.suffix == ".json")


def _content(path):
    files = [each for each in path.iterdir() if each.is_file() and each.name != LOCK and not each.is_symlink()]
    return {each.name: each.read_bytes() for each in files}


def _reported(path, good, may_differ):
    try:
        loaded = evaluation.load(path)
        with contextlib.redirect_stdout(io.StringIO()), expected(path):  # as the command does
            evaluation.print_report(loaded[0])
    except NAMED as error:
        return "" if str(error) else "unnamed: no message"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return "" if may_differ and isinstance(error, ValueError) else f"unnamed: report: {error!r}"
    if loaded != good and not may_differ and (path / TIMING).exists():
        return "wrong: another report"
    return ""


def _scored(path, good, changed, before):
    try:
        result = runner.rescore(path)
    except (*NAMED, ValueError) as error:
        named = isinstance(error, NAMED) or "run that was stopped" in str(error) or "kamera eval" in str(error)
        if not named and not changed:
            return f"unnamed: rescore: {error!r}"
        return "" if _content(path) == before else "lost: a refused folder was changed"
    if result["scores"] != good[0]["scores"] and not changed:
        return "wrong: other scores"
    return ""


def _resumed(path, contexts, samples, name):
    """Go on as a process that was killed: what is not there is written again."""
    try:
        with RunFolder.opened(path, IDENTITY) as opened:
            done = opened.resume(GROUPS)
            for number in range(done, 4):
                first = 3 * number
                opened.append(contexts[first : first + 3], samples[4 * first : 4 * first + 12])
    except NAMED as error:
        return "" if str(error) else "unnamed: no message"
    there = [json.loads(line)["id"] for line in (path / SAMPLES).read_bytes().splitlines()]
    if there != [sample["id"] for sample in samples]:
        return f"wrong: {len(there)} samples, {len(set(there))} different"
    return ""


WAITING = """
import fcntl, os, platform, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(os.getpid(), platform.node(), file=file, flush=True)
    print("there", flush=True)
    sys.stdin.read()
"""
"""What locks a file as the library's locks do, without importing JAX."""


def _shared(fault, path, contexts, samples):
    if fault == "other-process":
        return _other_process(path, contexts, samples)
    if fault == "moved":
        with RunFolder.opened(path, IDENTITY) as opened:
            path.rename(path.with_name("away"))
            written(path, groups=1)
            before = _content(path)
            try:
                opened.append(contexts[:3], samples[:12])
            except OtherRunError:
                return "" if _content(path) == before else "wrong: written to another run"
            return "wrong: written to another run"
    if fault == "foreign":
        path.mkdir()
        (path / "notes.txt").write_text("keep me")
        verdict = _refused(path, contexts, samples)
        return verdict or ("" if [each.name for each in path.iterdir()] == ["notes.txt"] else "outside: changed")
    if fault == "file-in-its-place":
        path.write_text("keep me")
        return _refused(path, contexts, samples) or ("" if path.read_text() == "keep me" else "outside: changed")
    if fault in ("begun", "partial"):
        path.mkdir()
        (path / (LOCK if fault == "begun" else f"{RESULTS}.partial")).touch()
        return _resumed(path, contexts, samples, SAMPLES)
    written(path, groups=3)
    lines = (path / SAMPLES).read_bytes().splitlines(keepends=True)
    if fault == "two-writers":
        (path / SAMPLES).write_bytes(b"".join(lines[:24] * 2))
    else:
        (path / SAMPLES).write_bytes(b"".join(line for pair in zip(lines, lines, strict=True) for line in pair))
    before = _content(path)
    verdict = _refused(path, contexts, samples)
    return verdict or ("" if _content(path) == before else "lost: lines were deleted")


def _refused(path, contexts, samples):
    try:
        with RunFolder.opened(path, IDENTITY) as opened:
            opened.resume(GROUPS)
    except OtherRunError as error:
        return "" if str(error) else "unnamed: no message"
    return "wrong: not refused"


def _other_process(path, contexts, samples):
    written(path, groups=2)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(path / LOCK)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    try:
        with RunFolder.opened(path, IDENTITY):
            return "wrong: two processes write"
    except RunningError as error:
        if f"process {process.pid}" not in str(error):
            return f"unnamed: {error}"
    finally:
        process.kill()
        process.wait()
    return _resumed(path, contexts, samples, SAMPLES)
