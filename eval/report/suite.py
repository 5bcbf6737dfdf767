"""A suite's runs beside the published numbers: means, standard errors, paired tests, and what full prefill knows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.report.run_tables import markdown
from eval.run.folder import Record
from eval.run.metrics import binomial_tail, eta_and_error, mean_and_error
from eval.run.scores import answer_of, flipped
from eval.run.suites import SuiteError, Table

KNOWN = 0.5
"""Full prefill answers a question where its score is this high."""


def compared(table: Table, record: Mapping[str, Any], samples: Sequence[Record], contexts: Sequence[Record]) -> Record:
    """A finished run beside the published numbers.

    Args:
        table: what was run.
        record: the content of ``results.json``.
        samples: the questions' lines, with their scores (`eval.report.samples.read`).
        contexts: the contexts' lines.

    Returns:
        Under ``rows`` for each method: ``value`` and ``error`` (contexts are the clusters), ``n``, what was
        ``published``; of scores also the paired difference ``to_blind`` (``mean``, ``error``, ``p``, ``test``) and
        ``known``: n, mean and loss on the questions that full prefill answers.

    Raises:
        SuiteError: the run has no such measure, or no question of the condition.
    """
    chosen = [each for each in samples if each["learned"] and each["condition"].startswith(table.condition)]
    if not chosen:
        raise SuiteError(f"{table.title}: no question of the run has a condition that begins with {table.condition!r}")
    methods = list(record["scores"]["methods"])
    rows = []
    for name in methods:
        row: Record = {"method": name, "published": table.published.get(name)}
        rows.append(row | _measured(table, name, chosen, contexts))
    failed = record["scores"].get("failed", {})
    return {
        "title": table.title,
        "task": table.task,
        "measure": table.measure,
        "condition": table.condition,
        "source": table.source,
        "model": record["config"]["model"],
        "contexts": len({each["context"] for each in chosen}),
        "rows": rows,
        **({"failed": failed} if failed else {}),
    }


def _measured(table: Table, name: str, samples: Sequence[Record], contexts: Sequence[Record]) -> Record:
    clusters = [each["context"] for each in samples]
    several = [each for each in samples if each["hops"] > 1] or list(samples)
    own = [each["context"] for each in several]
    if table.measure == "recovered":
        changed = [each for each in several if flipped(each)]
        hits = [float(answer_of(each, name) == answer_of(each, "full")) for each in changed]
        return _mean(hits, [each["context"] for each in changed])
    if table.measure == "kl":
        return _mean([each["methods"][name]["kl"] for each in several], own)
    if table.measure == "eta":
        kl, baseline = ([each["methods"][method]["kl"] for each in several] for method in (name, "blind"))
        value, error = eta_and_error(kl, baseline, own)
        return {"n": len(several), "value": _or_none(value), "error": _or_none(error)}
    if table.measure == "kv_error":
        known = set(clusters)
        chosen = [each for each in contexts if each["id"] in known]
        return _mean(
            [float(np.mean(each["methods"][name]["kv_error"])) for each in chosen], [each["id"] for each in chosen]
        )
    known = samples[0]["methods"][name]["scores"]
    if table.measure not in known:
        raise SuiteError(
            f"{table.title}: the task {table.task} has no score {table.measure!r}; it has {', '.join(known)}, and "
            "every task recovered, eta, kl and kv_error"
        )
    scores, full, blind = (
        [each["methods"][own]["scores"][table.measure] for each in samples] for own in (name, "full", "blind")
    )
    answered = [place for place, score in enumerate(full) if score >= KNOWN]
    kept = [scores[place] for place in answered]
    made = {**_mean(scores, clusters), "to_blind": paired(scores, blind, clusters)}
    made["known"] = {"n": len(kept), "value": None, "loss": None}
    if kept:
        value = math.fsum(kept) / len(kept)
        loss = math.fsum(full[place] for place in answered) / len(kept) - value
        made["known"] = {"n": len(kept), "value": round(value, 6), "loss": round(loss, 6)}
    return made


def paired(scores: Sequence[float], baseline: Sequence[float], clusters: Sequence[str]) -> Record:
    """The difference of two methods on the same questions, and how likely one so large is where there is none.

    Of scores that are 0 or 1, McNemar's exact test where every context has one question; else a normal test of the mean
    difference, contexts being the clusters.
    """
    differences = [own - other for own, other in zip(scores, baseline, strict=True)]
    mean, error = mean_and_error(differences, clusters)
    made: Record = {"mean": round(mean, 6), "error": _or_none(error)}
    if {*scores, *baseline} <= {0.0, 1.0} and len(set(clusters)) == len(clusters):
        more = sum(each > 0 for each in differences)
        fewer = sum(each < 0 for each in differences)
        p = min(1.0, 2 * binomial_tail(min(more, fewer), more + fewer, 0.5)) if more + fewer else 1.0
        return {**made, "p": round(p, 6), "test": "McNemar, exact"}
    if not any(differences):
        return {**made, "p": 1.0, "test": "normal, clustered"}
    if math.isnan(error) or not error:
        return {**made, "p": None, "test": "normal, clustered"}
    return {**made, "p": round(math.erfc(abs(mean / error) / math.sqrt(2)), 6), "test": "normal, clustered"}


def _mean(values: Sequence[float], clusters: Sequence[str]) -> Record:
    if not values:
        return {"n": 0, "value": None, "error": None}
    mean, error = mean_and_error(values, clusters)
    return {"n": len(values), "value": round(mean, 6), "error": _or_none(error)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


COLUMNS = ("method", "measured", "n", "published", "against blind", "p", "where full is right")


def rows(table: Record) -> list[list[str]]:
    """A row of text for each method, in the order of `COLUMNS`."""
    made = []
    for row in table["rows"]:
        error = "" if row["error"] is None else f" ± {row['error']:.3f}"
        low, high = row["published"] or (None, None)
        published = "–" if low is None else f"{low:g}" if low == high else f"{low:g} – {high:g}"
        against = row.get("to_blind")
        known = row.get("known", {"value": None})
        made.append(
            [
                row["method"],
                "–" if row["value"] is None else f"{row['value']:.3f}{error}",
                str(row["n"]),
                published,
                "–" if against is None or row["method"] == "blind" else f"{against['mean']:+.3f}",
                "–" if against is None or against["p"] is None or row["method"] == "blind" else f"{against['p']:.2g}",
                "–" if known["value"] is None else f"{known['value']:.3f} of {known['n']}",
            ]
        )
    return made


def page(name: str, tables: Sequence[Record]) -> str:
    """The suite as a Markdown page."""
    lines = [f"# {name}", ""]
    for table in tables:
        lines += [f"## {table['title']}", ""]
        counts = f"`{table['task']}` on {table['model']}, {table['contexts']} contexts: {table['measure']}"
        lines += [f"{counts}. Published: {table['source']}.", ""]
        lines += [*markdown(COLUMNS, rows(table)), ""]
    return "\n".join(lines)
