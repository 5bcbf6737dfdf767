"""Interrupts (Ctrl-C) of a session's operations: at any bytecode of its code, and at any time in real time.

After each the session is as before the operation or as after it, goes on, and answers as one that was not disturbed.
"""

import random
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

import kamera_jax as kj
from tests.hardening.warm import cached
from tests.kamera_jax.toy import Toy

ROOMS = tuple(str(Path(kj.__file__).parent / room) for room in ("session", "window", "inference"))
"""The code at whose bytecodes operations are interrupted."""

ITEMS = ("alpha " * 5, "beta " * 6, "gamma " * 5, "delta " * 6, "epsilon " * 4, "zeta " * 6)
CAPACITY = 144
QUESTION = "what now?"
OPERATIONS = ("add", "recall", "move", "ask", "replace", "save")
MODES = ("materialise", "in_place")


def prepare():
    """Compile what the operations run."""
    for kind in OPERATIONS:
        for mode in MODES:
            undisturbed(kind, mode)


def cases(folder, count, seed):
    """Operation, mode, whether at a bytecode or in real time, and at what share of the operation."""
    cached()
    prepare()
    rng = random.Random(seed)
    kinds = [
        ("add", "recall")[number % 2] if number % 4 < 2 else OPERATIONS[number % 5 if number % 50 else 5]
        for number in range(count)
    ]
    return [(kind, MODES[n // 2 % 2], n % 5 != 4, rng.random()) for n, kind in enumerate(kinds)]


@cache
def toy():
    """One model, whose programs are compiled once in a process."""
    return Toy()


def built(mode):
    """A session with chunks in its window, in memory, and pinned."""
    session = kj.Session(toy(), CAPACITY, mode=mode, rank=4)
    for item in ITEMS[:5]:
        session.add(item)
    session.pin(session.keys[-1])
    return session


def operate(session, kind, folder):
    """One operation."""
    if kind == "add":
        session.add(ITEMS[5], pin=True)
    elif kind == "recall":
        session.recall(session.evicted[0], at=1)
    elif kind == "move":
        session.recall(session.keys[-1], at=0)
    elif kind == "ask":
        session.ask(QUESTION, max_new_tokens=4)
    elif kind == "replace":
        session.replace(session.keys[0], ITEMS[5])
    else:
        session.save(folder / "saved")


def facts(session):
    """What a session says of itself, without asking."""
    return session.keys, session.evicted, session.stats, session.log, session.last, session._kept.pinned


def state_of(session):
    """What is written in a window."""
    window = session.window
    if window.mode == "in_place":
        return [np.asarray(entry.chunk.kv.rot) for entry in window.entries]
    valid = np.asarray(window.state.valid)
    return [
        np.asarray(leaf)[..., valid] if leaf.ndim == 2 else np.asarray(leaf)[:, valid]
        for leaf in (window.state.rot, window.state.free, window.state.positions)
    ]


def goes_on(session):
    """What comes of a few operations more."""
    answers = [session.ask(QUESTION, max_new_tokens=4).tokens]
    session.recall(session.evicted[-1])
    session.add("another one")
    answers.append(session.ask("and now?", max_new_tokens=4, keep=False).tokens)
    return answers, facts(session), [leaf.tobytes() for leaf in state_of(session)]


@cache
def undisturbed(kind, mode):
    """Facts before and after, what comes of both, how many bytecodes and seconds the operation takes."""
    with tempfile.TemporaryDirectory() as folder:
        return _undisturbed(kind, mode, Path(folder))


def _undisturbed(kind, mode, folder):
    operate(built(mode), kind, folder)  # compiled
    before = built(mode)
    goes_on(before)
    session = built(mode)
    begun = facts(session)
    began = time.perf_counter()
    operate(session, kind, folder)
    seconds = time.perf_counter() - began
    ended = facts(session)
    window = session.window
    del window
    then = goes_on(session)
    counted = built(mode)
    with Interrupt(None) as interrupt:
        operate(counted, kind, folder)
    return begun, ended, then, interrupt.seen, seconds


class Interrupt:
    """Raises KeyboardInterrupt at the ``at``-th bytecode of `ROOMS`, or counts them."""

    def __init__(self, at):
        self.at = at
        self.seen = 0

    def __enter__(self):
        self.old = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.old)

    def trace(self, frame, event, argument):
        """Trace the rooms' frames by bytecode, and no others."""
        if not frame.f_code.co_filename.startswith(ROOMS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame, event, argument):
        """Count a bytecode."""
        if event == "opcode":
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.step


def interrupted(operation, at, seconds):
    """Whether an operation was interrupted at a bytecode, or after some seconds."""
    if at is not None:
        try:
            with Interrupt(at):
                operation()
        except KeyboardInterrupt:
            return True
        return False
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        operation()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    return False


def judge(case, folder):
    """Interrupt one operation."""
    kind, mode, by_bytecode, share = case
    begun, ended, then, count, seconds = undisturbed(kind, mode)
    session = built(mode)
    at = 1 + int(share * count) if by_bytecode else None
    interrupted(lambda: operate(session, kind, folder), at, share * seconds)
    try:
        now = facts(session)
    except Exception as error:
        return f"lost: {error!r}"
    if now == begun:
        operate(session, kind, folder)
        now = facts(session)
    if now != ended:
        different = [
            name
            for name, a, b in zip(("keys", "evicted", "stats", "log", "last", "pinned"), now, ended, strict=True)
            if a != b
        ]
        return f"wrong: {different} are neither those from before nor those from after"
    if wrong := memory_of(session):
        return wrong
    if goes_on(session) != then:
        return "wrong: it does not go on as one that was not disturbed"
    if kind == "save":
        restored = kj.Session.restore(toy(), folder / "saved")
        if restored.keys != begun[0]:
            return "wrong: another session was saved"
    return memory_of(session)


def memory_of(session):
    """What is wrong with the numbers of the host memory."""
    memory = session._kept.store
    size = sum(each.nbytes for each in (*memory.records, *memory.patch_records))
    if memory.nbytes != size:
        return f"wrong: {memory.nbytes} bytes are counted of {size}"
    if twice := set(memory.keys) & set(session.keys):
        return f"wrong: {len(twice)} chunks are in the window and in memory"
    return ""
