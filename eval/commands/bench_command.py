"""The arguments of `kamera bench`, and running it; what it measures is in `eval.commands.bench`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import outputs
from eval.commands.arguments import add_json, positive


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "bench",
        help="measure what an operation costs on this machine",
        description="Measure what an operation costs on this machine.",
        epilog="example:\n  kamera bench form --tokens 256 512",
    )
    operations = command.add_subparsers(dest="what", required=True, metavar="WHAT")
    form = operations.add_parser(
        "form",
        help="forming a patch, and after how many reuses it has paid",
        description="Encode, form, apply and re-prefill, taken in turns, on a decoder of random weights: 8 layers of "
        "width 1024, f32. A patch has paid after form / (re-prefill - apply) reuses.",
        epilog="example:\n  kamera bench form --tokens 256 512 --plot form.png",
    )
    form.add_argument(
        "--tokens",
        type=positive,
        nargs="+",
        default=[256, 512, 1024],
        metavar="N",
        help="tokens of the chunks (default: 256 512 1024)",
    )
    form.add_argument("--rank", type=positive, help="rank of the patch (default: 10 %% of the chunk's bytes)")
    form.add_argument("--runs", type=positive, default=5, help="runs, of which the median counts (default: 5)")
    form.add_argument("--plot", type=Path, metavar="FILE.png", help="draw milliseconds against tokens")
    add_json(form)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from rich.progress import Progress

    from eval.commands import bench as forming
    from eval.report import console as report

    with Progress(transient=True) as bar:
        task = bar.add_task("chunks", total=len(options.tokens))

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=name)

        result = forming.measure(
            forming.RandomDecoder(), lengths=options.tokens, rank=options.rank, runs=options.runs, progress=progress
        )
    report.print_form(result)
    if options.plot:
        outputs.write_by(options.plot, lambda path: report.plot_form(result, path))
    return result
