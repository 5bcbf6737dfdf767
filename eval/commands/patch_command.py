"""The arguments of `kamera patch`; what it does is in `eval.commands.patch`."""

import argparse
from typing import Any

from eval.commands.arguments import add_json, add_model, add_pages, positive, up_to_one, written_to


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "patch",
        help="form and store patches of what is asked about together",
        description="For each item behind the ones before it, form the patch of what it absorbs from them, and store "
        "it in the library, with the chunks that are not there yet. kamera ask, with the same library and the same "
        "items in the same order, then uses the patches and runs no forward for them.",
        epilog="example: kamera patch --library library/ report.pdf:3 report.pdf:1",
    )
    command.add_argument(
        "items",
        nargs="+",
        metavar="PATH|KEY",
        help="an image, .txt, .md, .pdf, video or sound file, pages of one as report.pdf:3 or report.pdf:3-5, a folder "
        "of them, or the key of a chunk in the library or its beginning; in the order in which they will be asked "
        "about",
    )
    add_pages(command)
    command.add_argument(
        "--library",
        type=written_to,
        required=True,
        metavar="DIR",
        help="the library's folder; it is made if it is missing",
    )
    add_model(command)
    command.add_argument(
        "--any-order",
        action="store_true",
        help="form for each item, the first too, one patch behind all others that serves every order of them",
    )
    size = command.add_mutually_exclusive_group()
    size.add_argument("--rank", type=positive, metavar="M", help="components in every layer")
    size.add_argument("--bytes", type=positive, metavar="N", help="bytes that each patch may take")
    size.add_argument(
        "--energy", type=up_to_one("a share"), metavar="E", help="share of the squared change to keep, up to 1"
    )
    add_json(command)
    return command


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import patch

    return patch.run(options)
