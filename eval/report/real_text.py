"""The page of a language model on real text: a table for each task, and what it finds, from finished runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report import evaluation
from eval.run.folder import SAMPLES, Record, read_lines
from eval.run.metrics import eta_and_error, mean_and_error
from eval.run.scores import with_scores
from eval.tasks import get
from eval.tasks.text.continuation import NEEDED, OTHER
from eval.tasks.text.quotation import PLACES

Part = tuple[str, Sequence[str], str]
"""Rows of a task's table: what they are about, its conditions (none: all questions), and the score that is shown."""


def parts(task: str, conditions: Sequence[str]) -> list[Part]:
    """The rows of a task's table.

    Args:
        task: its name, without settings.
        conditions: of the run.
    """
    first, *_, last = PLACES
    known: dict[str, list[Part]] = {
        "quotation": [("next token", [first], "accuracy"), ("16 next tokens, all right", [last], "so far")],
        "page-break": [("the word", [], "accuracy")],
        "needs-context": [(NEEDED, [NEEDED], "accuracy"), (OTHER, [OTHER], "accuracy")],
        "induction": [("which of the texts", [], "choice"), ("of all tokens", [], "accuracy")],
        "slide": [("32 next tokens", [], "nll")],
    }
    return known.get(task) or [(condition, [condition], "nll") for condition in conditions]


def summary(folder: Path) -> Record:
    """What the page shows of a finished run, as JSON has it.

    Raises:
        OtherRunError: the run is not finished.
    """
    (run,) = evaluation.load(folder)
    config = run["config"]
    scores = run["scores"]
    samples = with_scores(get(config["task"]), config["methods"], read_lines(folder / SAMPLES))
    name, _, settings = config["task"].partition(":")
    found = evaluation.findings(run)
    return {
        "task": name,
        "settings": ",".join(each for each in settings.split(",") if not each.startswith("corpus=")),
        "corpus": run["sources"]["corpus"],
        "model": config["model"],
        "seeds": config["seeds"],
        "limit": config["limit"],
        "contexts": scores["contexts"],
        "questions": scores["samples"],
        "versions": run["versions"],
        "sources": run["sources"],
        "costs": {
            method: {key: round(own["cost"][key], 4) for key in ("bytes_share", "recomputed_share")}
            for method, own in scores["methods"].items()
        },
        "rows": [
            row
            for part in parts(name, list(scores["methods"]["full"]["conditions"]))
            for row in _rows(part, samples, config["methods"])
        ],
        "findings": [vars(each) for each in found],
    }


def _rows(part: Part, samples: Sequence[Record], methods: Sequence[str]) -> list[Record]:
    """Means and standard errors of a part for each method; no rows where the run has no such questions."""
    what, conditions, measure = part
    own = [sample for sample in samples if not conditions or sample["condition"] in conditions]
    if not own:
        return []
    clusters = [sample["context"] for sample in own]
    lost = [sample["methods"]["blind"]["kl"] for sample in own]
    rows = []
    for name in methods:
        left = [sample["methods"][name]["kl"] for sample in own]
        score = mean_and_error([sample["scores"][name][measure] for sample in own], clusters)
        figures = {"score": score, "kl": mean_and_error(left, clusters), "eta": eta_and_error(left, lost, clusters)}
        rows.append(
            {"what": what, "measure": measure, "method": name, "contexts": len(set(clusters)), "questions": len(own)}
            | {key: [_rounded(mean), _rounded(error)] for key, (mean, error) in figures.items()}
        )
    return rows


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")


OPENING = """# A real language model

What reuse does to {models}, a language model on whose weights nothing here was trained, on real text that comes with
Python (`pydoc`) and with this project's requirements (`docstrings`). [The tasks](tasks.md) say how it is asked; the
words are those of [methods side by side](results.md): *full* is full prefill, *blind* is reuse as encoded alone,
`patch:M` has M components in every layer, `patch:P%` takes P % of the bytes.

Scores and η are given ± standard error, contexts being the clusters. KL is in nats, and η the share of blind reuse's KL
that a method closes; both are against full prefill, where the table does not say another reference. nll is the negative
log-likelihood of the token that does follow, in nats. Bytes are of the KV that is reused, tokens those of it that are
run again. Every table says how many cases it has: they are few, as an everyday machine runs them.

`make results-real` measures all of it and writes this page; what does not hold stays on it.

{verdicts}
"""


