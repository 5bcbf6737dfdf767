"""The harness itself: what goes wrong is counted, by kind, and a process that dies costs one case."""

import os
import time

import pytest

from benchmarks.reliability_page import KINDS, page
from tests.hardening import faults

HERE = "tests.hardening.test_faults"
WRONG = ("wrong: not 1", "an error", "dead", "")


def cases(folder, count, seed):
    return WRONG[:count]


def judge(case, folder):
    assert folder.is_dir() and not any(folder.iterdir())
    if case == "an error":
        raise RuntimeError("no name")
    if case == "dead":
        os._exit(3)
    return case


def test_failures_are_counted():
    found = faults.run(HERE, 4)
    assert found.tried == 4
    assert {name: count for name, count in found.failed.items() if count} == {"wrong": 1, "unnamed": 2}
    assert len(found.failures) == 3 and "RuntimeError: no name" in found.failures[1] and "died" in found.failures[2]
    assert 0 < found.peak_bytes < faults.PEAK_BYTES


@pytest.mark.parametrize(
    ("seconds", "peak", "kind"), [(11.0, 0, "slow"), (0.1, 3 * 2**30, "large"), (9.0, 2**30, None)]
)
def test_bounds(seconds, peak, kind):
    found = faults.Found()
    found.add("a case", "", seconds, peak)
    assert found.failures == [] if kind is None else found.failed[kind] == 1


def test_what_never_ends_is_killed(monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE", 5.0)
    began = time.monotonic()
    found = faults.run("tests.hardening.endless", 2)
    assert found.failed["slow"] == 1 and found.tried == 2 and time.monotonic() - began < 60


def test_the_page_says_what_failed():
    found = faults.Found()
    found.add("a case", "", 1.5, 2**28)
    found.add("another", "lost: row 3", 0.1, 2**29)
    written = page({"classes": {"made_up": {"what": "faults made up", **found.record()}}})
    assert "| faults made up | 2 | 1 (lost: 1) | 1.5 s | 512 MiB |" in written
    assert "- made_up: `'another': lost: row 3`" in written
    assert list(KINDS) == list(faults.FAILURES)
