"""The `kamera` command: its subcommands, each of which declares its own arguments."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shtab

from eval.commands import (
    ask_command,
    bench_command,
    compile_cache,
    demo_command,
    doctor_command,
    encode_command,
    evaluate,
    library_command,
)
from eval.commands.arguments import ATTENTIONS, DEFAULT, EMBEDDED

__all__ = ["ATTENTIONS", "DEFAULT", "EMBEDDED", "main", "parser"]

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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="kamera",
        description="Encode a page, frame or passage once; reuse its KV anywhere in a window, with a low-rank patch "
        "for what it would have absorbed from its neighbours.",
        epilog="Compiled programs and converted GGUF files are cached in the user's cache folder; KAMERA_CACHE=off in "
        "the environment turns it off, and JAX_COMPILATION_CACHE_DIR names another folder.",
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    shtab.add_argument_to(top, help="print a completion script: kamera --print-completion bash > FILE; source FILE")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error in what was given, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    compile_cache.enable()
    try:
        result = options.run(options)
        if options.json:
            _write_json(options.json, result, indent=None if options.command == "eval" else 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"kamera: {error}", file=sys.stderr)
        return 1
    return 0


def _write_json(path: Path, result: Any, indent: int | None) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=indent) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
