"""`kamera eval`, as the command line has it."""

import argparse
from pathlib import Path
from typing import Any

DEFAULT_METHODS = (
    "full,blind,blind-norotate,patch:4,patch:8,patch:12,patch:energy=0.9,patch:bytes=0.25,patch:deep,patch:shallow,"
    "cacheblend:0.15,cacheblend:0.25,epic:8,epic:16,mpic:8,vlcache:0.05,vlcache:0.25,"
    "oracle-tokens:0.05,oracle-tokens:0.25,patch:4+epic:8"
)
REPORT = "report"


def add_parser(commands: Any, default_model: str) -> argparse.ArgumentParser:
    """Put the command among the others."""
    command = commands.add_parser(
        "eval",
        help="every reuse method side by side, on a task",
        description="Run every method on the same contexts, into a folder; a run that was stopped goes on where it "
        "was. With `report`, show what finished runs hold.",
        epilog="examples: kamera eval binding --methods full,blind,patch:12,cacheblend:0.15 --limit 18 --output out/run"
        "; kamera eval report out/run --figures out/figures",
    )
    command.add_argument("task", help=f"a task, or {REPORT}: the tables and figures of finished runs")
    command.add_argument(
        "runs", nargs="*", type=Path, metavar="DIR", help="report: the runs' folders, or what --json wrote of them"
    )
    command.add_argument("--model", default=default_model, help=f"as of kamera ask (default: {default_model})")
    command.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        help="comma-separated; full and blind are always run (default: %(default)s)",
    )
    command.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="0,1,…", help="data seeds (default: 0,1,2)")
    command.add_argument("--limit", type=int, metavar="N", help="contexts of every seed (default: all)")
    command.add_argument("--capacity", type=int, metavar="N", help="slots of a window (default: the longest context's)")
    command.add_argument("--batch", type=int, default=10, metavar="N", help="contexts run together (default: 10)")
    command.add_argument("--devices", type=int, metavar="N", help="devices to spread them over (default: all)")
    command.add_argument("--output", type=Path, metavar="DIR", help="the run's folder: new, empty, or to go on with")
    command.add_argument(
        "--rescore", action="store_true", help="score --output again from its samples: no model is run"
    )
    command.add_argument("--figures", type=Path, metavar="DIR", help="report: draw the figures there")
    command.add_argument("--page", type=Path, metavar="FILE.md", help="report: write it there as a page")
    return command


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, as in 0,1,2; got {text}") from None


def run(options: argparse.Namespace) -> Any:
    """Run the command; returns what ``--json`` writes."""
    from eval.report import evaluation as report

    if options.task == REPORT:
        if not options.runs:
            raise ValueError("give the folders of the runs to report: kamera eval report DIR…")
        loaded = [each for path in options.runs for each in report.load(path)]
    else:
        if options.runs or options.figures or options.page:
            raise ValueError("folders, --figures and --page go with a report: kamera eval report DIR… --figures …")
        if options.output is None:
            raise ValueError("give the run a folder: --output DIR")
        _run(options)
        loaded = report.load(options.output)
    for each in loaded:
        report.print_report(each)
    if options.figures or options.page:
        figures = report.draw(loaded, options.figures) if options.figures else {}
        if options.page:
            options.page.write_text(report.page(loaded, figures, options.page.parent), encoding="utf-8")
    return loaded


def _run(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from eval import tasks
    from eval.methods import parse_all
    from eval.run import runner
    from models import load

    if options.rescore:
        runner.rescore(options.output)
        return
    methods = tuple(options.methods.split(","))
    tasks.get(options.task)  # refused before a model is loaded for nothing, and so is
    parse_all(methods)
    asked = runner.Run(
        task=options.task,
        model=options.model,
        methods=methods,
        seeds=options.seeds,
        limit=options.limit,
        capacity=options.capacity,
        batch=options.batch,
        devices=options.devices,
    )
    with Progress(transient=True) as bar:
        shown = bar.add_task(f"{options.task}, {options.model}", total=None)
        runner.evaluate(
            load(options.model),
            asked,
            options.output,
            lambda done, total: bar.update(shown, completed=done, total=total),
        )
