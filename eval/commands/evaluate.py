"""`kamera eval`: every reuse method side by side on a task, and reports of finished runs."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import claims, outputs
from eval.commands.arguments import add_json, add_model, positive

DEFAULT_METHODS = (
    "full,blind,blind-norotate,patch:4,patch:8,patch:12,patch:energy=0.9,patch:bytes=0.25,patch:deep,patch:shallow,"
    "cacheblend:0.15,cacheblend:0.25,epic:8,epic:16,mpic:8,vlcache:0.05,vlcache:0.25,"
    "oracle-tokens:0.05,oracle-tokens:0.25,patch:4+epic:8"
)
REPORT = "report"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "eval",
        help="every reuse method side by side, on a task",
        description="Run every method on the same contexts, into a folder; a run that was stopped goes on where it "
        "was. With `report`, show the tables of finished runs. Tasks and methods of other packages are written "
        "package.module:Name; see docs/howto/task.md.",
        epilog="examples: kamera eval binding --methods full,blind,patch:12,cacheblend:0.15 --limit 18 --output out/run"
        "; kamera eval report out/run --figures out/figures",
    )
    command.add_argument(
        "task",
        nargs="?",
        help=f"a task: its name, or package.module:Name; {REPORT}: the tables and figures of finished runs; or "
        f"{claims.CLAIMS}: what the paper claims, and whether it holds",
    )
    command.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="report, claims: the runs' folders, or files that --json wrote",
    )
    command.add_argument("--list", action="store_true", help="list the tasks and methods that there are")
    add_model(command)
    command.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        help="comma-separated; full and blind are always run (default: %(default)s)",
    )
    command.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="0,1,…", help="data seeds (default: 0,1,2)")
    command.add_argument("--limit", type=int, metavar="N", help="contexts of every seed (default: all)")
    command.add_argument("--capacity", type=int, metavar="N", help="slots of a window (default: the longest context's)")
    command.add_argument("--batch", type=int, default=10, metavar="N", help="contexts run together (default: 10)")
    command.add_argument("--devices", type=positive, metavar="N", help="devices to spread them over (default: all)")
    command.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="how often a window is filled to time it; 0: times are not measured (default: %(default)s)",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="the run's folder: new, empty, or to go on with")
    command.add_argument(
        "--rescore", action="store_true", help="score --output again from its samples: no model is run"
    )
    command.add_argument("--figures", type=Path, metavar="DIR", help="report: draw the figures into this folder")
    command.add_argument("--page", type=Path, metavar="FILE.md", help="report, claims: write the Markdown page")
    claims.add_note(command)
    add_json(command)
    return command


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, as in 0,1,2; got {text}") from None


def run(options: argparse.Namespace) -> Any:
    """Run the command; returns what ``--json`` writes."""
    if options.list:
        return _list()
    if options.task == claims.CLAIMS:
        return claims.run(options)
    from eval.report import evaluation as report
    from eval.run.folder import expected

    if options.task is None:
        raise ValueError("name a task, report or claims; kamera eval --list lists the tasks and methods")
    if options.task == REPORT:
        if not options.runs:
            raise ValueError("give the folders of the runs to report: kamera eval report DIR…")
        named = [(path, each) for path in options.runs for each in report.load(path)]
    else:
        if options.runs or options.figures or options.page:
            raise ValueError("folders, --figures and --page go with a report: kamera eval report DIR… --figures …")
        if options.output is None:
            raise ValueError("give the run a folder: --output DIR")
        _run(options)
        named = [(options.output, each) for each in report.load(options.output)]
    for path, each in named:
        with expected(path):
            report.print_report(each)
    loaded = [each for _, each in named]
    if loaded and (options.figures or options.page):
        with expected(named[0][0]):
            figures = report.draw(loaded, options.figures) if options.figures else {}
            page = report.page(loaded, figures, options.page.parent) if options.page else ""
        if options.page:
            outputs.write(options.page, page)
    return loaded


def _list() -> dict[str, Any]:
    """Print the tasks and methods, built in and of installed packages."""
    from rich.console import Console

    from eval import tasks
    from eval.methods import names
    from eval.report.console import show

    console = Console(emoji=False, highlight=False)
    listed = {}
    for title, group, builtin in (
        ("Tasks", tasks.GROUP, list(tasks.TASKS)),
        ("Methods", names.GROUP, list(names.EXAMPLES.values())),
    ):
        rows = [{"name": name, "source": "built in", "problem": "", "what": _about(name)} for name in builtin]
        for name, points in group.declared().items():
            source = ", ".join(point.value for point in points)
            rows.append({"name": name, "source": source, "problem": group.problem(name, points), "what": ""})
        columns = ("name", "source")
        show(console, title, columns, [[row[column] for column in columns] for row in rows], right=False)
        for row in rows:
            if row["what"]:
                console.print(f"{row['name']}: {row['what']}", markup=False, soft_wrap=True, style="dim")
            if row["problem"]:
                console.print(f"{row['name']} cannot be used: {row['problem']}\n", markup=False, soft_wrap=True)
        listed[title.lower()] = rows
    console.print(
        "Parts of methods are joined by +, as in patch:4+epic:8. Settings of a task stand\n"
        "behind its name, as in continuation:tokens=256,corpus=docstrings. Tasks and\n"
        "methods of other packages are also written package.module:Name.",
        style="dim",
    )
    return listed


def _about(name: str) -> str:
    """What a built-in task is, in a line; empty for methods."""
    from eval import tasks

    return (type(tasks.TASKS[name]).__doc__ or "").partition("\n")[0] if name in tasks.TASKS else ""


def _run(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from eval import tasks
    from eval.methods import parse_all
    from eval.run import runner
    from eval.run.folder import LOCK, alone
    from models import load

    if options.rescore:
        runner.rescore(options.output, options.task)
        return
    methods = tuple(options.methods.split(","))
    tasks.get(options.task)  # errors in names are reported before a model is loaded
    parse_all(methods)
    if (options.output / LOCK).exists():
        with alone(options.output):  # looked at before a model is loaded
            pass
    arguments = runner.Run(
        task=options.task,
        model=options.model,
        methods=methods,
        seeds=options.seeds,
        limit=options.limit,
        capacity=options.capacity,
        batch=options.batch,
        devices=options.devices,
        repeats=options.repeats,
    )
    with Progress(transient=True) as bar:
        shown = bar.add_task(f"{options.task}, {options.model}", total=None)
        runner.evaluate(
            load(options.model),
            arguments,
            options.output,
            lambda done, total: bar.update(shown, completed=done, total=total),
        )
