"""What a class of faults did: every fault is tried in a process of its own kind, with its time and memory measured.

A module of faults has ``cases(folder, count, seed)``, which makes descriptions that can be pickled, and
``judge(case, folder)``, which tries one in a fresh folder and returns "" where all is as it should be, or one of
`FAILURES` with what happened behind a colon. If it has ``prepare()``, a process calls
that before its first fault, to compile and import what no fault is to wait for. `run` gives the cases to worker
processes and counts.
"""

import importlib
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

FAILURES = ("lost", "wrong", "outside", "unnamed", "slow", "large")
"""Stored data gone; a wrong answer; a file outside the folder touched; an error of no name, or none; over a bound."""

SECONDS = 10.0
"""A fault takes no longer."""

PEAK_BYTES = 2**31
"""The process that meets a fault takes no more memory, everything that it imports included."""

PATIENCE = 60.0
"""Seconds after which a worker that does not answer is killed."""


@dataclass
class Found:
    """Counts of one class of faults, and the cases that failed."""

    tried: int = 0
    failed: dict = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    seconds: float = 0.0
    peak_bytes: int = 0
    failures: list = field(default_factory=list)

    def add(self, case, verdict, seconds, peak):
        """Count one fault."""
        self.tried += 1
        self.seconds = max(self.seconds, seconds)
        self.peak_bytes = max(self.peak_bytes, peak)
        if not verdict and seconds > SECONDS:
            verdict = f"slow: {seconds:.1f} s"
        if not verdict and peak > PEAK_BYTES:
            verdict = f"large: {peak} bytes"
        if verdict:
            self.failed[verdict.partition(":")[0]] += 1
            self.failures.append(f"{case!r}: {verdict}")

    def record(self):
        """As JSON holds it; the failures are listed up to twenty."""
        return asdict(self) | {"failures": self.failures[:20]}


def run(module, count, seed=0, per_worker=100):
    """Try ``count`` faults of a module, in workers that are replaced after some.

    Args:
        module: its full name.
        count: how many.
        seed: of what is drawn.
        per_worker: faults after which a fresh process is begun: its peak of memory then says what few of them took.

    Returns:
        `Found`.
    """
    found = Found()
    with tempfile.TemporaryDirectory() as place:
        cases = list(importlib.import_module(module).cases(Path(place), count, seed))
        worker = None
        for number, case in enumerate(cases):
            if worker is None or number % per_worker == 0:
                _stop(worker)
                worker = _started(module)
            began = time.monotonic()
            worker[1].send((case, place, number))
            if worker[1].poll(PATIENCE):
                try:
                    verdict, seconds, peak = worker[1].recv()
                except EOFError:
                    found.add(case, "unnamed: the process died", time.monotonic() - began, 0)
                    worker = None
                else:
                    found.add(case, verdict, seconds, peak)
            else:
                found.add(case, f"slow: over {PATIENCE} s", PATIENCE, 0)
                worker[0].kill()
                worker = None
        _stop(worker)
    return found


def _started(module):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(module, there), daemon=True)
    process.start()
    there.close()
    assert here.poll(5 * PATIENCE) and here.recv() == "ready", f"{module} cannot be imported"
    return process, here


def _stop(worker):
    if worker is not None:
        worker[1].close()
        worker[0].join(PATIENCE)


def _serve(module, pipe):
    faulty = importlib.import_module(module)
    judge = faulty.judge
    getattr(faulty, "prepare", lambda: None)()
    pipe.send("ready")
    while True:
        try:
            case, place, number = pipe.recv()
        except EOFError:
            sys.exit(0)
        folder = Path(place) / f"case-{number}"
        folder.mkdir()
        began = time.monotonic()
        try:
            verdict = judge(case, folder)
        except BaseException:
            verdict = "unnamed: " + traceback.format_exc(limit=-3)
        pipe.send((verdict, time.monotonic() - began, _peak_bytes()))


def _peak_bytes():
    """Most memory that this process had: what the system counts for it is no less than what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
