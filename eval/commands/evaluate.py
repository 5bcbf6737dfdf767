"""`eval.evaluate`, and `kamera eval`, which calls it: every reuse method side by side on a task."""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.commands import claims, meshes, outputs, suite
from eval.commands.arguments import DEFAULT
from eval.commands.eval_command import CLAIMS, DEFAULT_METHODS, LEADERBOARD, REPORT, SAMPLES, SHOWN, SUITE
from eval.commands.names import slug
from eval.report import evaluation as report
from eval.report import leaderboard
from eval.report import samples as sample_report
from eval.report.result import Result
from eval.run import forecast, runner
from eval.run.folder import LOCK, RESULTS, Record, alone, expected
from eval.tasks import TASKS, Task, check_task, for_model, get, plugins

__all__ = ["DEFAULT_METHODS", "evaluate", "run"]

OUT = Path("out")
"""The folder of runs' folders, where none is named."""

Where = Callable[[Record], Path]
"""Gives a run's folder for its arguments and versions."""


def evaluate(
    task: Any,
    model: Any = DEFAULT,
    *,
    methods: str | Sequence[str] = DEFAULT_METHODS,
    seeds: int | Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    capacity: int | None = None,
    batch: int = 10,
    devices: int | None = None,
    repeats: int = 3,
    output: str | Path | None = None,
    name: str | None = None,
    progress: runner.Progress | bool = True,
) -> Result:
    """Run every method on the same contexts of a task, as ``kamera eval`` does.

    ``evaluate("binding", "kamera-tiny-gqa", methods=["patch:12", "epic:16"], limit=9)`` is ``kamera eval binding
    --model kamera-tiny-gqa --methods patch:12,epic:16 --limit 9``, and its result can be printed.

    Args:
        task: its name (see `eval.tasks.get`), or a task: an object of the class that docs/howto/task.md shows, or the
            class. A notebook's own task is given as an object.
        model: a name (see `models.load`), or a backbone that is loaded already.
        methods: names (see `eval.methods.parse`), as a list or joined by commas; ``full`` and ``blind`` are always run.
        seeds: data seeds.
        limit: contexts of every seed; all of the task's by default.
        capacity: slots of a window; by default those that the longest context takes.
        batch: contexts run together.
        devices: how many devices they are spread over; all by default.
        repeats: how often a window is filled to time it; 0, which is fastest: times are not measured.
        output: the run's folder: new, empty, or of the same run, which then goes on where it was. By default the run is
            in memory alone; `Result.save` writes it.
        name: what reports call the model; by default the name that it is given by, or its architecture's.
        progress: whether a bar is shown in a terminal, and a line in a notebook; or a function that is called with how
            many contexts are done, and how many there are.

    Returns:
        What was measured.

    Raises:
        ValueError: see `eval.run.runner.evaluate`.
    """
    own = None if isinstance(task, str) else _checked(task)
    arguments = runner.Run(
        task=task if isinstance(task, str) else own.name,  # pyright: ignore[reportOptionalMemberAccess]
        model=name or _name_of(model),
        methods=tuple(methods.split(",") if isinstance(methods, str) else methods),
        seeds=(seeds,) if isinstance(seeds, int) else tuple(seeds),
        limit=limit,
        capacity=capacity,
        batch=batch,
        devices=devices,
        repeats=repeats,
    )
    if output is not None:
        return _evaluate(arguments, model, own, Path(output), progress)
    with tempfile.TemporaryDirectory() as folder:
        found = _evaluate(arguments, model, own, Path(folder) / "run", progress)
    return Result(found.record, found.samples, None, own, found.files)


def _evaluate(
    arguments: runner.Run, model: Any, task: Task | None, output: Path | Where, progress: runner.Progress | bool
) -> Result:
    """The result of a run in a folder."""
    from eval.methods import parse_all

    if task is None:
        get(arguments.task)  # errors in names are reported before a model is loaded
    parse_all(arguments.methods)
    if isinstance(output, Path) and (output / LOCK).exists():
        with alone(output):  # looked at before a model is loaded
            pass
    vlm = model
    if isinstance(model, (str, Path)):
        import models

        vlm = models.load(model, mesh=meshes.mesh_of(arguments.mesh))
    folders: list[Path] = []

    def folder(identity: Record) -> Path:
        folders.append(output if isinstance(output, Path) else output(identity))
        return folders[0]

    with _shown(progress, f"{arguments.task}, {arguments.model}") as advance:
        runner.evaluate(vlm, arguments, folder, advance, task=task, named=isinstance(model, (str, Path)))
    return Result.load(folders[0], task)


