"""Reports of `kamera eval`: tables in the terminal, and a Markdown page."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from eval import tasks
from eval.report import figures
from eval.report.console import show
from eval.run.folder import RESULTS, TIMING, OtherRunError, Record, check_lines, expected, read_json
from eval.tasks import Finding
from eval.tasks.comparison import compared_hops, hops_of, measures

draw = figures.draw


def load(path: Path) -> list[Record]:
    """The runs of a folder, or of a file that ``--json`` wrote.

    Returns:
        For each run the content of ``results.json``, with seconds to the first token under ``ttft_s``.

    Raises:
        OtherRunError: it has no finished run, or one that is damaged.
        DuplicateError: its run has a sample twice.
    """
    if path.is_file():
        with expected(path):
            runs = read_json(Path(os.path.realpath(path)))
            if not isinstance(runs, list):
                raise OtherRunError(f"{path} is no file that kamera eval --json wrote; expected a list of runs")
            if any(not isinstance(run["scores"]["methods"], Mapping) for run in runs):
                raise TypeError("methods")
            return runs
    results = read_json(path / RESULTS)
    with expected(path / RESULTS):
        if not results.get("complete"):
            raise OtherRunError(
                f"the run in {path} is not finished; run kamera eval with the same arguments to finish it"
            )
        methods = list(results["config"]["methods"])
        if not isinstance(results["scores"]["methods"], Mapping):
            raise TypeError("methods")
    check_lines(path)
    with expected(path / TIMING):
        groups = list(read_json(path / TIMING).values()) if (path / TIMING).exists() else []
        return [{**results, "ttft_s": {name: _seconds(groups, name) for name in methods}}]


def _seconds(groups: Sequence[Record], name: str) -> Record:
    """Mean seconds to the first token of a context, by chunks of the window and over all."""

    def mean(own: Sequence[Record]) -> float:
        total = math.fsum(group["ttft_s"][name] * group["contexts"] for group in own)
        return round(total / sum(group["contexts"] for group in own), 6)

    groups = [group for group in groups if name in group["ttft_s"]]
    lengths = sorted({group["chunks"] for group in groups})
    by_length = {str(length): mean([group for group in groups if group["chunks"] == length]) for length in lengths}
    return {"all": mean(groups), **by_length} if groups else {}


def cell(own: Record | None, measure: str = "accuracy") -> str:
    """A mean score with its standard error."""
    if own is None:
        return "–"
    error = own["errors"][measure] if "errors" in own else own["error"]
    return f"{own[measure]:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


HOPS = {"1": "one hop", "2": "two hops", "3": "three hops"}
"""How numbers of hops are written."""


def answer_columns(scores: Record) -> list[tuple[str, str, str]]:
    """The columns of scores: title, number of hops and name of the score.

    Questions of different numbers of hops have a column each, of every score. Where all questions have as many, a
    column is titled by its score alone.
    """
    names = measures(scores)
    hops = hops_of(scores)
    if len(hops) == 1:
        return [(name, hops[0], name) for name in names]
    titles = {each: HOPS.get(each, f"{each} hops") for each in hops}
    return [
        (titles[each] if len(names) == 1 else f"{titles[each]}, {name}", each, name) for each in hops for name in names
    ]


def rows(run: Record) -> list[list[str]]:
    """A row for each method, in the order of `columns`."""
    scores = run["scores"]
    shown = answer_columns(scores)
    written = []
    for name, own in scores["methods"].items():
        cost = own["cost"]
        several = [each for hops, each in own["hops"].items() if int(hops) > 1] or list(own["hops"].values())
        samples = sum(each["samples"] for each in several)
        kl = sum(each["kl"] * each["samples"] for each in several) / samples if samples else None
        seconds = run["ttft_s"].get(name, {}).get("all")
        written.append(
            [
                name,
                *(cell(own["hops"].get(hops), measure) for _, hops, measure in shown),
                _optional(kl, ".4f"),
                _optional(own["eta"], ".3f"),
                _optional(own["recovered"], ".1%"),
                f"{cost['bytes_share']:.1%}" if cost["bytes"] else "–",
                f"{max(cost['tokens_avoided_share'], 0):.0%}",
                f"{cost['flops_share']:.1%}",
                "–" if seconds is None else f"{1e3 * seconds:.1f}",
            ]
        )
    return written


LOGITS = ("KL", "η", "flips back")
COSTS = ("bytes", "avoided", "FLOPs", "TTFT ms")


def columns(scores: Record) -> tuple[str, ...]:
    """Titles of the columns of `rows`."""
    return ("method", *(title for title, _, _ in answer_columns(scores)), *LOGITS, *COSTS)


def answers_note(scores: Record) -> str:
    """What the columns about answers mean."""
    names = measures(scores)
    of = "questions of several hops, against full" if len(hops_of(scores)) > 1 else "all questions, against full"
    text = (
        f"{', '.join(names)} ± standard error, contexts being the clusters. KL, η and flips back: {of}; flips back: of "
        "the answers that blind reuse changes, those that are as with full again."
    )
    return textwrap.fill(text, 79)


COSTS_NOTE = (
    "bytes: stored beside the canonical KV, of the KV behind the first chunk.\n"
    "avoided: context tokens not run. FLOPs: to fill the window, of full prefill's.\n"
    "TTFT: to fill a window and ask, compilation excluded."
)


def findings(run: Record) -> list[Finding]:
    """What the run's own task finds in its scores.

    Raises:
        PluginError: the task is of a package that is not installed here.
    """
    return list(tasks.get(run["config"]["task"]).findings(run["scores"]))


def print_report(run: Record, console: Console | None = None) -> None:
    """Print a run's tables, and what its task finds in them."""
    console = console or Console(emoji=False, highlight=False)
    config = run["config"]
    scores = run["scores"]
    title = f"{config['task']} on {config['model']}: {scores['contexts']} contexts, {scores['samples']} questions"
    body = rows(run)
    titles = columns(scores)
    split = len(titles) - len(COSTS)
    answers = split - len(LOGITS) if len(answer_columns(scores)) > 2 else split  # what a terminal's line has room for
    note = answers_note(scores)
    show(console, title, titles[:answers], [row[:answers] for row in body], note if answers == split else "")
    if answers < split:
        compared = [[row[0], *row[answers:split]] for row in body]
        show(console, "Against full prefill", (titles[0], *LOGITS), compared, note)
    costs = [[row[0], *row[split:]] for row in body]
    show(console, "What it costs", (titles[0], *COSTS), costs, COSTS_NOTE)
    show(console, f"By condition and hops: {measures(scores)[0]}", *conditions(run))
    try:
        lines = [f"- {each.claim}\n  {_outcome(each)}" for each in findings(run)]
    except tasks.PluginError as error:
        lines = [f"not shown, as {error}"]
    if lines:
        console.print("Findings", style="bold")
        console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print()


