"""Runs of `kamera eval` for people: tables in the terminal, and a page."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from eval.report import figures
from eval.report.claims import findings
from eval.report.console import show
from eval.run.folder import RESULTS, TIMING, OtherRunError, Record, read_json

draw = figures.draw


def load(path: Path) -> list[Record]:
    """Runs: of a folder, or of a file that ``--json`` wrote; each as ``results.json`` has it, and ``ttft_s`` with it.

    Raises:
        OtherRunError: it holds no finished run.
    """
    if path.is_file():
        return read_json(path)
    results = read_json(path / RESULTS)
    if not results.get("complete"):
        raise OtherRunError(f"the run in {path} is not finished; run kamera eval with the same arguments to finish it")
    groups = list(read_json(path / TIMING).values()) if (path / TIMING).exists() else []
    return [{**results, "ttft_s": {name: _seconds(groups, name) for name in results["config"]["methods"]}}]


def _seconds(groups: Sequence[Record], name: str) -> Record:
    """Mean seconds to the first token of a context, by chunks of the window and over all."""

    def mean(own: Sequence[Record]) -> float:
        total = math.fsum(group["ttft_s"][name] * group["contexts"] for group in own)
        return round(total / sum(group["contexts"] for group in own), 6)

    lengths = sorted({group["chunks"] for group in groups})
    by_length = {str(length): mean([group for group in groups if group["chunks"] == length]) for length in lengths}
    return {"all": mean(groups), **by_length} if groups else {}


def cell(own: Record | None) -> str:
    """An accuracy with its standard error."""
    if own is None:
        return "–"
    return f"{own['accuracy']:.3f}" + ("" if own["error"] is None else f" ± {own['error']:.3f}")


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def rows(run: Record) -> list[list[str]]:
    """A row for each method."""
    scores = run["scores"]
    found = []
    for name, own in scores["methods"].items():
        cost = own["cost"]
        several = [own["hops"][hops] for hops in own["hops"] if int(hops) > 1]
        samples = sum(each["samples"] for each in several)
        kl = sum(each["kl"] * each["samples"] for each in several) / samples if samples else None
        seconds = run["ttft_s"].get(name, {}).get("all")
        found.append(
            [
                name,
                cell(own["hops"].get("1")),
                cell(own["hops"].get("2")),
                _optional(kl, ".4f"),
                _optional(own["eta"], ".3f"),
                _optional(own["recovered"], ".1%"),
                f"{cost['bytes_share']:.1%}" if cost["bytes"] else "–",
                f"{max(cost['tokens_avoided_share'], 0):.0%}",
                f"{cost['flops_share']:.1%}",
                "–" if seconds is None else f"{1e3 * seconds:.1f}",
            ]
        )
    return found


COLUMNS = ("method", "one hop", "two hops", "KL", "η", "flips back", "bytes", "avoided", "FLOPs", "TTFT ms")

ACCURACIES = 6
"""How many of the columns are about answers; the others are about cost."""

ANSWERS = (
    "accuracy ± standard error, contexts being the clusters. KL, η and flips back:\n"
    "questions of several hops, against full; flips back: of the answers that blind\n"
    "reuse changes, those that are as with full again."
)
COSTS = (
    "bytes: stored beside the canonical KV, of the KV behind the first chunk.\n"
    "avoided: context tokens not run. FLOPs: to fill the window, of full prefill's.\n"
    "TTFT: to fill a window and ask, compilation excluded."
)


def print_report(run: Record, console: Console | None = None) -> None:
    """A run's tables."""
    console = console or Console(emoji=False, highlight=False)
    config = run["config"]
    scores = run["scores"]
    title = f"{config['task']} on {config['model']}: {scores['contexts']} contexts, {scores['samples']} questions"
    body = rows(run)
    split = ACCURACIES
    show(console, title, COLUMNS[:split], [row[:split] for row in body], ANSWERS)
    costs = [[row[0], *row[split:]] for row in body]
    show(console, "What it costs", (COLUMNS[0], *COLUMNS[split:]), costs, COSTS)
    show(console, "By condition and hops: accuracy", *conditions(run))
    console.print("The paper's findings", style="bold")
    for each in findings(scores):
        outcome = "" if each.holds is None else f": {verdict(each.holds)}"
        console.print(f"- {each.claim}\n  {each.measured}{outcome}", soft_wrap=True)
    console.print()