def _checked(task: Any) -> Task:
    """A task that is given as an object or a class."""
    made = task() if isinstance(task, type) else task
    check_task(made, "what is to be evaluated")
    if made.name in TASKS and TASKS[made.name] != made:
        raise ValueError(
            f"the task is named {made.name!r}, as a built-in one; give it a name of its own, or, if it is the built-in "
            f"one with settings, write it as text, as in '{made.name}:tokens=64'"
        )
    return made


def _name_of(model: Any) -> str:
    """What reports call a model."""
    if isinstance(model, (str, Path)):
        return str(model)
    for value in (getattr(model, "name", None), getattr(getattr(model, "architecture", None), "name", None)):
        if isinstance(value, str) and value:
            return value
    return type(model).__name__


@contextmanager
def _shown(progress: runner.Progress | bool, title: str) -> Iterator[runner.Progress]:
    """The context in which progress is shown: by a bar, a line of a notebook, or a function of the caller's."""
    if not isinstance(progress, bool):
        yield progress
    elif progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(transient=True, console=Console(stderr=True)) as bar:
            shown = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(shown, completed=done, total=total)
    elif progress and hasattr(sys, "ps1"):  # a notebook, or a prompt
        yield lambda done, total: print(
            f"\r{title}: {done} of {total} contexts",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )
    else:
        yield lambda done, total: None


def default_folder(identity: Record) -> Path:
    """The folder of a run whose user names none: the same for the same arguments and versions."""
    config = identity["config"]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    task = config["task"].partition(":")[0] if config["task"].partition(":")[0] in TASKS else config["task"]
    return OUT / f"{slug(task)}-{slug(Path(config['model']).name)}-{digest}"


def run(options: argparse.Namespace) -> Any:
    """Run the command; returns what ``--json`` writes."""
    plugins.look_here()
    if options.list:
        from eval.commands import listing

        return listing.run()
    if options.task in (CLAIMS, SUITE) and options.mesh is not None:
        raise ValueError("--mesh goes with a run of one task, as in kamera eval binding --mesh model=2")
    if options.task == CLAIMS:
        return claims.run(options)
    if options.task == SUITE:
        return suite.run(options, lambda run, folder: _evaluate(run, options.model, None, folder, progress=True))
    if options.task == LEADERBOARD:
        return _leaderboard(options)
    if options.task is None:
        raise ValueError(
            "name a task, report, samples, claims, suite or leaderboard; kamera eval --list lists the tasks and methods"
        )
    if options.task == SAMPLES:
        return _samples(options)
    if options.task == REPORT:
        if not options.runs:
            raise ValueError("give the folders of the runs to report: kamera eval report DIR…")
        named = [(path, each) for path in options.runs for each in report.load(path)]
        for path, each in named:
            with expected(path):
                report.print_report(each, every=options.all)
        return _drawn(options, named)
    return _run(options)


def _drawn(options: argparse.Namespace, named: Sequence[tuple[Path, Record]]) -> list[Record]:
    """The runs that were reported; their figures and their page are written, where they are asked for."""
    loaded = [each for _, each in named]
    if loaded and (options.figures or options.page):
        with expected(named[0][0]):
            figures = report.draw(loaded, options.figures) if options.figures else {}
            page = report.page(loaded, figures, options.page.parent) if options.page else ""
        if options.page:
            outputs.write(options.page, page)
    return loaded