def page(measured: Record) -> str:
    """The page: for each task a table with columns for each corpus, and its findings.

    Args:
        measured: summaries of runs under ``runs``, and under ``missing`` what was to be run and is not finished.
    """
    records = measured["runs"]
    tasks = {(record["task"], record["settings"]): None for record in records}
    sections = []
    for task, settings in tasks:
        own = [record for record in records if (record["task"], record["settings"]) == (task, settings)]
        sections.append(_section(own))
    models = ", ".join(f"`{name}`" for name in dict.fromkeys(record["model"] for record in records))
    return OPENING.format(models=models, verdicts=_verdicts(records, measured["missing"])) + "".join(sections)


def _verdicts(records: Sequence[Record], missing: Sequence[str]) -> str:
    """How many findings hold on each corpus, those that do not, and what is not measured yet."""
    lines = []
    for corpus in dict.fromkeys(record["corpus"] for record in records):
        found = [
            (record["task"], each) for record in records if record["corpus"] == corpus for each in record["findings"]
        ]
        held = [each["holds"] for _, each in found]
        lines.append(f"- `{corpus}`: {held.count(True)} findings hold, {held.count(False)} do not.")
        lines += [
            f"    - {task}: {each['claim']}: {each['measured']}" for task, each in found if each["holds"] is False
        ]
    if missing:
        lines.append(f"- Not measured yet: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n".join(lines)


def _section(records: Sequence[Record]) -> str:
    """A task's heading, cases, table and findings; its runs are on different corpora."""
    first = records[0]
    settings = f" ({first['settings']})" if first["settings"] else ""
    cases = "; ".join(
        f"`{record['corpus']}` {record['contexts']} contexts with {record['questions']} questions, data "
        f"seed{'s' if len(record['seeds']) > 1 else ''} {', '.join(map(str, record['seeds']))}"
        for record in records
    )
    about = " ".join((type(get(first["task"])).__doc__ or "").partition("Attributes:")[0].split())
    by_row = [{(row["what"], row["method"]): row for row in record["rows"]} for record in records]
    keys = dict.fromkeys(key for rows in by_row for key in rows)
    tables = []
    for what in dict.fromkeys(what for what, _ in keys):
        own = [key for key in keys if key[0] == what]
        measure = next(rows[own[0]]["measure"] for rows in by_row if own[0] in rows)
        titles = ["method", "cost"]
        counts = []
        for record, rows in zip(records, by_row, strict=True):
            titles += [f"{record['corpus']}: {measure}", "KL", "η"]
            counts.append(
                f"{max((rows[key]['contexts'] for key in own if key in rows), default=0)} of `{record['corpus']}`"
            )
        body = []
        for key in own:
            costs = next(record["costs"][key[1]] for record in records if key[1] in record["costs"])
            line = [f"`{key[1]}`", _cost(key[1], costs)]
            for rows in by_row:
                line += _figures(rows.get(key))
            body.append(line)
        tables += [f"**{what}: {measure}** (contexts: {', '.join(counts)})", _table(titles, body)]
    found: dict[str, list[str]] = {
        each["claim"]: ["–"] * len(records) for record in records for each in record["findings"]
    }
    for place, record in enumerate(records):
        for each in record["findings"]:
            outcome = "" if each["holds"] is None else ": holds" if each["holds"] else ": **does not hold**"
            found[each["claim"]][place] = each["measured"] + outcome
    lines = [
        f"\n## {first['task']}{settings}",
        about,
        f"Cases: {cases}.",
        *tables,
        _table(
            ["finding", *(f"`{record['corpus']}`" for record in records)],
            [[claim, *row] for claim, row in found.items()],
        ),
    ]
    return "\n\n".join(lines) + "\n"


def _cost(method: str, costs: Mapping[str, float]) -> str:
    """What is stored and what is run again, as shares of the KV's bytes and of its tokens."""
    stored = f"{costs['bytes_share']:.1%} of bytes" if costs["bytes_share"] > 0 else ""
    tokens = f"{costs['recomputed_share']:.1%} of tokens" if costs["recomputed_share"] > 0 else ""
    return "all tokens" if method == "full" else ", ".join(filter(None, (stored, tokens))) or "–"


def _figures(row: Mapping[str, Any] | None) -> list[str]:
    """The cells of one corpus."""
    if row is None:
        return ["–"] * 3
    return [_cell(row["score"], ".3f"), _cell([row["kl"][0], None], ".4f"), _cell(row["eta"], ".2f")]


def _cell(figure: Sequence[float | None], form: str) -> str:
    mean, error = figure
    if mean is None:
        return "–"
    return format(mean, form) + ("" if error is None else f" ± {format(error, form)}")


def _table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(row)} |" for row in (titles, *body)]
    return "\n".join([rows[0], f"|{'---|' * len(titles)}", *rows[1:]])