def verdict(holds: bool | None) -> str:
    """In a word."""
    return {True: "holds", False: "does not hold", None: "–"}[holds]


def conditions(run: Record) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of accuracy by condition and hops, of methods that differ most."""
    methods = run["scores"]["methods"]
    shown = figures.shown(run)
    found = []
    for condition, by_hops in methods["full"]["conditions"].items():
        for hops, own in by_hops.items():
            accuracies = [f"{methods[name]['conditions'][condition][hops]['accuracy']:.3f}" for name in shown]
            found.append([condition, hops, *accuracies, str(own["samples"])])
    return ["condition", "hops", *shown, "n"], found


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in body)]


PAGE = """# Every method side by side

`kamera eval {task}` on the embedded models: the same contexts for every method, from {seeds} data seeds. Every page is
encoded once, alone, and the window is then filled by each method in turn; a window that is filled answers all its
questions. *full* prefills everything together, and is what the others are held against. *blind* rotates what was
encoded alone into place, *blind-norotate* does not even that. The first chunk stands where it was encoded, so all but
*full* keep it as it is; shares are of what stands behind it.

{legend}

`make results-eval` measures and writes this page anew; `kamera eval --help` runs any part of it.

## The paper's findings

{claims}

{notes}

A verdict is of these models and pages alone; where it disagrees with the paper, it is shown as it came out.

{models}

## Figures

{figures}
"""

LEGEND = """| method | what it does when the window is filled |
|---|---|
| `patch:M`, `patch:energy=…`, `patch:bytes=…` | adds a low-rank patch, formed once behind the same chunks; no forward |
| `patch:deep`, `patch:shallow` | the same, every component, in one half of the layers |
| `cacheblend:R` | runs the share R of tokens whose KV deviates most in the second layer (arXiv 2405.16444) |
| `epic:K` | runs the first K tokens of each chunk (arXiv 2410.15332) |
| `mpic:K` | the same of images, and text passages whole (arXiv 2502.01960) |
| `vlcache:R` | runs the first tokens of each chunk, fewer in deeper layers, R of them on average (arXiv 2512.12977) |
| `oracle-tokens:R` | gives the share R of tokens that change most their true KV: a bound, no method |
| `patch:M+epic:K` | a patch, and then the first K tokens of each chunk |"""


def page(runs: Sequence[Record], drawn: Mapping[str, Path], folder: Path) -> str:
    """Runs of one task as a page of the documentation.

    Args:
        runs: of different models.
        drawn: figures by title.
        folder: where the page comes to stand.
    """
    config = runs[0]["config"]
    names = [f"`{run['config']['model']}`" for run in runs]
    held = [findings(run["scores"]) for run in runs]
    claims = [
        [row[0].claim, *(f"{each.measured}: {verdict(each.holds)}".removesuffix(": –") for each in row)]
        for row in zip(*held, strict=True)
    ]
    return PAGE.format(
        task=config["task"],
        seeds=len(config["seeds"]),
        legend=LEGEND,
        notes=f"In the tables: {ANSWERS} {COSTS}".replace("\n", " "),
        claims="\n".join(_markdown(["claim", *names], claims)),
        models="\n\n".join(_model(run) for run in runs),
        figures="\n\n".join(
            f"![{title}]({Path(os.path.relpath(path, folder)).as_posix()})" for title, path in drawn.items()
        ),
    )


def _model(run: Record) -> str:
    config = run["config"]
    scores = run["scores"]
    by_seed = {name: scores["methods"][name]["seeds"].values() for name in figures.shown(run)}
    seeds = "; ".join(
        f"`{name}` " + ", ".join(f"{own['accuracy']:.3f}" for own in cells) for name, cells in by_seed.items()
    )
    return "\n".join(
        [
            f"## {config['model']}",
            "",
            *_markdown(COLUMNS, [[f"`{row[0]}`", *row[1:]] for row in rows(run)]),
            "",
            f"{scores['contexts']} contexts, {scores['samples']} questions; jax {run['versions']['jax']}. TTFT is a "
            f"mean over windows, run {config['batch']} at a time.",
            "",
            *_markdown(*conditions(run)),
            "",
            f"Questions of several hops by data seed: {seeds}.",
        ]
    )
