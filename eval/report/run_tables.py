"""A run as tables of text: a row for each method, its main score by condition, and what its task finds."""

import math
import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import tasks
from eval.report import figures
from eval.run.folder import RESULTS, TIMING, OtherRunError, Record, check_lines, expected, read_json
from eval.tasks import Finding, findings_of
from eval.tasks.comparison import hops_of, measures


def load(path: Path) -> list[Record]:
    """The runs of a folder, or of a file that ``--json`` wrote.

    Returns:
        For each run the content of ``results.json``, with seconds to the first token under ``ttft_s``, and when it was
        ``finished``.

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
        dates = [group["finished"] for group in groups if "finished" in group]
        timed = {"ttft_s": {name: _seconds(groups, name) for name in methods}}
        return [{**results, **timed, **({"finished": max(dates)} if dates else {})}]


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
    titles = cost_columns(scores)
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
                *([f"{cost['total_share']:.1%}"] if "total" in titles else []),
                *([f"{cost.get('model_bytes', 0) / 1024:,.0f} KiB"] if "once" in titles else []),
                f"{max(cost['tokens_avoided_share'], 0):.0%}",
                f"{cost['flops_share']:.1%}",
                "–" if seconds is None else f"{1e3 * seconds:.1f}",
            ]
        )
    return written


LOGITS = ("KL", "η", "flips back")


def cost_columns(scores: Record) -> tuple[str, ...]:
    """Titles of the columns about costs.

    Where a method stores chunks in fewer bits, all that is stored is one; where it keeps something once for the model,
    that is another.
    """
    costs = [own["cost"] for own in scores["methods"].values()]
    totals = ("total",) if any(cost.get("codec") for cost in costs) else ()
    once = ("once",) if any(cost.get("model_bytes") for cost in costs) else ()
    return ("bytes", *totals, *once, "avoided", "FLOPs", "TTFT ms")


def columns(scores: Record) -> tuple[str, ...]:
    """Titles of the columns of `rows`."""
    return ("method", *(title for title, _, _ in answer_columns(scores)), *LOGITS, *cost_columns(scores))


def answers_note(scores: Record) -> str:
    """What the columns about answers mean."""
    names = measures(scores)
    of = "questions of several hops, against full" if len(hops_of(scores)) > 1 else "all questions, against full"
    text = (
        f"{', '.join(names)} ± standard error, contexts being the clusters. KL, η and flips back: {of}; flips back: of "
        "the answers that blind reuse changes, those that are as with full again."
    )
    return textwrap.fill(text, 79)


def costs_note(scores: Record) -> str:
    """What the columns about costs mean."""
    titles = cost_columns(scores)
    total = "total: all that is stored, of the chunks' KV in 16 bits.\n" if "total" in titles else ""
    if "once" in titles:
        total += "once: what is stored once for the model, for all its chunks; in no other figure.\n"
    return (
        f"bytes: stored beside the canonical KV, of the KV behind the first chunk.\n{total}"
        "avoided: context tokens not run. FLOPs: to fill the window, of full prefill's.\n"
        "TTFT: to fill a window and ask, compilation excluded."
    )


def findings(run: Record, task: Any = None) -> list[Finding]:
    """What the run's own task finds in its scores.

    Args:
        run: see `load`.
        task: the task, where it cannot be found by its name.

    Raises:
        PluginError: the task is of a package that is not installed here.
    """
    return findings_of(tasks.get(run["config"]["task"]) if task is None else task, run["scores"])


def outcome(finding: Finding) -> str:
    """What was measured, and whether the finding holds, where it is a claim."""
    return finding.measured + ("" if finding.holds is None else f": {verdict(finding.holds)}")


def verdict(holds: Any) -> str:
    """Whether a finding holds, in words."""
    return "holds" if holds else "does not hold"


MOST = 8
"""As many methods, or fewer, all stand in the table by condition; of more, those that differ most."""


def compared(run: Record, *, every: bool = False) -> tuple[list[str], list[str]]:
    """The methods that stand in the table by condition, and those that do not.

    ``full`` and ``blind`` always do, and all others where they are few. Of many, the best patch, the best method that
    recomputes tokens, both at equal cost, and those of other packages do.

    Args:
        run: see `load`.
        every: whether all do, however many there are.
    """
    names = list(run["scores"]["methods"])
    chosen = names if every or len(names) <= MOST else list(dict.fromkeys(figures.shown(run)))
    return chosen, [name for name in names if name not in chosen]


def conditions(run: Record, shown: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the main score of some methods by condition and hops; the last column counts questions."""
    methods = run["scores"]["methods"]
    measure = measures(run["scores"])[0]
    body = []
    for condition, by_hops in methods["full"]["conditions"].items():
        for hops, own in by_hops.items():
            values = [f"{methods[name]['conditions'][condition][hops][measure]:.3f}" for name in shown]
            body.append([condition, hops, *values, str(own["samples"])])
    return ["condition", "hops", *shown, "n"], body


def failed(run: Record) -> dict[str, str]:
    """The methods that failed and stand in no table, each with where and why."""
    return dict(run["scores"].get("failed", {}))


def command(run: Record) -> str:
    """The command that runs the same again, on one line; ``--output`` is left to its default."""
    config = run["config"]
    parts = ["kamera", "eval", config["task"], "--model", config["model"], "--methods", ",".join(config["methods"])]
    parts += ["--seeds", ",".join(map(str, config["seeds"]))]
    for name in ("limit", "capacity", "batch", "devices"):
        parts += [f"--{name}", str(config[name])] if config.get(name) is not None else []
    return shlex.join(parts)


def markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; bars in the cells are escaped."""
    rows = [[text.replace("|", "\\|") for text in row] for row in (columns, *body)]
    return [f"| {' | '.join(rows[0])} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows[1:])]
