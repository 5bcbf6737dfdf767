"""The arguments of `kamera library`; what it does is in `eval.commands.library`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import add_json

ACTIONS = (
    ("ls", "list every chunk and patch"),
    ("info", "show one chunk or patch"),
    ("verify", "read everything and compare it with its digests"),
    ("gc", "free the space of what was deleted, and merge small packs"),
)


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser("library", help="list, show, verify or collect a chunk library")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text in ACTIONS:
        action = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == "info":
            action.add_argument("key", metavar="KEY", help="key of a chunk or a patch, or the beginning of one")
        action.add_argument("library", type=Path, metavar="DIR", help="the library's folder")
        add_json(action)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import library

    return library.run(options)