def _outcome(finding: Finding) -> str:
    """What was measured, and whether the finding holds, where it is a claim."""
    return finding.measured + ("" if finding.holds is None else f": {verdict(finding.holds)}")


def verdict(holds: bool) -> str:
    """Whether a finding holds, in words."""
    return "holds" if holds else "does not hold"


def conditions(run: Record) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the main score by condition and hops, of the methods that differ most."""
    methods = run["scores"]["methods"]
    measure = measures(run["scores"])[0]
    shown = figures.shown(run)
    body = []
    for condition, by_hops in methods["full"]["conditions"].items():
        for hops, own in by_hops.items():
            values = [f"{methods[name]['conditions'][condition][hops][measure]:.3f}" for name in shown]
            body.append([condition, hops, *values, str(own["samples"])])
    return ["condition", "hops", *shown, "n"], body


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in body)]


PAGE = """# Every method side by side

`kamera eval {task}`: the same contexts for every method, from {seeds} data seeds. Every chunk is encoded once, alone,
and the window is then filled by each method in turn; all questions about a context are asked of the window that was
filled. *full* prefills everything together: it is the reference. *blind* rotates the chunks that were encoded alone
into place; *blind-norotate* leaves their keys at the positions they were encoded at. The first chunk stands where it
was encoded, so all methods but *full* keep it as it is; shares of bytes and tokens are of the chunks behind it.

