"""The arguments of `kamera doctor`; what it looks at is in `eval.commands.doctor`."""

import argparse
from typing import Any

from eval.commands.arguments import add_dtype, add_json, positive


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "doctor",
        help="what is installed, what it runs on, and which kernels will run",
        description="Versions, devices, a check of the operator against float64, and for every operation which kernel "
        "serves it here, on a TPU and on a Hopper GPU, and why not a faster one.",
        epilog="examples:\n  kamera doctor\n  kamera doctor --model FOLDER --slots 8192\n"
        "  kamera doctor --warm smollm2 --slots 2048\n  kamera doctor --compile qwen2.5-vl-7b --mesh v6e-1",
    )
    command.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="MODEL",
        help="look at this model's calls; repeat it (default: well-known backbones, in bf16)",
    )
    command.add_argument(
        "--slots", type=positive, default=4096, metavar="N", help="slots of the window (default: 4096)"
    )
    command.add_argument(
        "--warm",
        metavar="MODEL",
        help="compile what a session of this model runs, with --slots slots, so that a later process takes it from the "
        "cache of compiled programs",
    )
    command.add_argument(
        "--mode",
        choices=("materialise", "in_place"),
        default="materialise",
        help="how that session's window keeps its chunks: written rotated and patched, or read where they lie "
        "(default: materialise)",
    )
    _add_compile(command)
    add_json(command)
    return command


def _add_compile(command: argparse.ArgumentParser) -> None:
    """Add the options of ``--compile``."""
    command.add_argument(
        "--compile",
        metavar="MODEL",
        help="compile prefill, forming, reuse and decoding of this model for chips that are not here, and show what "
        "they keep, move and compute, and whether it fits: a published model by name, such as qwen2.5-vl-7b, or a "
        "folder with its config.json; weights are not needed",
    )
    command.add_argument(
        "--mesh", default="v5e-1", metavar="CHIP-N", help="the chips, as v5e-8, v6e-1 or h200 (default: v5e-1)"
    )
    command.add_argument(
        "--window", type=positive, default=32768, metavar="N", help="slots of their window (default: 32768)"
    )
    command.add_argument(
        "--chunk", type=positive, default=1024, metavar="N", help="tokens of the chunk (default: 1024)"
    )
    command.add_argument("--rank", type=positive, default=32, metavar="N", help="components of its patch (default: 32)")
    add_dtype(command)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    if options.compile is not None:
        from eval.commands import ahead

        result = ahead.compile_model(
            options.compile,
            options.mesh,
            window=options.window,
            chunk=options.chunk,
            rank=options.rank,
            dtype=options.dtype or "bfloat16",
        )
        ahead.show(result)
        return result
    from eval.commands import doctor

    if options.warm is not None:
        doctor.warm(options.warm, options.slots, options.mode)
    result = doctor.examine(options.models, options.slots)
    doctor.show(result)
    return result
