"""The result of `eval.evaluate`: scores, samples and findings of a run, in Python and in a notebook."""

import html
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import tasks
from eval.report import evaluation, samples
from eval.report.console import counted
from eval.report.run_page import page
from eval.report.run_tables import HOPS, columns, findings, load, rows
from eval.run.config import CONFIG
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES, TIMING, OtherRunError, Record
from eval.tasks import Finding
from eval.tasks.comparison import hops_of, measures
from kamera_jax.library.opening import read_regular

FILES = (RESULTS, CONTEXTS, SAMPLES, TIMING, CONFIG)
"""The files of a run's folder."""

MAX_BYTES = 2**32
"""A file of more bytes than this is not read."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A finished run of `kamera eval`.

    ``print`` shows its tables, and so does a notebook.

    Attributes:
        record: everything that was measured: what ``results.json`` has, and times under ``ttft_s``.
        samples: the questions, each with the answers of every method and their scores; see `eval.report.samples.read`.
        path: the run's folder; None where it was run without one.
        task: the task, where it was given as an object.
        files: the files of the run's folder by name.
    """

    record: Record
    samples: list[Record]
    path: Path | None = None
    task: Any = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    @staticmethod
    def load(path: str | Path, task: Any = None) -> "Result":
        """The result of the run in a folder: one that `save` wrote, or ``kamera eval --output``.

        Args:
            path: the folder.
            task: the task, where it cannot be found by its name.

        Raises:
            OtherRunError: it has no finished run, or one that is damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise OtherRunError(f"{folder} is no folder of a run; expected what --output or Result.save wrote")
        (record,) = load(folder)
        files = {name: read_regular(folder / name, MAX_BYTES) for name in FILES if (folder / name).exists()}
        return Result(record, samples.read(folder, task), folder, task, files)

    def save(self, path: str | Path) -> Path:
        """Write the run's folder, which `load` and ``kamera eval report`` read.

        Args:
            path: an empty folder, or a new one.

        Returns:
            The folder.

        Raises:
            OtherRunError: something is there.
        """
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OtherRunError(f"{folder} is not an empty folder; give a folder of its own")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    @property
    def methods(self) -> list[str]:
        """The methods' names, in order; those that failed are in `failed`."""
        return list(self.record["scores"]["methods"])

    @property
    def failed(self) -> dict[str, str]:
        """The methods that failed, each with where and why."""
        return dict(self.record["scores"].get("failed", {}))

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """By method its scores and costs; what was not measured is None. See `table` for their names."""
        return {row.pop("method"): row for row in self.table()}

    @property
    def findings(self) -> list[Finding]:
        """What the task finds in the scores; empty where the task is not installed here."""
        try:
            return findings(self.record, self.task)
        except (tasks.PluginError, tasks.UnknownTaskError):
            return []

    def table(self) -> list[dict[str, Any]]:
        """A row for each method, as ``pandas.DataFrame`` takes it.

        Returns:
            Under ``method`` its name. Then the scores by their names in the task, such as ``accuracy``; where questions
            are of several numbers of hops, as ``one hop accuracy``. Each has its standard error beside it, as
            ``accuracy error``. Then ``kl`` and ``eta`` against full prefill, ``recovered`` (of the answers that blind
            reuse changes, the share that is as with full again), ``bytes_share``, ``tokens_avoided_share``,
            ``flops_share``, and ``ttft_ms``.
        """
        scores = self.record["scores"]
        hops = hops_of(scores)
        made = []
        for name, own in scores["methods"].items():
            row: dict[str, Any] = {"method": name}
            for each in hops:
                before = f"{HOPS.get(each, f'{each} hops')} " if len(hops) > 1 else ""
                cell = own["hops"].get(each)
                for measure in measures(scores):
                    errors = None if cell is None else cell.get("errors", {measure: cell["error"]})
                    row[f"{before}{measure}"] = None if cell is None else cell[measure]
                    row[f"{before}{measure} error"] = None if errors is None else errors.get(measure)
            several = [each for count, each in own["hops"].items() if int(count) > 1] or list(own["hops"].values())
            count = sum(each["samples"] for each in several)
            seconds = self.record.get("ttft_s", {}).get(name, {}).get("all")
            cost = own["cost"]
            row |= {
                "kl": sum(each["kl"] * each["samples"] for each in several) / count if count else None,
                "eta": own["eta"],
                "recovered": own["recovered"],
                **{key: cost[key] for key in ("bytes_share", "tokens_avoided_share", "flops_share")},
                "ttft_ms": None if seconds is None else 1e3 * seconds,
            }
            made.append(row)
        return made

    def different(self, *methods: str) -> list[Record]:
        """The samples that methods answered differently: all methods, or ``full``, ``blind`` and those named."""
        return samples.chosen(self.samples, methods)

    def wrong(self, *methods: str) -> list[Record]:
        """The samples that one of these methods, or any, answered wrong."""
        return samples.chosen(self.samples, methods, wrong=True)

    def report(self, *, every: bool = False, console: Console | None = None) -> None:
        """Print every table and the findings, as ``kamera eval report`` does.

        Args:
            every: whether the table by condition has all methods, however many there are.
            console: where to; standard output by default.
        """
        evaluation.print_report(self.record, console, every=every, task=self.task)

    def page(self) -> str:
        """The report as a Markdown page, without figures."""
        return page([self.record], {}, Path(), self.task)

    def __repr__(self) -> str:
        """What was run, in a line."""
        config = self.record["config"]
        scores = self.record["scores"]
        return (
            f"<Result of {config['task']} on {config['model']}: {counted(scores['contexts'], 'context')}, "
            f"{counted(scores['samples'], 'question')}, {', '.join(self.methods)}>"
        )

    def __str__(self) -> str:
        """The tables with a row for each method."""
        console = Console(file=io.StringIO(), width=evaluation.WIDTH, emoji=False, highlight=False, color_system=None)
        evaluation.print_scores(self.record, console)
        written = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        return "\n".join(line.rstrip() for line in written.splitlines()).rstrip()

    def _repr_html_(self) -> str:
        """The table of a notebook's cell."""
        config = self.record["config"]
        scores = self.record["scores"]
        heads = "".join(f"<th>{html.escape(title)}</th>" for title in columns(scores))
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows(self.record)
        )
        left = "".join(
            f"<p>{html.escape(name)} is not in the table: it failed {html.escape(reason)}</p>"
            for name, reason in self.failed.items()
        )
        title = f"<b>{html.escape(config['task'])}</b> on {html.escape(config['model'])}"
        counts = f"{counted(scores['contexts'], 'context')}, {counted(scores['samples'], 'question')}"
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{title}: {counts}</p>{table}{left}"
