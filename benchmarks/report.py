"""The guard's results as a table and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import style

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
            f"| `{result['model']}` | {result['drifts']} | {result['harmful']:.0%} | {shares} | "
            f"{cost['sketch_bytes'] / cost['chunk_bytes']:.1%} | {cost['verdict_ms']:.1f} |"
        )
    return "\n".join(lines)


def _interval(share: dict[str, Any]) -> str:
    low, high = share["interval_95"]
    return f"{share['share']:.3f} ({low:.3f}–{high:.3f}) of {share['of']}"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """KL against what was expected, a panel for every model, with the threshold and the budget as lines.

    Results from before calibrations had an estimate are drawn against the change of attention.
    """
    expected = all("estimate" in result["points"] for result in results)
    with style.drawing(path, 3.3) as figure:
        panels = style.panels(figure, [result["model"] for result in results])[0]
        for axes, result in zip(panels, results, strict=True):
            at, kl = (np.asarray(result["points"][name]) for name in ("estimate" if expected else "change", "kl"))
            for harmful, colour, marker in ((False, style.BLUE, "o"), (True, style.VERMILION, "^")):
                of = (kl > result["max_kl"]) == harmful
                axes.plot(
                    np.maximum(at[of], FLOOR) if expected else at[of],
                    np.maximum(kl[of], FLOOR),
                    marker,
                    ms=3,
                    alpha=0.5,
                    color=colour,
                    label="harmful" if harmful else "harmless",
                )
            if result["threshold"] >= 0:
                axes.axvline(result["threshold"], color="#222222", linewidth=1.2, label="accepted to the left")
            axes.axhline(result["max_kl"], color=style.GREY, linewidth=1.2, linestyle="--", label="budget")
            axes.set_yscale("log")
            if expected:
                axes.set_xscale("log")
            axes.set_xlabel("KL expected, nats" if expected else "change of attention")
        panels[0].set_ylabel("KL to the present reference, nats")
        style.legend(figure, panels)
