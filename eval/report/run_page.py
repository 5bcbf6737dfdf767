"""A Markdown page of runs of one task: what was run, how, and every table."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import tasks
from eval.descriptions import METHODS, method_of
from eval.report import figures
from eval.report.console import counted
from eval.report.run_tables import (
    answers_note,
    columns,
    command,
    compared,
    conditions,
    costs_note,
    failed,
    findings,
    markdown,
    outcome,
    rows,
)
from eval.run.folder import Record
from eval.tasks.comparison import compared_hops, measures

PAGE = """# `{task}`: methods side by side

Every chunk of a context is encoded once, alone, and the window is then filled by each method in turn; all questions
about a context are asked of the window that was filled. *full* prefills everything together: it is the reference.
*blind* rotates the chunks that were encoded alone into place: it is the baseline. The first chunk stands where it was
encoded, so all methods but *full* keep it as it is; shares of bytes and tokens are of the chunks behind it.

{legend}

{claims}{notes}

{models}

## How it was run

{made}
{figures}"""

FINDINGS = """## Findings

{table}

Whether a finding holds is said of these models and this task alone; one that does not hold is shown as it was measured.

"""


def page(runs: Sequence[Record], drawn: Mapping[str, Path], folder: Path, task: object = None) -> str:
    """Runs of one task as a Markdown page.

    Args:
        runs: of different models.
        drawn: the figures' files by title.
        folder: where the page will be written.
        task: the task, where it cannot be found by its name.

    Raises:
        ValueError: the runs are of different tasks.
    """
    config = runs[0]["config"]
    if len({run["config"]["task"] for run in runs}) > 1:
        raise ValueError(
            f"a page is of one task; these runs are of {', '.join(sorted({run['config']['task'] for run in runs}))}"
        )
    shown = figures.markdown(drawn, folder)
    return PAGE.format(
        task=config["task"],
        legend=_legend(runs),
        notes=textwrap.fill(
            f"In the tables: {answers_note(runs[0]['scores'])} {costs_note(runs[0]['scores'])}".replace("\n", " "), 120
        ),
        claims=_claims(runs, task),
        models="\n\n".join(_model(run) for run in runs),
        made="\n\n".join(_made(run) for run in runs),
        figures=f"\n## Figures\n\n{shown}\n" if shown else "",
    )


def _legend(runs: Sequence[Record]) -> str:
    """What the methods of the runs are; those of other packages are left to their packages."""
    parts = [part for run in runs for name in run["scores"]["methods"] for part in name.split("+")]
    known = {id(text): text for part in parts if (text := method_of(part)) is not None}
    body = [[f"`{text.form}`", text.what] for text in METHODS.values() if id(text) in known]
    if any("+" in name for run in runs for name in run["scores"]["methods"]):
        body.append(["`A+B`", "fills the window by A, then repairs tokens by B"])
    outside = dict.fromkeys(part for part in parts if method_of(part) is None)
    body += [[f"`{part}`", "of another package"] for part in outside]
    return "\n".join(markdown(["method", "how it fills the window"], body))


def _claims(runs: Sequence[Record], task: object) -> str:
    """The section of findings, a column for each run; empty if the task has none, or is not installed here."""
    try:
        by_run = [findings(run, task) for run in runs]
    except (tasks.PluginError, tasks.UnknownTaskError):
        return ""
    if not any(by_run):
        return ""
    by_claim: dict[str, list[str]] = {}
    for place, row in enumerate(by_run):
        for each in row:
            by_claim.setdefault(each.claim, ["–"] * len(runs))[place] = outcome(each)
    names = [f"`{run['config']['model']}`" for run in runs]
    body = [[claim, *cells] for claim, cells in by_claim.items()]
    return FINDINGS.format(table="\n".join(markdown(["claim", *names], body)))


def _model(run: Record) -> str:
    config = run["config"]
    scores = run["scores"]
    measure = measures(scores)[0]
    shown, left = compared(run)
    by_seed = {name: scores["methods"][name]["seeds"].values() for name in shown}
    seeds = "; ".join(
        f"`{name}` " + ", ".join(f"{own[measure]:.3f}" for own in cells) for name, cells in by_seed.items()
    )
    questions = "Questions of several hops" if compared_hops(scores) > 1 else "All questions"
    lines = [
        f"## {config['model']}",
        "",
        *markdown(columns(scores), [[f"`{row[0]}`", *row[1:]] for row in rows(run)]),
        "",
        f"{counted(scores['contexts'], 'context')}, {counted(scores['samples'], 'question')}. TTFT is a mean over "
        f"windows, run {config['batch']} at a time.",
        "",
        *(f"- `{name}` is not in the tables: it failed {reason}" for name, reason in failed(run).items()),
        *([""] if failed(run) else []),
        f"{measure} by condition and hops:",
        "",
        *markdown(*conditions(run, shown)),
        "",
    ]
    if left:
        lines += [
            f"Not in this table: {', '.join(f'`{name}`' for name in left)}. `results.json` in the run's folder has "
            "their scores by condition too.",
            "",
        ]
    return "\n".join([*lines, f"{questions} by data seed, {measure}: {seeds}."])


def _made(run: Record) -> str:
    """What a run was made with: the command, when, and versions."""
    config = run["config"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    when = run.get("finished", "").partition("T")[0]
    sources = "".join(f"\n- {name}: {text}" for name, text in run.get("sources", {}).items())
    lines = [
        f"`{config['model']}`, {f'finished {when}, ' if when else ''}with {versions}; version "
        f"{config.get('task_version', 1)} of the task, seeds {', '.join(map(str, config['seeds']))}:",
        "",
        "```",
        command(run),
        "```",
    ]
    return "\n".join(lines) + sources + ("\n" if sources else "")
