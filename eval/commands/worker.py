"""A process that encodes items for `kamera encode --workers N`; `eval.commands.workers` starts it and gives it items.

Nothing heavy is imported before the process has its own share of the cores: libraries count them as they start.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from eval.commands.items import Source


@dataclass(frozen=True)
class Job:
    """What all workers of a command have to know; see the options of `kamera encode`."""

    model: str
    library: Path
    lock: Literal["file", "lease"] | None
    dtype: str | None
    storage: str
    share_frames: float | None
    measure: bool
    quiet: bool


def cores_of(index: int, count: int, cores: list[int]) -> list[int]:
    """The cores of one of several workers: as many as each can have, at least one."""
    return cores[index * len(cores) // count : (index + 1) * len(cores) // count] or [cores[index % len(cores)]]


def work(index: int, count: int, connection: "Connection", job: Job) -> None:
    """Encode what is sent until nothing more is, and say what came of each item.

    Sent are (index, item), then None when there are no more items, then the outcomes of which it is to be said what a
    patch pays, or None; "stop" at any time. Said are tuples whose first is their kind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this says when to stop, after Ctrl-C too
    _take_cores(index, count)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # results are printed by one process alone
    from eval.commands import compile_cache, platforms, streams

    with streams.quiet(job.quiet or index > 0):  # once is enough
        platforms.skip_missing_tpu()
        compile_cache.enable()
        try:
            _encode(_Orders(connection), job)
        except (ValueError, OSError, MemoryError) as error:
            connection.send(("failed", str(error) or "there is not enough memory"))


def _take_cores(index: int, count: int) -> None:
    """Keep to this worker's share of the cores, where the system lets a process choose; see `cores_of`."""
    get = getattr(os, "sched_getaffinity", None)
    cores = sorted(get(0)) if get else list(range(os.cpu_count() or 1))
    own = cores_of(index, count, cores)
    if get:
        os.sched_setaffinity(0, own)
    # The names by which XLA and the libraries behind numpy take a number of threads.
    for name in ("NPROC", "PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(len(own))


class _Orders:
    """What the process that started this one sends; also that it is gone, which is an order to stop."""

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        self.stopped = False
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                order = self.connection.recv()
            except (EOFError, OSError):
                order = "stop"
            if order == "stop":
                self.stopped = True
            self._sent.put(order)
            if order == "stop":
                return

    def next(self) -> Any:
        """What was sent next; None once this is to stop."""
        order = None if self.stopped else self._sent.get()
        return None if order == "stop" else order

    def say(self, *words: Any) -> None:
        """Tell who started this, if it is there."""
        with suppress(OSError):
            self.connection.send(words)


def _encode(orders: _Orders, job: Job) -> None:
    import jax

    import kamera_jax as kj
    from eval.commands import paying
    from eval.commands.encoding import Encoded, encode_into
    from models import load

    if (platform := jax.default_backend()) != "cpu":
        raise ValueError(
            f"--workers is for CPUs, and JAX computes on {platform} here, which one process keeps busy and several "
            "cannot share; leave it out, or set JAX_PLATFORMS=cpu in the environment"
        )
    vlm = load(job.model, dtype=job.dtype)
    given: dict[int, int] = {}

    def items() -> Iterator["Source"]:
        while True:
            orders.say("idle")
            order = orders.next()
            if order is None:
                return
            number, source = order
            given[id(source)] = number
            sources.append(source)  # so that no other one is at its address
            yield source
            orders.say("tried", number)

    def report(each: Encoded, source: "Source") -> None:
        orders.say("item", given[id(source)], each)

    sources: list[Source] = []
    with kj.ChunkLibrary.open(job.library, mode="a", lock=job.lock) as library:
        orders.say("ready", vlm.spec.dtype)
        done = encode_into(
            vlm,
            library,
            items(),
            storage=job.storage,
            share=job.share_frames,
            report=report,
            stopped=lambda: orders.stopped,
        )
        orders.say("done", done.broken)
        if (outcomes := orders.next()) is not None:
            orders.say("paid", paying.rows(vlm, library, outcomes, measure=job.measure))
