"""The arguments of `kamera library`; what it does is in `eval.commands.library`."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import add_json, read_from, written_to

ACTIONS = (
    ("ls", "list the chunks and patches, with the files they come from"),
    ("info", "show one chunk or patch"),
    ("stats", "count what there is, in bytes by storage, and what sessions were served from it"),
    ("rm", "remove chunks, with their patches, or patches"),
    ("export", "copy chunks, with their patches, to another library or into one file"),
    ("import", "copy everything from another library, or from a file that export wrote"),
    ("publish", "upload what is new to an object store, where readers open the library in place"),
    ("verify", "read everything and compare it with its digests"),
    ("gc", "free the space of what was deleted, and merge small packs"),
)

_KEY = "key of a chunk or a patch, or the beginning of one"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "library", help="list, show, count, remove, copy, publish, verify or collect a chunk library"
    )
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text in ACTIONS:
        action = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        written = name in ("rm", "import", "publish", "gc")
        action.add_argument(
            "library",
            type=written_to if written else read_from,
            metavar="DIR" if written else "DIR|URL",
            help="the library's folder" + ("" if written else ", or the address that it was published at"),
        )
        if name == "ls":
            action.add_argument("name", nargs="?", metavar="TEXT", help="only chunks of files with this in their names")
        if name == "info":
            action.add_argument("key", metavar="KEY", help=_KEY)
        if name in ("rm", "export"):
            action.add_argument("keys", nargs="*", metavar="KEY", help=_KEY)
            action.add_argument("--name", metavar="TEXT", help="also all chunks of files with this in their names")
        if name == "export":
            action.add_argument("--all", action="store_true", help="everything there is")
            action.add_argument(
                "--to",
                type=Path,
                required=True,
                metavar="OTHER",
                help="another library's folder, made if it is missing, or a new file whose name ends in .tar",
            )
        if name == "import":
            action.add_argument(
                "other", type=read_from, metavar="OTHER", help="the other library's folder or address, or the file"
            )
        if name == "publish":
            action.add_argument(
                "url", metavar="URL", help="a folder of an object store: gs://BUCKET/…, s3://BUCKET/… or file:///…"
            )
            action.add_argument(
                "--prune",
                action="store_true",
                help="then remove what is published no more; who opened the library before may still be reading it",
            )
        add_json(action)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import library, library_stats

    return library_stats.run(options) if options.action == "stats" else library.run(options)