{legend}

This page is written by `kamera eval report … --page`; `kamera eval --help` says how any part of it is run again.
`kamera eval claims` goes through the claims of the paper one by one, on any model, windows that change among them.

{claims}{notes}

{models}

## Figures

{figures}
"""

FINDINGS = """## Findings

{table}

Whether a finding holds is said of these models and this task alone; one that does not hold is shown as it was measured.

"""

LEGEND = """| method | how it fills the window |
|---|---|
| `patch:M`, `patch:energy=…`, `patch:bytes=…` | adds a low-rank patch, formed once behind the same chunks; no forward |
| `patch:P%` | the same within P % of the bytes: components of most energy in any layer, in int8 |
| `patch:deep`, `patch:shallow` | the same, every component, in one half of the layers |
| `cacheblend:R` | runs the share R of tokens whose KV deviates most in the second layer (arXiv 2405.16444) |
| `epic:K` | runs the first K tokens of each chunk (arXiv 2410.15332) |
| `mpic:K` | the same of images, and text passages whole (arXiv 2502.01960) |
| `vlcache:R` | runs the first tokens of each chunk, fewer in deeper layers, R of them on average (arXiv 2512.12977) |
| `oracle-tokens:R` | copies the true KV of the share R of tokens that change most: an upper bound |
| `patch:M+epic:K` | adds the patch, and then runs the first K tokens of each chunk |"""


def page(runs: Sequence[Record], drawn: Mapping[str, Path], folder: Path) -> str:
    """Runs of one task as a Markdown page.

    Args:
        runs: of different models.
        drawn: the figures' files by title.
        folder: where the page will be written.

    Raises:
        ValueError: the runs are of different tasks.
    """
    config = runs[0]["config"]
    if len({run["config"]["task"] for run in runs}) > 1:
        raise ValueError(
            f"a page is of one task; these runs are of {', '.join(sorted({run['config']['task'] for run in runs}))}"
        )
    return PAGE.format(
        task=config["task"],
        seeds=len(config["seeds"]),
        legend=LEGEND,
        notes=f"In the tables: {answers_note(runs[0]['scores'])} {COSTS_NOTE}".replace("\n", " "),
        claims=_claims(runs),
        models="\n\n".join(_model(run) for run in runs),
        figures=figures.markdown(drawn, folder),
    )


def _claims(runs: Sequence[Record]) -> str:
    """The section of findings, a column for each run; empty if the task has none, or is not installed here."""
    try:
        by_run = [findings(run) for run in runs]
    except tasks.PluginError:
        return ""
    if not any(by_run):
        return ""
    body = [[row[0].claim, *map(_outcome, row)] for row in zip(*by_run, strict=True)]
    names = [f"`{run['config']['model']}`" for run in runs]
    return FINDINGS.format(table="\n".join(_markdown(["claim", *names], body)))


def _model(run: Record) -> str:
    config = run["config"]
    scores = run["scores"]
    measure = measures(scores)[0]
    by_seed = {name: scores["methods"][name]["seeds"].values() for name in figures.shown(run)}
    seeds = "; ".join(
        f"`{name}` " + ", ".join(f"{own[measure]:.3f}" for own in cells) for name, cells in by_seed.items()
    )
    questions = "Questions of several hops" if compared_hops(scores) > 1 else "All questions"
    return "\n".join(
        [
            f"## {config['model']}",
            "",
            *_markdown(columns(scores), [[f"`{row[0]}`", *row[1:]] for row in rows(run)]),
            "",
            f"{scores['contexts']} contexts, {scores['samples']} questions; jax {run['versions']['jax']}. TTFT is a "
            f"mean over windows, run {config['batch']} at a time.",
            "",
            *_markdown(*conditions(run)),
            "",
            f"{questions} by data seed, {measure}: {seeds}.",
        ]
    )
