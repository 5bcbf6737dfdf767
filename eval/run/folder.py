"""The folder of a run, written group by group, so that a run that was killed goes on where it stopped.

``results.json`` has the arguments and versions, and, when everything is done, the scores. ``contexts.jsonl`` and
``samples.jsonl`` have a line for each context and each sample. ``timing.json`` has the times, which alone differ from
run to run. ``run.toml`` has the arguments as ``kamera eval --config`` takes them.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamera_jax.errors import LockedError, NotRegularError
from kamera_jax.library.locks import holder, locked
from kamera_jax.library.opening import open_regular, read_regular

RESULTS = "results.json"
CONTEXTS = "contexts.jsonl"
SAMPLES = "samples.jsonl"
TIMING = "timing.json"
LOCK = ".lock"

_BEGUN = (LOCK, f"{RESULTS}.partial")
"""What a run that was killed at its very beginning leaves."""

MAX_BYTES = 2**32
"""A run's file of more bytes than this is not read."""

Record = dict[str, Any]


class OtherRunError(ValueError):
    """A folder that is not the run's: empty, of another run, or with other content."""


class RunningError(OtherRunError):
    """A folder in which another process runs `kamera eval`."""


class DuplicateError(OtherRunError):
    """A run's folder that has a context or a sample twice."""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """The context in which no other process writes to a run's folder.

    Raises:
        RunningError: one does; the message says which.
        ValueError: see `kamera_jax.library.locks.locked`.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path / LOCK, wait=False))
        except LockedError:
            raise RunningError(
                f"another kamera eval runs in {path}: {holder(path / LOCK)}; wait until it is done, or give --output "
                "another folder"
            ) from None
        yield


@contextmanager
def expected(path: Path) -> Iterator[None]:
    """The context in which what a run's file should hold is read from it; what it lacks is an `OtherRunError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise OtherRunError(
            f"{path} does not hold what kamera eval writes ({type(error).__name__}: {error}); was it changed? Run "
            "again into an empty folder, or see --debug"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: it is written whole, or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: it is written whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    with os.fdopen(open_regular(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OtherRunError: it is missing, broken, or no regular file.
    """
    try:
        return json.loads(read_regular(path, MAX_BYTES).decode())
    except (FileNotFoundError, NotADirectoryError):
        raise OtherRunError(f"{path.parent} has no {path.name}; expected the --output folder of kamera eval") from None
    except NotRegularError as error:
        raise OtherRunError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise OtherRunError(f"{path} is not JSON ({error}); remove it, and run again into an empty folder") from error


@dataclass(frozen=True)
class RunFolder:
    """An open run.

    Attributes:
        path: the folder's path.
        identity: arguments and versions of the run; a folder with others is refused.
        place: device and number of the folder when it was opened; None if that does not matter.
    """

    path: Path
    identity: Record
    place: tuple[int, int] | None = None

    @staticmethod
    @contextmanager
    def opened(path: Path, identity: Record) -> Iterator["RunFolder"]:
        """The folder as `open` gives it, while no other process writes to it.

        Raises:
            RunningError: another process runs there.
            OtherRunError: the folder has another run, or other content.
        """
        _check_kind(path)
        path.mkdir(parents=True, exist_ok=True)
        with alone(path):
            yield RunFolder.open(path, identity)

    @staticmethod
    def open(path: Path, identity: Record) -> "RunFolder":
        """The folder of a new run, which is empty or missing, or of this run where it was stopped.

        Raises:
            OtherRunError: the folder has another run, or other content.
        """
        _check_kind(path)
        if os.path.lexists(path / RESULTS):
            present = read_json(path / RESULTS)
            if not isinstance(present, dict):
                raise OtherRunError(f"{path / RESULTS} is not what kamera eval writes; give a folder of its own")
            if differing := _differences(present, identity):
                raise OtherRunError(
                    f"{path} has another run: {'; '.join(differing)}; give a folder of its own, or the same arguments"
                )
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / RESULTS, {**identity, "complete": False})
        return RunFolder(path, identity, _place(path))

    def resume(self, groups: Sequence[Sequence[str]]) -> int:
        """How many of the groups of contexts are done. Lines of a group that is not are deleted.

        Raises:
            OtherRunError: the lines are those of other contexts, or damaged.
            DuplicateError: a context or a sample is there twice.
        """
        contexts = _lines(self.path / CONTEXTS)
        samples = _lines(self.path / SAMPLES)
        done = 0
        context_lines = 0
        sample_lines = 0
        for group in groups:
            records = [record for record, _ in contexts[context_lines : context_lines + len(group)]]
            with expected(self.path / CONTEXTS):
                wanted = [sample for record in records for sample in record["samples"]]
            ids = [record["id"] for record, _ in samples[sample_lines : sample_lines + len(wanted)]]
            if len(records) < len(group) or len(ids) < len(wanted):
                break
            if [record["id"] for record in records] != list(group) or ids != wanted:
                raise OtherRunError(
                    f"{self.path / SAMPLES} has other samples than this run from line {sample_lines + 1} on: it was "
                    "changed; run again into an empty folder"
                )
            done = done + 1
            context_lines = context_lines + len(group)
            sample_lines = sample_lines + len(wanted)
        _keep(self.path / CONTEXTS, contexts[:context_lines])
        _keep(self.path / SAMPLES, samples[:sample_lines])
        return done

    def append(self, contexts: Iterable[Record], samples: Iterable[Record]) -> None:
        """Write a group's lines, its samples last: a group without all its samples is not done.

        Raises:
            OtherRunError: the folder was moved or removed since it was opened.
        """
        if self.place is not None and _place(self.path) != self.place:
            raise OtherRunError(
                f"{self.path} was moved or removed while this run wrote to it; put it back, and run kamera eval with "
                "the same arguments to finish it"
            )
        for name, records in ((CONTEXTS, contexts), (SAMPLES, samples)):
            descriptor = open_regular(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())

    def finish(self, scores: Record) -> None:
        """Write the scores into ``results.json``."""
        write_json(self.path / RESULTS, {**self.identity, "complete": True, "scores": scores})


def read_lines(path: Path) -> list[Record]:
    """The records of a ``.jsonl`` file.

    Raises:
        OtherRunError: there is none, or it is damaged.
        DuplicateError: it has a record twice.
    """
    if not os.path.lexists(path):
        raise OtherRunError(f"{path.parent} has no {path.name}; expected the --output folder of kamera eval")
    return [record for record, _ in _lines(path)]


def failures(contexts: Iterable[Record]) -> dict[str, str]:
    """The methods that failed, each with the context where it did first and the reason."""
    failed: dict[str, str] = {}
    for record in contexts:
        for name, reason in record.get("failed", {}).items():
            failed.setdefault(name, f"on context {record['id']}: {reason}")
    return failed


def check_lines(path: Path) -> None:
    """Raise OtherRunError if the contexts and samples of a finished run's folder are there, and not each once."""
    if not os.path.lexists(path / SAMPLES):
        return
    ids = [record["id"] for record in read_lines(path / SAMPLES)]
    with expected(path / CONTEXTS):
        wanted = [sample for record in read_lines(path / CONTEXTS) for sample in record["samples"]]
    if ids != wanted:
        raise OtherRunError(
            f"{path / SAMPLES} has {len(ids)} samples, and not the {len(wanted)} of {CONTEXTS} in their order: it was "
            "changed; run kamera eval again into an empty folder"
        )


def _check_kind(path: Path) -> None:
    """Raise OtherRunError if something else than a run, or an empty folder, is there."""
    if not os.path.lexists(path) or os.path.lexists(path / RESULTS):
        return
    if not path.is_dir() or any(each.name not in _BEGUN for each in path.iterdir()):
        raise OtherRunError(f"{path} is neither an empty folder nor a run of kamera eval; give a folder of its own")


def _place(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _differences(present: Record, identity: Record) -> list[str]:
    """Where two runs differ, in words."""
    differing = []
    for section, ours in identity.items():
        theirs = present.get(section)
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            differing += [f"{section} is {theirs!r} there, {ours!r} here"] if theirs != ours else []
            continue
        for name in sorted({*ours, *theirs}):
            if theirs.get(name) != ours.get(name):
                differing.append(f"{name} is {theirs.get(name)!r} there, {ours.get(name)!r} here")
    return differing


def _lines(path: Path) -> list[tuple[Record, bytes]]:
    """The records of a file, each with its line; what a killed writer left half-written at the end is left out.

    Raises:
        OtherRunError: another line is damaged, or it is no regular file.
        DuplicateError: a record is there twice.
    """
    try:
        *whole, rest = read_regular(path, MAX_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except NotRegularError as error:
        raise OtherRunError(str(error)) from error
    records: list[tuple[Record, bytes]] = []
    known: dict[str, int] = {}
    for number, line in enumerate(whole, start=1):
        record = _record(line)
        if record is None:
            if number == len(whole) and not rest:
                break
            raise OtherRunError(
                f"line {number} of {path} is damaged: it is no record of kamera eval, and others follow it; run again "
                "into an empty folder"
            )
        name = record["id"]
        if name in known:
            raise DuplicateError(
                f"{path} has {name!r} twice, in lines {known[name]} and {number}: two processes wrote to it, or it was "
                "put together from several; run kamera eval again into an empty folder"
            )
        known[name] = number
        records.append((record, line + b"\n"))
    return records


def _record(line: bytes) -> Record | None:
    """The record of a line; None if it holds none."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) else None


def _keep(path: Path, lines: Sequence[tuple[Record, bytes]]) -> None:
    with os.fdopen(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.truncate(sum(len(line) for _, line in lines))
        file.flush()
        os.fsync(file.fileno())
