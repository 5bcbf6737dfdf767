"""The subcommands of `kamera`, each of which declares its own arguments, and running one of them."""

import argparse
import json
import os
import sys
from pathlib import Path

import shtab

from eval.commands import (
    ask_command,
    bench_command,
    demo_command,
    doctor_command,
    encode_command,
    evaluate,
    library_command,
    outputs,
)

COMMANDS = (
    demo_command,
    ask_command,
    doctor_command,
    encode_command,
    library_command,
    bench_command,
    evaluate,
)
"""The subcommands: modules with ``add_parser(commands)`` and ``run(options)``, which returns what ``--json`` writes."""

FILES = ("json", "plot", "page", "animate")
"""The options that name files which commands write."""

FOLDERS = {"demo": ("pages",), "encode": ("library",), "eval": ("figures", "output")}
"""The options that name folders which commands write to."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="kamera",
        description="Encode a page, frame or passage once; reuse its KV anywhere in a window, with a low-rank patch "
        "for what it would have absorbed from its neighbours.",
        epilog="Compiled programs and converted GGUF files are cached in the user's cache folder; KAMERA_CACHE=off in "
        "the environment turns it off, and JAX_COMPILATION_CACHE_DIR names another folder. A file to be written may "
        "be -, which is standard output: what is otherwise printed there then goes to standard error.",
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    shtab.add_argument_to(top, help="print a completion script: kamera --print-completion bash > FILE; source FILE")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return top


def check(options: argparse.Namespace) -> list[Path]:
    """The files that the command will write.

    Raises:
        OutputError: one of them, or a folder, cannot be written, or is what the command reads.
    """
    files = [(f"--{name}", getattr(options, name)) for name in FILES if getattr(options, name, None)]
    folders = [
        (f"--{name}", getattr(options, name)) for name in FOLDERS.get(options.command, ()) if getattr(options, name)
    ]
    outputs.check(files, folders)
    read = getattr(options, "paths", None) or getattr(options, "items", None) or ()
    for option, path in files:
        if any(os.path.realpath(each) == os.path.realpath(path) for each in read):
            raise outputs.OutputError(f"{option} {path}: the command reads this file; give another one")
    return [path for _, path in files]


def run(options: argparse.Namespace, files: list[Path]) -> int:
    """Run the command that was parsed, and write its result; returns the exit status.

    Args:
        options: what was parsed.
        files: what `check` returned.
    """
    with outputs.kept_for_results(files):
        try:
            result = options.run(options)
            status = 0
        except outputs.UnfinishedError as error:
            result = error.result
            status = error.status
            print(error, file=sys.stderr)
        if options.json:
            indent = None if options.command == "eval" else 2
            outputs.write(options.json, json.dumps(result, indent=indent) + "\n")
    return status
