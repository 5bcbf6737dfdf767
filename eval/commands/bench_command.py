"""The arguments of `kamera bench`, and running it; see `eval.commands.bench` and `eval.commands.bench_operations`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import outputs
from eval.commands.arguments import add_dtype, add_json, add_model, positive


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
    _add_operations(operations)
    return command


def _add_operations(operations: Any) -> None:
    """Add what is measured beside forming."""
    relocate = operations.add_parser(
        "relocate",
        help="writing a chunk into a window, rotated and patched, against a copy of as many bytes",
        description="Write a chunk of random KV into a window, rotated and patched, in turns with a copy that moves as "
        "many bytes.",
        epilog="example:\n  kamera bench relocate --shape kimi-vl --tokens 1024",
    )
    attention = operations.add_parser(
        "attention",
        help="attention to chunks where they lie, and of a prefill",
        description="Attend to chunks where they lie, and from a prefill's tokens to a window and themselves.",
        epilog="example:\n  kamera bench attention --shape 'kimi-vl decode'",
    )
    e2e = operations.add_parser(
        "e2e",
        help="the first answer token about a chunk that comes back: by reuse, and by running it again",
        description="A chunk of random tokens comes back: it is written with its patch, or run again, in turns; then "
        "a question is run, and the first token of its answer is there.",
        epilog="example:\n  kamera bench e2e --model smollm2 --tokens 512",
    )
    for command in (relocate, attention):
        command.add_argument(
            "--shape",
            dest="shapes",
            action="append",
            metavar="NAME",
            help="of a backbone whose attention has these dimensions; repeat it (default: two well-known ones)",
        )
        add_dtype(command)
    attention.add_argument(
        "--tokens", type=positive, default=512, metavar="N", help="tokens of the prefill (default: 512)"
    )
    attention.add_argument(
        "--slots", type=positive, default=2048, metavar="N", help="of the window before it (default: 2048)"
    )
    add_model(e2e)
    add_dtype(e2e)
    e2e.add_argument("--rank", type=positive, help="rank of the patch (default: 10 %% of the chunk's bytes)")
    e2e.add_argument(
        "--before", type=positive, metavar="N", help="tokens of the chunk before (default: as many as the chunk's)"
    )
    for command in (relocate, e2e):
        command.add_argument(
            "--tokens",
            type=positive,
            nargs="+",
            default=[256, 1024],
            metavar="N",
            help="tokens of the chunks (default: 256 1024)",
        )
    for command in (relocate, attention, e2e):
        command.add_argument("--runs", type=positive, default=5, help="runs, of which the median counts (default: 5)")
        add_json(command)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(options.what, total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=name)

        result = _measured(options, progress)
    _show(options, result)
    return result


def _measured(options: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Measure what was asked for."""
    from eval.commands import bench, bench_operations
    from eval.commands.arguments import check_dtype

    if options.what == "form":
        return bench.measure(
            bench.RandomDecoder(), lengths=options.tokens, rank=options.rank, runs=options.runs, progress=progress
        )
    check_dtype(options.dtype)
    common: dict[str, Any] = {"runs": options.runs, "progress": progress}
    if options.what == "e2e":
        from models import load

        vlm = load(options.model, dtype=options.dtype)
        sizes: dict[str, Any] = {"tokens": options.tokens, "before": options.before, "rank": options.rank}
        return bench_operations.look_back(vlm, **sizes, **common) | {"model": options.model}
    common |= {"dtype": _name(options.dtype)}
    if options.what == "relocate":
        return bench_operations.relocate(options.shapes or bench_operations.RELOCATED, tokens=options.tokens, **common)
    return bench_operations.attend(
        options.shapes or bench_operations.ATTENDED, tokens=options.tokens, slots=options.slots, **common
    )


def _name(dtype: str | None) -> str:
    """The full name of a dtype; f32 if none is asked for."""
    from kamera_jax.dtypes import floating

    return "float32" if dtype is None else floating(dtype).name


def _show(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the table, and draw what is to be drawn."""
    from eval.report import console as report

    tables = {
        "form": report.print_form,
        "relocate": report.print_relocate,
        "attention": report.print_attention,
        "e2e": report.print_look_back,
    }
    tables[options.what](result)
    if getattr(options, "plot", None):
        outputs.write_by(options.plot, lambda path: report.plot_form(result, path))
