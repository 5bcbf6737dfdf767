"""The arguments of `kamera doctor`; what it looks at is in `eval.commands.doctor`."""

import argparse
from typing import Any

from eval.commands.arguments import add_json, positive


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "doctor",
        help="what is installed, what it runs on, and which kernels will run",
        description="Versions, devices, a check of the operator against float64, and for every operation which kernel "
        "serves it here, on a TPU and on a Hopper GPU, and why not a faster one.",
        epilog="examples:\n  kamera doctor\n  kamera doctor --model FOLDER --slots 8192\n"
        "  kamera doctor --warm smollm2 --slots 2048",
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
    add_json(command)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import doctor

    if options.warm is not None:
        doctor.warm(options.warm, options.slots, options.mode)
    result = doctor.examine(options.models, options.slots)
    doctor.show(result)
    return result
