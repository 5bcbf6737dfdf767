"""`kamera encode --workers N`: processes that take items in turn, and write them into one library.

Each worker encodes alone and puts what it has in batches; the library lets one write at a time, and the first to put a
key wins. So nothing is shared but the folder: a worker that dies costs what it had not put yet, which is named.
"""

import multiprocessing
import signal
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import kamera_jax as kj
from eval.commands.encoding import Encoded, Progressed
from eval.commands.items import Source
from eval.commands.worker import Job, work

Outcome = tuple[Progressed, list[dict[str, Any]], str | None]
"""What was done, what a patch pays, and the dtype of the KV, if a model was loaded."""

LOOK = 0.2
"""Seconds after which it is looked whether Ctrl-C came, while nothing else does."""

PATIENCE = 5.0
"""Seconds that a worker with nothing left to do has to end."""


class WorkerError(ValueError):
    """What a worker cannot begin with, such as a model that cannot be loaded."""


@dataclass
class _Worker:
    """A process, and what it was given.

    Attributes:
        tried: the items (files, or runs of their pages) that it was given, and whether it has been through each.
        left: whether it is through with everything.
    """

    process: Any
    connection: Connection
    tried: dict[int, bool] = field(default_factory=dict)
    left: bool = False

    @property
    def name(self) -> str:
        return f"{self.process.name} (process {self.process.pid})"

    def send(self, order: Any) -> None:
        with suppress(OSError):  # it died, which is noticed where it is listened to
            self.connection.send(order)


def encode(options: Namespace, items: Sequence[Source], count: int, report: Callable[[Encoded], None]) -> Outcome:
    """Encode items in processes of this machine.

    Args:
        options: of `kamera encode`.
        items: one each is given to whoever is idle.
        count: of the processes.
        report: called for every item, once it is in the library, or is known not to come into it.

    Raises:
        WorkerError: a worker cannot begin; nothing was encoded by it.
    """
    job = Job(
        options.model,
        options.library,
        options.lock,
        options.dtype,
        options.storage,
        options.share_frames,
        options.measure,
        bool(options.quiet),
    )
    crew = _Crew(items, report)
    try:
        with _on_interrupt(signal.SIG_IGN):  # of the processes, for good
            crew.start(job, count)
        with _on_interrupt(crew.interrupt):
            crew.listen()
            crew.settle()
            return crew.done, crew.paid(options), crew.dtype
    finally:
        crew.end()


