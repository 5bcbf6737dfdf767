"""A leaderboard from folders of runs: a table for each task, the methods of every run in it, the best first."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report.result import OtherRunError
from eval.report.run_tables import cell, load, markdown
from eval.run.folder import RESULTS, Record
from eval.tasks.comparison import measures

COLUMNS = ("model", "method", "score", "n", "KL to full", "bytes", "FLOPs", "run")

ABOUT = (
    "Written by `kamera eval leaderboard RUN… --page FILE.md` from folders of runs; add yours, and write it again. "
    "Runs stand together where they asked the same questions of the same files."
)


def found(paths: Sequence[Path]) -> list[tuple[Path, Record]]:
    """The finished runs in these folders, and in folders below them, each once.

    Raises:
        OtherRunError: a folder has none, or one that is damaged.
    """
    runs: dict[Path, Record] = {}
    for path in paths:
        below = [path] if (path / RESULTS).is_file() else sorted(each.parent for each in path.rglob(RESULTS))
        if not below:
            raise OtherRunError(f"{path} has no run of kamera eval, nor a folder below it; expected an --output folder")
        for folder in below:
            (runs[folder.resolve()],) = load(folder)
    return list(runs.items())


def name_of(task: str) -> str:
    """A task with its settings, without where its files lie, which tells nothing of it."""
    kind, _, settings = task.partition(":")
    kept = [each for each in re.split(r",(?=\w+=)", settings) if each and not each.startswith("data=")]
    return f"{kind}:{','.join(kept)}" if kept else kind


def tables(runs: Sequence[tuple[Path, Record]]) -> list[Record]:
    """A table for each task: runs of the same questions, from the same files, stand together.

    Args:
        runs: see `found`.
    """
    groups: dict[tuple[Any, ...], list[tuple[Path, Record]]] = {}
    for path, run in runs:
        config = run["config"]
        sources = tuple(sorted(run.get("sources", {}).items()))
        asked = (tuple(config["seeds"]), config["limit"], config.get("contexts"), run["scores"]["samples"])
        key = (name_of(config["task"]), config["task_version"], asked, sources)
        groups.setdefault(key, []).append((path, run))
    made = []
    for (task, _, _, sources), own in sorted(groups.items(), key=lambda each: str(each[0])):
        first = own[0][1]
        rows = [row for path, run in own for row in _rows(path, run)]
        made.append(
            {
                "task": task,
                "measure": measures(first["scores"])[0],
                "seeds": first["config"]["seeds"],
                "contexts": first["scores"]["contexts"],
                "samples": first["scores"]["samples"],
                "variant": dict(sources).get("variant", ""),
                "rows": sorted(rows, key=lambda row: (-row["score"], row["model"], row["method"])),
            }
        )
    return made


def _rows(path: Path, run: Mapping[str, Any]) -> list[Record]:
    measure = measures(run["scores"])[0]
    made = []
    for name, own in run["scores"]["methods"].items():
        cells = list(own["hops"].values())
        count = sum(each["samples"] for each in cells)
        if not count:
            continue
        score = sum(each[measure] * each["samples"] for each in cells) / count
        made.append(
            {
                "model": run["config"]["model"],
                "method": name,
                "score": score,
                "shown": cell(cells[0], measure) if len(cells) == 1 else f"{score:.3f}",
                "n": count,
                "kl": sum(each["kl"] * each["samples"] for each in cells) / count,
                "bytes_share": own["cost"]["bytes_share"],
                "flops_share": own["cost"]["flops_share"],
                "run": path.name,
                "versions": run["versions"],
            }
        )
    return made


def rows(table: Mapping[str, Any]) -> list[list[str]]:
    """A row of text for each model and method, in the order of `COLUMNS`."""
    return [
        [
            *(row["model"], row["method"], row["shown"], str(row["n"]), f"{row['kl']:.4f}"),
            *(f"{row['bytes_share']:.1%}", f"{row['flops_share']:.1%}", row["run"]),
        ]
        for row in table["rows"]
    ]


def page(tables: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard as a Markdown page."""
    lines = ["# Leaderboard", "", ABOUT, ""]
    for table in tables:
        counts = (
            f"{table['contexts']} contexts, {table['samples']} questions, seeds {', '.join(map(str, table['seeds']))}"
        )
        lines += [f"## {table['task']}", "", f"{table['measure']}; {counts}.", ""]
        lines += [table["variant"] + ".", ""] if table["variant"] else []
        lines += [*markdown(COLUMNS, rows(table)), ""]
    return "\n".join(lines)
