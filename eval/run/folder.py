"""The folder of a run, written group by group, so that a run that was killed goes on where it stopped.

``results.json`` has the arguments and versions, and, when everything is done, the scores. ``contexts.jsonl`` and
``samples.jsonl`` have a line for each context and each sample. ``timing.json`` has the times, which alone differ from
run to run.
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
    """A folder that is not the run's: empty, of another run, or with other content."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: it is written whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OtherRunError: it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OtherRunError(f"{path.parent} has no {path.name}; expected the --output folder of kamera eval") from None
    except json.JSONDecodeError as error:
        raise OtherRunError(f"{path} is not JSON ({error}); remove it, and run again into an empty folder") from error


@dataclass(frozen=True)
class RunFolder:
    """An open run.

    Attributes:
        path: the folder's path.
        identity: arguments and versions of the run; a folder with others is refused.
    """

    path: Path
    identity: Record

    @staticmethod
    def open(path: Path, identity: Record) -> "RunFolder":
        """The folder of a new run, which is empty or missing, or of this run where it was stopped.

        Raises:
            OtherRunError: the folder has another run, or other content.
        """
        if (path / RESULTS).exists():
            present = read_json(path / RESULTS)
            if differing := _differences(present, identity):
                raise OtherRunError(
                    f"{path} has another run: {'; '.join(differing)}; give a folder of its own, or the same arguments"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OtherRunError(f"{path} is neither an empty folder nor a run of kamera eval; give a folder of its own")
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / RESULTS, {**identity, "complete": False})
        return RunFolder(path, identity)

    def resume(self, groups: Sequence[Sequence[str]]) -> int:
        """How many of the groups of contexts are done. Lines of a group that is not are deleted.

        Raises:
            OtherRunError: the lines are those of other contexts.
        """
        contexts = _complete_lines(self.path / CONTEXTS)
        samples = _complete_lines(self.path / SAMPLES)
        done = 0
        context_lines = 0
        sample_lines = 0
        for group in groups:
            records = [json.loads(line) for line in contexts[context_lines : context_lines + len(group)]]
            expected = [sample for record in records for sample in record["samples"]]
            ids = [json.loads(line)["id"] for line in samples[sample_lines : sample_lines + len(expected)]]
            if len(records) < len(group) or len(ids) < len(expected):
                break
            if [record["id"] for record in records] != list(group) or ids != expected:
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
        """Write a group's lines, its samples last: a group without all its samples is not done."""
        for name, records in ((CONTEXTS, contexts), (SAMPLES, samples)):
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())

    def finish(self, scores: Record) -> None:
        """Write the scores into ``results.json``."""
        write_json(self.path / RESULTS, {**self.identity, "complete": True, "scores": scores})


def read_lines(path: Path) -> list[Record]:
    """The records of a ``.jsonl`` file.

    Raises:
        OtherRunError: there is none.
    """
    if not path.exists():
        raise OtherRunError(f"{path.parent} has no {path.name}; expected the --output folder of kamera eval")
    return [json.loads(line) for line in _complete_lines(path)]


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


def _complete_lines(path: Path) -> list[str]:
    """The lines up to the first that was not written completely."""
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
