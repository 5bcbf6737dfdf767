"""Reports of `kamera eval`: tables in the terminal; `eval.report.run_page` writes the Markdown page."""

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from eval import tasks
from eval.report import figures
from eval.report.console import counted, show
from eval.report.run_page import page
from eval.report.run_tables import (
    LOGITS,
    answer_columns,
    answers_note,
    cell,
    columns,
    compared,
    conditions,
    cost_columns,
    costs_note,
    failed,
    findings,
    load,
    official,
    outcome,
    rows,
    verdict,
)
from eval.run.folder import Record
from eval.tasks.comparison import measures

__all__ = [
    "answers_note",
    "cell",
    "columns",
    "conditions",
    "draw",
    "findings",
    "load",
    "page",
    "print_report",
    "rows",
    "show_within",
    "verdict",
]

draw = figures.draw

WIDTH = 80
"""Columns of a terminal that tables keep to."""

NAME = 38
"""Columns of a method's name in tables; longer ones are shortened in the middle."""


def shortened(name: str, width: int = NAME) -> str:
    """A name of at most so many columns, without its middle if it is longer."""
    if len(name) <= width:
        return name
    kept = width - 1
    return f"{name[: kept // 3]}…{name[-(kept - kept // 3) :]}"


def show_within(
    console: Console,
    title: str,
    names: Sequence[str],
    body: Sequence[Sequence[str]],
    note: str = "",
    *,
    first: int = 1,
    last: int = 0,
) -> None:
    """Print a table within 80 columns; what has no room stands in further tables below it, all columns in order.

    Args:
        console: where to.
        title: printed above it.
        names: the columns' titles.
        body: texts, one for each column.
        note: printed below the last table.
        first, last: how many columns at the beginning, and at the end, every one of these tables has.
    """
    names = [shortened(name) for name in names]
    body = [[*map(shortened, row[:first]), *row[first:]] for row in body]
    widths = [max(len(row[i]) for row in (names, *body)) + 2 for i in range(len(names))]
    ends = len(names) - last
    fixed = sum(widths[:first]) + sum(widths[ends:]) - 2
    blocks: list[list[int]] = [[]]
    for column in range(first, ends):
        taken = fixed + sum(widths[each] for each in blocks[-1])
        if blocks[-1] and taken + widths[column] > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    for number, block in enumerate(blocks):
        columns = [*range(first), *block, *range(ends, len(names))]
        rows = [[row[i] for i in columns] for row in body]
        heading = title if not number else f"{title} (continued)"
        show(console, heading, [names[i] for i in columns], rows, note if block is blocks[-1] else "")


def print_report(run: Record, console: Console | None = None, *, every: bool = False, task: Any = None) -> None:
    """Print a run's tables, and what its task finds in them.

    Args:
        run: see `load`.
        console: where to; the terminal by default.
        every: whether the table by condition has all methods, however many there are.
        task: the task, where it cannot be found by its name.
    """
    console = console or Console(emoji=False, highlight=False)
    scores = run["scores"]
    print_scores(run, console)
    shown, left = compared(run, every=every)
    note = ""
    if left:
        note = f"not in this table: {', '.join(left)}; --all shows every method"
        note = textwrap.fill(note, WIDTH - 1, break_long_words=False, break_on_hyphens=False)
    title = f"By condition and hops: {measures(scores)[0]}"
    show_within(console, title, *conditions(run, shown), note, first=2, last=1)
    reported = official(run)
    if reported[1]:
        show_within(console, "As the benchmark reports it", *reported)
    try:
        found = findings(run, task)
        lines = [f"- {each.claim}\n  {outcome(each)}" for each in found]
    except (tasks.PluginError, tasks.UnknownTaskError) as error:
        lines = [f"not shown, as {error}"]
    if lines:
        console.print("Findings", style="bold")
        console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print()


def print_scores(run: Record, console: Console) -> None:
    """Print the tables with a row for each method, and which methods failed."""
    config = run["config"]
    scores = run["scores"]
    title = f"{config['task']} on {config['model']}: {counted(scores['contexts'], 'context')}, "
    title += counted(scores["samples"], "question")
    body = rows(run)
    titles = columns(scores)
    shares = cost_columns(scores)
    split = len(titles) - len(shares)
    answers = split - len(LOGITS) if len(answer_columns(scores)) > 2 else split  # what a terminal's line has room for
    note = answers_note(scores)
    show_within(console, title, titles[:answers], [row[:answers] for row in body], note if answers == split else "")
    if answers < split:
        against = [[row[0], *row[answers:split]] for row in body]
        show_within(console, "Against full prefill", (titles[0], *LOGITS), against, note)
    costs = [[row[0], *row[split:]] for row in body]
    show_within(console, "What it costs", (titles[0], *shares), costs, costs_note(scores))
    for name, reason in failed(run).items():
        console.print(f"{name} is not in the tables: it failed {reason}\n", markup=False, soft_wrap=True)
