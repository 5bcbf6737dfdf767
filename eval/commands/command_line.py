"""The subcommands of `kamera`, each of which declares its own arguments, and running one of them."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import shtab

from eval.commands import (
    ask_command,
    bench_command,
    demo_command,
    doctor_command,
    encode_command,
    eval_command,
    library_command,
    outputs,
    patch_command,
    streams,
)
from eval.commands.arguments import add_common
from eval.commands.help_text import HelpFormatter

COMMANDS = (
    demo_command,
    ask_command,
    doctor_command,
    encode_command,
    patch_command,
    library_command,
    bench_command,
    eval_command,
)
"""The subcommands: modules with ``add_parser(commands)`` and ``run(options)``, which returns what ``--json`` writes.

One whose options take more than the command line sets ``prepare``, a function that completes them, as a default."""

FILES = ("json", "plot", "page", "animate")
"""The options that name files which commands write."""

FOLDERS = {"demo": ("pages",), "encode": ("library",), "patch": ("library",), "eval": ("figures", "output")}
"""The options that name folders which commands write to."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="kamera",
        description="Encode a page, frame or passage once; reuse its KV anywhere in a window, with a low-rank patch "
        "for what it would have absorbed from its neighbours.",
        formatter_class=HelpFormatter,
        epilog="examples:\n  kamera demo\n  kamera ask 'what colour is the star?' --item examples/pages/first.png\n"
        "  kamera help ask\n\nCompiled programs and converted GGUF files are cached in the user's cache folder; "
        "KAMERA_CACHE=off in the environment turns it off, and JAX_COMPILATION_CACHE_DIR names another folder. A "
        "file to be written may be -, which is standard output: what is otherwise printed there then goes to "
        "standard error.",
    )
    top.add_argument("--version", action="version", version=f"kamera {version()}", help="show the version and exit")
    add_common(top)
    shtab.add_argument_to(top, help="print a completion script: kamera --print-completion bash > FILE; source FILE")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    for each in commands.choices.values():
        _add_behind(each)
    helping = commands.add_parser(
        "help",
        help="show the help of a command: kamera help ask",
        description="Show the help of a command, as the command itself does with --help.",
        epilog="example:\n  kamera help library ls",
        formatter_class=HelpFormatter,
    )
    helping.add_argument("topic", nargs="*", metavar="COMMAND", help="the command; without one, all commands")
    return top


def _add_behind(command: argparse.ArgumentParser) -> str:
    """Let a command, and those within it, take what stands before it behind it too; lay out their help.

    Returns:
        An example of the command, with what it needs: its help ends with it where it has no other.
    """
    command.formatter_class = HelpFormatter
    needed = command.prog.split()
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            needed = [[_add_behind(each) for each in action.choices.values()][0]]
        elif action.required:
            needed += [*action.option_strings[-1:], str(action.metavar or action.dest)]
    if command.epilog is None:
        command.epilog = f"example:\n  {' '.join(needed)}"
    add_common(command, default=argparse.SUPPRESS)
    return " ".join(needed)


def version() -> str:
    """The version that is installed; of a checkout that is not, what it says of itself."""
    try:
        return metadata.version("kamera-jax")
    except metadata.PackageNotFoundError:
        import kamera_jax

        return kamera_jax.__version__


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options.

    Raises:
        SystemExit: help or the version was asked for and shown, or the arguments are none.
    """
    top = parser()
    options = top.parse_args(arguments)
    if options.command == "help":
        top.parse_args([*options.topic, "--help"])
    if options.command is None:
        top.print_help(sys.stderr)
        raise SystemExit(2)
    return options


def check(options: argparse.Namespace) -> list[Path]:
    """The files that the command will write.

    Raises:
        OutputError: one of them, or a folder, cannot be written, or is what the command reads.
    """
    if prepare := getattr(options, "prepare", None):
        prepare(options)
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
    with outputs.kept_for_results(files), streams.quiet(options.quiet):
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
