"""The guard's results as a table and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HARMLESS = "#0072b2"
HARMFUL = "#d55e00"
"""Okabe-Ito: told apart by colour-blind readers too."""

FLOOR = 1e-6
"""Nats below which a KL is drawn at the edge."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for every model, in Markdown."""
    lines = [
        "| model | drifts | harmful | accepted within budget (95 %) | harmless accepted (95 %) | sketch, of KV | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cost = result["cost"]
        shares = " | ".join(_interval(result[name]) for name in ("accepted_within_budget", "harmless_accepted"))
        lines.append(
            f"| {result['model']} | {result['drifts']} | {result['harmful']:.0%} | {shares} | "
            f"{cost['sketch_bytes'] / cost['chunk_bytes']:.1%} | {cost['verdict_ms']:.1f} |"
        )
    return "\n".join(lines)


def _interval(share: dict[str, Any]) -> str:
    low, high = share["interval_95"]
    return f"{share['share']:.3f} ({low:.3f}–{high:.3f}) of {share['of']}"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """KL against what was expected, a panel for every model, with the threshold and the budget as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(results), 4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)
    for axes, result in zip(panels[0], results, strict=True):
        estimate, kl = (np.asarray(result["points"][name]) for name in ("estimate", "kl"))
        for harmful, colour, marker in ((False, HARMLESS, "o"), (True, HARMFUL, "^")):
            of = (kl > result["max_kl"]) == harmful
            label = "harmful" if harmful else "harmless"
            axes.plot(
                np.maximum(estimate[of], FLOOR),
                np.maximum(kl[of], FLOOR),
                marker,
                ms=3.5,
                alpha=0.6,
                color=colour,
                label=label,
            )
        if result["threshold"] >= 0:
            axes.axvline(result["threshold"], color="#222222", linewidth=1.2, label="accepted to the left")
        axes.axhline(result["max_kl"], color="#777777", linewidth=1.2, linestyle="--", label="budget")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("KL expected by the calibration, nats")
        axes.set_title(result["model"], loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("KL to the present reference, nats")
    # Of a panel that has all of them.
    handles = max((axes.get_legend_handles_labels() for axes in panels[0]), key=lambda found: len(found[0]))
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("A patch is refused where its page would read something else", x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=150)
