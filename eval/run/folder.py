"""The folder of a run: what was run, and what came out, group by group, so that a killed run goes on where it was.

``results.json`` says what is run (and, when all is done, the scores), ``contexts.jsonl`` and ``samples.jsonl`` have a
line for each context and each sample, ``timing.json`` holds what differs from run to run.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.json"
CONTEXTS = "contexts.jsonl"
SAMPLES = "samples.jsonl"
TIMING = "timing.json"

Record = dict[str, Any]


class OtherRunError(ValueError):
    """A folder that holds something else."""


def write_json(path: Path, value: Any) -> None:
    """A JSON file, put there at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        OtherRunError: it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OtherRunError(
            f"{path.parent} holds no {path.name}; expected the --output folder of kamera eval"
        ) from None
    except json.JSONDecodeError as error:
        raise OtherRunError(f"{path} is no JSON ({error}); remove it, and run again into an empty folder") from error


@dataclass(frozen=True)
class RunFolder:
    """An open run.

    Attributes:
        path: the folder.
        identity: what the run is: of another identity, nothing is added to it.
    """

    path: Path
    identity: Record

    @staticmethod
    def open(path: Path, identity: Record) -> "RunFolder":
        """A new run in an empty or new folder, or one to go on with.

        Raises:
            OtherRunError: the folder holds another run, or other things.
        """
        if (path / RESULTS).exists():
            held = read_json(path / RESULTS)
            if differing := _differences(held, identity):
                raise OtherRunError(
                    f"{path} holds another run: {'; '.join(differing)}; give a folder of its own, or the same arguments"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OtherRunError(f"{path} is no empty folder, and no run of kamera eval; give a folder of its own")
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / RESULTS, {**identity, "complete": False})
        return RunFolder(path, identity)

    def resume(self, groups: Sequence[Sequence[str]]) -> int:
        """How many of the groups of contexts are done; what a kill left behind them is cut off.

        Raises:
            OtherRunError: the lines are those of other contexts.
        """
        contexts = _complete_lines(self.path / CONTEXTS)
        samples = _complete_lines(self.path / SAMPLES)
        done = 0
        context_lines = 0
        sample_lines = 0
        for group in groups:
            held = [json.loads(line) for line in contexts[context_lines : context_lines + len(group)]]
            expected = [sample for record in held for sample in record["samples"]]
            found = [json.loads(line)["id"] for line in samples[sample_lines : sample_lines + len(expected)]]
            if len(held) < len(group) or len(found) < len(expected):
                break
            if [record["id"] for record in held] != list(group) or found != expected:
                raise OtherRunError(
                    f"{self.path / SAMPLES} has other samples than this run from line {sample_lines + 1} on: it was "
                    "changed; run again into an empty folder"
                )
            done = done + 1
            context_lines = context_lines + len(group)
            sample_lines = sample_lines + len(expected)
        _keep(self.path / CONTEXTS, contexts[:context_lines])
        _keep(self.path / SAMPLES, samples[:sample_lines])
        return done

    def append(self, contexts: Iterable[Record], samples: Iterable[Record]) -> None:
        """A group's lines; those of its samples, which make it count, last."""
        for name, records in ((CONTEXTS, contexts), (SAMPLES, samples)):
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())

    def finish(self, scores: Record) -> None:
        """The scores, beside what was run."""
        write_json(self.path / RESULTS, {**self.identity, "complete": True, "scores": scores})


def read_lines(path: Path) -> list[Record]:
    """The records of a ``.jsonl`` file.

    Raises:
        OtherRunError: there is none.
    """
    if not path.exists():
        raise OtherRunError(f"{path.parent} holds no {path.name}; expected the --output folder of kamera eval")
    return [json.loads(line) for line in _complete_lines(path)]


def _differences(held: Record, identity: Record) -> list[str]:
    """Where two runs differ, in words."""
    found = []
    for section, ours in identity.items():
        theirs = held.get(section)
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            found += [f"{section} is {theirs!r} there, {ours!r} here"] if theirs != ours else []
            continue
        for name in sorted({*ours, *theirs}):
            if theirs.get(name) != ours.get(name):
                found.append(f"{name} is {theirs.get(name)!r} there, {ours.get(name)!r} here")
    return found


def _complete_lines(path: Path) -> list[str]:
    """Lines up to the first that was not written whole."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().decode(errors="replace").split("\n")[:-1]:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break
        lines.append(line + "\n")
    return lines


def _keep(path: Path, lines: Sequence[str]) -> None:
    with path.open("a+b") as file:
        file.truncate(len("".join(lines).encode()))
        file.flush()
        os.fsync(file.fileno())
