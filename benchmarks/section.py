"""A section of a page as a command: `measure` writes its figures as JSON, `page` puts them into the page."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.report.readme import put

Add = Callable[[argparse.ArgumentParser], None]


def command(
    about: str,
    mark: str,
    target: str,
    limit: int,
    measured: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    add: Add = lambda _: None,
) -> None:
    """Measure, or write the page's section.

    Args:
        about: what the command does.
        mark: of the section in the page; see `eval.report.readme.put`.
        target: of make, which runs both.
        limit: of contexts, by default.
        measured: gives the figures.
        table: makes the section of them.
        add: more options of `measure`.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    measure = parts.add_parser("measure")
    measure.add_argument("--json", type=Path, required=True)
    measure.add_argument("--limit", type=int, default=limit)
    add(measure)
    page = parts.add_parser("page")
    page.add_argument("json", type=Path)
    page.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "measure":
        options.json.write_text(json.dumps(measured(options), indent=1) + "\n", encoding="utf-8")
        return
    result = json.loads(options.json.read_text(encoding="utf-8"))
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(put(text, mark, table(result), target), encoding="utf-8")
