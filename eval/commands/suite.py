"""`kamera eval suite`: the tables of a paper, run one after another, beside the published numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.commands import outputs
from eval.commands.names import slug
from eval.report import samples
from eval.report import suite as report
from eval.report.console import show
from eval.run import runner, suites
from eval.run.folder import CONTEXTS, Record, read_lines

OUT = Path("out")

Evaluate = Callable[[runner.Run, Path], Any]
"""Runs, or resumes, into a folder, and gives the result."""


def task_of(table: suites.Table, data: Path | None) -> str:
    """The task of a table with its data, as `eval.tasks.get` takes it.

    Raises:
        SuiteError: the table reads files, and no folder is named.
    """
    if table.data is None:
        return table.task
    if data is None:
        raise suites.SuiteError(
            f"the table {table.title!r} reads the files of {table.task}; say where the folders of the benchmarks are: "
            f"--data DIR, with {table.data} in it"
        )
    return f"{table.task}{',' if ':' in table.task else ':'}data={data / table.data}"


def run(options: argparse.Namespace, evaluate: Evaluate) -> Record:
    """Run a suite; a table that is done is not run again. Returns what ``--json`` writes.

    Args:
        options: of the command line: ``runs`` is the file.
        evaluate: runs a table.
    """
    if len(options.runs) != 1:
        raise ValueError(f"give one suite: kamera eval suite FILE --data DIR; there are {', '.join(suites.names())}")
    suite = suites.read(options.runs[0])
    folder = options.output or OUT / f"suite-{slug(suite.name)}-{slug(Path(options.model).name)}"
    planned = [(table, task_of(table, options.data)) for table in suite.tables]
    made = []
    folders: dict[runner.Run, Path] = {}
    console = Console(emoji=False, highlight=False, width=120)
    for table, task in planned:
        arguments = runner.Run(
            task=task,
            model=options.model,
            methods=table.methods,
            seeds=table.seeds if "seeds" not in options.asked else options.seeds,
            limit=table.limit if options.limit is None else options.limit,
            capacity=options.capacity,
            batch=options.batch,
            devices=options.devices,
            repeats=options.repeats if "repeats" in options.asked else 0,
        )
        result = evaluate(arguments, folders.setdefault(arguments, folder / slug(table.title)))  # one run, some tables
        lines = samples.read(result.path)
        made.append(report.compared(table, result.record, lines, read_lines(result.path / CONTEXTS)))
        title = f"{table.title}: {table.measure} of {table.task} on {options.model}"
        show(console, title, report.COLUMNS, report.rows(made[-1]), f"published: {table.source}")
    if options.page:
        outputs.write(options.page, report.page(suite.name, made))
    print(f"The runs are in {folder}; the same command goes on where it was stopped")
    return {"suite": suite.name, "tables": made}