class _Crew:
    """The workers of one command, and what they have said."""

    def __init__(self, items: Sequence[Source], report: Callable[[Encoded], None]) -> None:
        self.items = items
        self.done = Progressed()
        self.dtype: str | None = None
        self._report = report
        self._workers: list[_Worker] = []
        self._outcomes: dict[int, list[Encoded]] = {number: [] for number in range(len(items))}
        self._next = 0
        self._stopping = False

    def start(self, job: Job, count: int) -> None:
        """Start the processes, which ignore Ctrl-C: it is said to them here."""
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        for index in range(count):
            here, there = context.Pipe()
            process = context.Process(
                target=work, args=(index, count, there, job), name=f"worker {index + 1}", daemon=True
            )
            process.start()
            there.close()
            self._workers.append(_Worker(process, here))

    def interrupt(self, *_: object) -> None:
        """Remember that Ctrl-C came: raised from here, it would cut what is being received in two."""
        self.done.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one is in a hurry

    def listen(self) -> None:
        """Hand out items and take outcomes until every worker is through, or dead."""
        while busy := [each for each in self._workers if not each.left]:
            if self.done.interrupted and not self._stopping:
                self._stop()
            for connection in wait([each.connection for each in busy], LOOK):
                worker = next(each for each in busy if each.connection is connection)
                try:
                    kind, *words = worker.connection.recv()
                except (EOFError, OSError):
                    self._lost(worker)
                    continue
                self._heard(worker, kind, words)
        if not self._stopping:
            self._give_up_rest()

    def _heard(self, worker: _Worker, kind: str, words: list[Any]) -> None:
        if kind == "ready":
            self.dtype = words[0]
        elif kind == "idle":
            self._give(worker)
        elif kind == "tried":
            worker.tried[words[0]] = True
        elif kind == "item":
            number, outcome = words
            self._take(number, outcome)
        elif kind == "done":
            worker.left = True
            if words[0] is not None:
                self.done.broken = words[0]
                self._stop()
        else:
            raise WorkerError(words[0])

    def _give(self, worker: _Worker) -> None:
        if self._stopping or self._next == len(self.items):
            worker.send(None)
            return
        worker.tried[self._next] = False
        worker.send((self._next, self.items[self._next]))
        self._next += 1

    def _take(self, number: int, outcome: Encoded) -> None:
        self._outcomes[number].append(outcome)
        self._report(outcome)

    def _lost(self, worker: _Worker) -> None:
        """A worker died: what it was given and has not put is named, and left for the next run."""
        worker.left = True
        worker.process.join(PATIENCE)
        died = f"{worker.name} {_how(worker.process.exitcode)}"
        self.done.died.append(died)
        for number, tried in worker.tried.items():
            for name, origin in _missing(self.items[number], self._outcomes[number], tried):
                self._take(number, Encoded(name, "failed", error=f"{died} before it was stored", origin=origin))

    def _stop(self) -> None:
        """Have every worker put what it has, and end."""
        self._stopping = True
        for worker in self._workers:
            worker.send("stop")

    def _give_up_rest(self) -> None:
        """Name what nobody was there for any more: all workers died."""
        for number in range(self._next, len(self.items)):
            for name, origin in _missing(self.items[number], (), False):
                self._take(number, Encoded(name, "failed", error="no worker is left to encode it", origin=origin))
        self._next = len(self.items)

    def settle(self) -> None:
        """Put outcomes in the order of the items; of one content that two workers encoded at once, one is stored."""
        self.done.items = []
        for number in range(len(self.items)):
            self.done.items += sorted(self._outcomes[number], key=_place)
        first: dict[str, int] = {}
        for place, each in enumerate(self.done.items):
            if each.status != "encoded" or each.key is None:
                continue
            if first.setdefault(each.key, place) != place:
                origin = None if each.origin is None else replace(each.origin, encoded=None)
                self.done.items[place] = replace(each, status="known", rows=0, seconds=0.0, origin=origin)

    def paid(self, options: Namespace) -> list[dict[str, Any]]:
        """What a patch pays, by a worker that is there: this process has no model."""
        stopped = self._stopping or (options.measure and self.done.broken is not None)
        for worker in () if stopped else self._workers:
            try:
                worker.connection.send(self.done.items)
                while not worker.connection.poll(LOOK):
                    if self.done.interrupted:
                        return []
                return worker.connection.recv()[1]
            except (EOFError, OSError):  # this one died
                continue
        return []

    def end(self) -> None:
        """Let the processes go: they see that nobody listens, and end."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(PATIENCE)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _place(each: Encoded) -> tuple[int, float]:
    origin = each.origin
    return (0, 0.0) if origin is None else (origin.page or 0, origin.time or 0.0)


def _missing(source: Source, outcomes: Sequence[Encoded], tried: bool) -> list[tuple[str, kj.Origin]]:
    """Names and places of a file's items of which nothing was heard; of a video in segments its own if it broke off."""
    if source.segmented:
        origins = [] if tried else source.origins()
    else:
        heard = {each.origin.page for each in outcomes if each.origin is not None}
        origins = [origin for origin in source.origins() if origin.page not in heard]
    return [(origin.name, replace(origin, encoded=None)) for origin in origins]


@contextmanager
def _on_interrupt(handler: Any) -> Iterator[None]:
    """The context in which Ctrl-C does something else; where it is ignored, or this is no main thread, nothing else."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
