"""The claims of the paper on several models: read from what was measured, printed, and written as a Markdown page."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from eval.report import evaluation
from eval.report.claims import NOT_MEASURED, Claim, Evidence, claims
from eval.run.folder import RESULTS, Record, expected, read_json

HOLDS = {True: "holds", False: "**does not hold**", None: NOT_MEASURED}


class NoEvidenceError(ValueError):
    """A file or folder that holds nothing that claims can be read from."""


def load(paths: Sequence[Path]) -> list[Record]:
    """The claims of every model that these files and folders have measurements of.

    Args:
        paths: folders of finished runs of `kamera eval`, or of such folders; files that ``kamera eval --json`` or
            ``kamera demo --json`` wrote; and files of claims, which are taken as they are.

    Raises:
        NoEvidenceError: one of them is none of these.
        OtherRunError: a run is not finished.
    """
    made: list[Record] = []
    runs: dict[str, dict[str, Record]] = {}
    demos: dict[str, Record] = {}
    for path in paths:
        with expected(path):
            for record in _records(path):
                if "claims" in record:
                    made.append(record)
                elif "config" in record:
                    task = record["config"]["task"].partition(":")[0]
                    runs.setdefault(record["config"]["model"], {})[task] = record
                elif "methods" in record and "model" in record:
                    demos[record["model"]["name"]] = record
                else:
                    raise NoEvidenceError(
                        f"{path} has neither runs of kamera eval, nor a result of kamera demo, nor claims; give "
                        "folders of runs, or files that --json wrote"
                    )
    return [*made, *(of(name, runs.get(name, {}), demos.get(name)) for name in dict.fromkeys([*runs, *demos]))]


def _records(path: Path) -> list[Record]:
    if path.is_dir():
        if (path / RESULTS).is_file():
            return evaluation.load(path)
        inner = [record for each in sorted(path.glob(f"*/{RESULTS}")) for record in evaluation.load(each.parent)]
        inner += [read_json(each) for each in sorted(path.glob("demo.json"))]
        if not inner:
            raise NoEvidenceError(f"{path} has no runs of kamera eval in it, and no demo.json")
        return inner
    content = read_json(Path(os.path.realpath(path)))
    return content if isinstance(content, list) else [content]


def of(model: str, runs: Mapping[str, Record], demo: Record | None) -> Record:
    """The claims on one model, as JSON has them, with what they were read from."""
    evidence = Evidence(model, {task: run["scores"] for task, run in runs.items()}, demo)
    sources = [
        {
            "command": "kamera eval",
            "task": run["config"]["task"],
            "seeds": list(run["config"]["seeds"]),
            "contexts": run["scores"]["contexts"],
            "versions": run["versions"],
        }
        for run in runs.values()
    ]
    if demo:
        count = demo.get("cases", demo.get("episodes"))
        sources.append({"command": "kamera demo", "contexts": count, "versions": demo["versions"]})
    return {"model": model, "claims": [vars(claim) for claim in claims(evidence)], "sources": sources}


def _table(records: Sequence[Record]) -> list[tuple[str, str, list[Claim | None]]]:
    """For each statement the paper's figure, and the claim on each model; None where its record lacks it."""
    rows: dict[str, tuple[str, list[Claim | None]]] = {}
    for place, record in enumerate(records):
        for each in record["claims"]:
            claim = Claim(**each)
            _, own = rows.setdefault(claim.statement, (claim.paper, [None] * len(records)))
            own[place] = claim
    return [(statement, paper, own) for statement, (paper, own) in rows.items()]


def print_claims(records: Sequence[Record], console: Console | None = None) -> None:
    """Print the claims on each model, one below the other."""
    console = console or Console(emoji=False, highlight=False)
    for record in records:
        console.print(f"{record['model']}: claims of the paper (arXiv 2606.23581)\n", style="bold")
        for each in record["claims"]:
            claim = Claim(**each)
            verdict = HOLDS[claim.holds].strip("*")
            console.print(f"[{verdict}] {claim.statement}", markup=False)
            console.print(f"    paper: {claim.paper}", markup=False, style="dim")
            if claim.measured != NOT_MEASURED:
                console.print(f"    here: {claim.measured}", markup=False)
        console.print(f"\n{summary(record)}\n")


def summary(record: Record) -> str:
    """How many of the claims hold, how many do not, and how many were not measured."""
    verdicts = [each["holds"] for each in record["claims"]]
    return (
        f"{verdicts.count(True)} hold, {verdicts.count(False)} do not, {verdicts.count(None)} were not measured on "
        f"{record['model']}."
    )


OPENING = """# The claims of the paper

What the Kamera paper (arXiv 2606.23581) claims, beside what is measured here. Each claim has the bound that it is
judged by on this page; the paper's figures are of its own models and data. What does not hold on a model stays on the
page, and so does what was not measured.
"""

ABOUT = {
    "kamera-tiny-": "The embedded models (`kamera-tiny-…`) are trained on pages of glyphs.",
    "smollm2": "SmolLM2-135M is a real language model on real text, of which few contexts are run.",
}
"""What is said of models by the beginning of their names, where they are on the page."""

READING = (
    "η is the share of blind reuse's KL that a method closes. `kamera eval claims --model M --output DIR` measures the "
    "claims on a model; `kamera eval claims FILE… --page FILE.md` writes this page."
)


def _opening(names: Sequence[str]) -> list[str]:
    about = [text for start, text in ABOUT.items() if any(name.startswith(start) for name in names)]
    return [OPENING, textwrap.fill(" ".join([*about, READING]), 120), ""]


def page(records: Sequence[Record]) -> str:
    """The page: a table of verdicts with a column for each model, and below it what was measured."""
    names = [f"`{record['model']}`" for record in records]
    lines = [
        *_opening([record["model"] for record in records]),
        f"| claim | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    table = _table(records)
    for number, (statement, _, own) in enumerate(table, 1):
        verdicts = " | ".join(_verdict(claim) for claim in own)
        lines.append(f"| {number}. {_in_table(statement)} | {verdicts} |")
    lines += ["", "–: not measured.", "", *(f"- {summary(record)}" for record in records), "", "## In numbers"]
    for number, (statement, paper, own) in enumerate(table, 1):
        lines += ["", f"**{number}. {statement}.** The paper: {paper}.", ""]
        measured = [(name, claim) for name, claim in zip(names, own, strict=True) if _is_measured(claim)]
        lines += [f"- {name}: {_cell(claim)}" for name, claim in measured]
        missing = [name for name in names if name not in dict(measured)]
        if missing:
            lines.append(f"- {', '.join(missing)}: {NOT_MEASURED}")
    lines += ["", "## Measured with", ""]
    for record in records:
        ran = "; ".join(
            f"`{source['command']}{' ' + source['task'] if 'task' in source else ''}`, {source['contexts']} contexts"
            for source in record["sources"]
        )
        lines.append(f"- `{record['model']}`: {ran}")
    return "\n".join(lines) + "\n"


def _in_table(text: str) -> str:
    """Text that stands in a cell of a Markdown table, where a bar would end the cell."""
    return text.replace("|", r"\|")


def _is_measured(claim: Claim | None) -> bool:
    return claim is not None and claim.measured != NOT_MEASURED


def _verdict(claim: Claim | None) -> str:
    if claim is None or claim.measured == NOT_MEASURED:
        return "–"
    return "not comparable" if claim.holds is None else HOLDS[claim.holds]


def _cell(claim: Claim | None) -> str:
    if claim is None:
        return HOLDS[None]
    if claim.holds is None:
        return claim.measured
    return f"{claim.measured}: {HOLDS[claim.holds]}"
