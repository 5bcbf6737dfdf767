"""The measured part of docs/similar.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

KINDS = ("changed", "leads", "kept")
"""What is asked about: what changed, what stayed and leads there, and what stayed."""

FEW = ("stale", "0", "0.05", "0.1")
"""Variants that are shown where a cell holds several numbers."""


def table(result: Mapping[str, Any]) -> str:
    """Tables in Markdown: answers by share of rows, a series, how far embeddings move, and time."""
    lines = [
        f"Accuracy about what changed / what leads there / what stayed, by `extra` ({result['extra']:g} is the "
        f"default); {_screens(result)}:",
        "",
        *_grid(result, _accuracy, ("exact", *FEW)),
        "",
        "KL from encoding, in nats, of the same:",
        "",
        *_grid(result, _distance, FEW),
        "",
        "Error of the KV, ‖made - encoded‖ / ‖encoded‖, and the share of the rows that were run:",
        "",
        *_grid(result, _error, ("stale", *(f"{each:g}" for each in result["extras"]))),
        "",
        "A series of screens, six cells changed from each to the next; error of the KV, and the rows that were run:",
        "",
        *_series(result),
        "",
        "How far embeddings move, as a share of their length:",
        "",
        *_moved(result),
        "",
        *_times(result),
    ]
    return "\n".join(lines)


def _grid(result: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str], variants: Sequence[str]) -> list[str]:
    """A row for each model and size of region, a column for each variant."""
    words = {"exact": "encoded", "stale": "the old chunk"}
    lines = [f"| model | changed | {' | '.join(words.get(name, f'`{name}`') for name in variants)} |"]
    lines.append("|---|---|" + "---|" * len(variants))
    for model in result["models"]:
        for row in model["regions"]:
            cells = " | ".join(cell(row["variants"][name]) for name in variants)
            lines.append(f"| {_short(model)} | {_size(row)} | {cells} |")
    return lines


def _short(model: Mapping[str, Any]) -> str:
    """A model's name, in a narrow column."""
    return model["model"].removeprefix("kamera-").removeprefix("tiny-")


def _screens(result: Mapping[str, Any]) -> str:
    """On how many pages a row is measured."""
    counts = {}
    for model in result["models"]:
        counts.setdefault(model["regions"][0]["screens"], []).append(f"`{model['model']}`")
    return ", ".join(f"{count} pages a row of {' and '.join(names)}" for count, names in counts.items())


def _size(row: Mapping[str, Any]) -> str:
    region = row["region"]
    return f"{region[0]} tokens" if len(region) == 1 else f"{region[0]} x {region[1]} cells"


def _accuracy(variant: Mapping[str, Any]) -> str:
    kinds = variant["kinds"]
    return "/".join(f"{kinds[kind]['accuracy']:.2f}" for kind in KINDS if kind in kinds)


def _distance(variant: Mapping[str, Any]) -> str:
    values = [max(variant["kinds"][kind]["kl"], 0.0) for kind in KINDS if kind in variant["kinds"]]
    return " / ".join(f"{each:.3f}" if each < 1 else f"{each:.1f}" for each in values)


def _error(variant: Mapping[str, Any]) -> str:
    return f"{variant['kv_error']:.3f} ({variant['rows']:.0%})"


def _series(result: Mapping[str, Any]) -> list[str]:
    models = [model for model in result["models"] if "series" in model]
    steps = range(1, len(models[0]["series"]) + 1)
    lines = [f"| model | made from | {' | '.join(map(str, steps))} |"]
    lines.append("|---|---|" + "---|" * len(steps))
    for model in models:
        for name, words in (("chain", "the one before"), ("from_first", "the first"), ("stale", "the first, kept")):
            cells = " | ".join(_error(step[name]) for step in model["series"])
            lines.append(f"| {_short(model)} | {words} | {cells} |")
    return lines


def _moved(result: Mapping[str, Any]) -> list[str]:
    lines = ["| model | changed | others: largest | changed: least | median |", "|---|---|---|---|---|"]
    for model in result["models"]:
        for row in model["regions"]:
            still, moved = (row["moved"][name] for name in ("unchanged", "changed"))
            lines.append(
                f"| {_short(model)} | {_size(row)} | {still['largest']:.4f} | {moved['least']:.2f} | "
                f"{moved['median']:.2f} |"
            )
    return lines


def _times(result: Mapping[str, Any]) -> list[str]:
    times = result["times"]
    lines = [
        f"Time of the language model of `{times['model']}` on {result['cpus']} CPU cores that are shared with other "
        f"work (load average {result['load']:.1f}), in turns, the median of {times['rounds']}; its FLOPs as XLA counts "
        "them in the compiled programs. *Changed*: these rows alone (`extra=0`); *default*: `extra` and the first "
        "layers too.",
        "",
        "| tokens | changed | run by default | encoding, ms | preparing (both), ms | time of encoding: changed | "
        "default | FLOPs of encoding: changed | default |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in times["pages"]:
        seconds = row["median_s"]
        shares = [row[what][name] for what in ("of_encoding", "flops") for name in ("changed", "renew")]
        cells = " | ".join(f"{each:.2f}" for each in shares)
        lines.append(
            f"| {row['tokens']} | {row['rows']['changed']} | {row['rows']['renew']} | {1e3 * seconds['encode']:.0f} | "
            f"{1e3 * seconds['prepare']:.0f} | {cells} |"
        )
    return lines