def _leaderboard(options: argparse.Namespace) -> list[Record]:
    """Show the runs of folders in tables; returns these."""
    if not options.runs:
        raise ValueError(
            "give folders of runs, or folders that have some: kamera eval leaderboard DIR… [--page FILE.md]"
        )
    tables = leaderboard.tables(leaderboard.found(options.runs))
    for table in tables:
        title = f"{table['task']}: {table['measure']}, {table['contexts']} contexts, {table['samples']} questions"
        report.show_within(Console(emoji=False, highlight=False), title, leaderboard.COLUMNS, leaderboard.rows(table),
                           table["variant"], first=2)  # fmt: skip
    if options.page:
        outputs.write(options.page, leaderboard.page(tables))
    return tables


def _with_data(task: str, data: Path | None) -> str:
    """A task with the folder of its files, where one is named."""
    if data is None:
        return task
    if re.search(r"[:,]data=", task):
        raise ValueError(f"the files of {task} are named twice: by data= and by --data {data}; give one of them")
    return f"{task}{',' if ':' in task else ':'}data={data}"


def _run(options: argparse.Namespace) -> list[Record]:
    """Run a task, or score it again, and report it."""
    options.task = _with_data(options.task, options.data)
    if (Path(options.task) / RESULTS).is_file():
        raise ValueError(f"{options.task} is the folder of a run; to see it: kamera eval report {options.task}")
    if options.runs or options.figures or options.page or options.wrong or options.all:
        raise ValueError(
            "folders, --figures, --page and --all go with a report (kamera eval report DIR… --figures …), and --wrong "
            "with kamera eval samples DIR"
        )
    if options.rescore:
        if options.output is None:
            raise ValueError("--rescore scores a finished run again; give its folder: --output DIR")
        runner.rescore(options.output, options.task)
        result = Result.load(options.output)
    else:
        if options.output is None:
            outputs.check([], [("--output", OUT)])
        if options.mesh is not None and options.devices is not None:
            raise ValueError(
                f"--mesh {options.mesh} says which devices the model is split over, and --devices {options.devices} "
                "over how many copies of it contexts are spread; give the one or the other"
            )
        arguments = runner.Run(
            task=options.task,
            model=options.model,
            methods=tuple(options.methods.split(",")),
            seeds=options.seeds,
            limit=options.limit,
            capacity=options.capacity,
            batch=options.batch,
            devices=options.devices,
            repeats=options.repeats,
            mesh=options.mesh,
        )
        if options.dry_run:
            return [_forecast(arguments)]
        result = _evaluate(arguments, options.model, None, options.output or default_folder, progress=True)
    folder = result.path
    result.report()
    print(
        f"The run is in {folder}\n  kamera eval report {folder}   shows it again\n"
        f"  kamera eval samples {folder}  shows what each method answered"
    )
    if result.failed:
        raise outputs.UnfinishedError(
            f"kamera: {', '.join(result.failed)} failed; to try again, run it into another folder", [result.record]
        )
    return [result.record]


def _forecast(arguments: runner.Run) -> Record:
    """Say what a run will take; nothing is written."""
    import models

    task = get(arguments.task)
    vlm = models.load(arguments.model)
    found = forecast.forecast(vlm, for_model(task, vlm), arguments.methods, arguments.seeds, arguments.limit)
    print(f"{arguments.task} on {arguments.model}, nothing is run:")
    print("\n".join(f"  {line}" for line in forecast.lines(found)))
    return found


def _samples(options: argparse.Namespace) -> list[Record]:
    """Show what methods answered; returns the questions that are chosen, all of them."""
    if len(options.runs) != 1:
        raise ValueError("give the folder of one run: kamera eval samples DIR [--wrong] [--method M,…]")
    folder = options.runs[0]
    samples = sample_report.read(folder)
    methods = options.methods.split(",") if "methods" in options.asked else []
    with expected(folder):
        found = sample_report.chosen(samples, methods, wrong=options.wrong, every=options.all)
        most = options.limit or (len(found) if options.all else SHOWN)
        sample_report.print_samples(found[:most])
    which = "that were asked" if options.all else "answered wrong" if options.wrong else "answered differently"
    shown = min(most, len(found))
    print(f"{shown} of {len(found)} questions {which}, of {len(samples)} in the run")
    if shown < len(found):
        print(f"--limit {len(found)} shows all of these, --json FILE writes them")
    elif samples and not found:
        print("--all shows every question")
    return found
