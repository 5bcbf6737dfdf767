"""Figures of `kamera eval`: one panel for each run, in colours that colour-blind readers tell apart (Okabe and Ito)."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import claims
from eval.run.folder import Record
from eval.run.spectrum import SHARES

STYLES = {
    "full": ("#000000", "*"),
    "blind": ("#d55e00", "X"),
    "patch": ("#0072b2", "o"),
    "cacheblend": ("#009e73", "s"),
    "epic": ("#cc79a7", "^"),
    "mpic": ("#e69f00", "v"),
    "vlcache": ("#56b4e9", "D"),
    "oracle-tokens": ("#777777", "P"),
    "patch + tokens": ("#f0e442", "h"),
}
"""A colour and a marker for each family of methods: neither has to be told apart alone."""

HALVES = ("patch:deep", "patch:shallow")
"""Patches of some layers alone: shown layer by layer."""

HEATMAPS = 3
"""Methods whose accuracy is shown by depth and length."""


def family(name: str) -> str:
    """Which of `STYLES` a method has."""
    if "+" in name:
        return "patch + tokens"
    return "blind" if name.startswith("blind") else name.partition(":")[0]


def shown(run: Record) -> list[str]:
    """Full, blind, and the best of the patches and of what repairs tokens, within `claims.EQUAL_COST`."""
    scores = run["scores"]
    kinds = (claims.patches(scores, claims.EQUAL_COST), claims.recomputing(scores, claims.EQUAL_COST))
    return ["full", "blind", *(name for names in kinds if (name := claims.best(scores, names)) is not None)]


def files(runs: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Where every figure is drawn, by what it shows."""
    return {title: folder / f"{runs[0]['config']['task']}-{name}.png" for title, (name, _, _) in FIGURES.items()}


def draw(runs: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Draw every figure; returns the files by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    found = files(runs, folder)
    for title, path in found.items():
        _figure(runs, path, title, *FIGURES[title][1:])
    return found


def _figure(
    runs: Sequence[Record],
    path: Path,
    title: str,
    panel: Callable[[Any, Record, bool], None],
    size: tuple[float, float],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width, height = size
    figure = plt.figure(figsize=(max(width * len(runs), 6.5), height), layout="constrained")
    panels = figure.subfigures(1, len(runs), squeeze=False)[0]
    for part, run in zip(panels, runs, strict=True):
        part.suptitle(run["config"]["model"], x=0.02, ha="left", fontsize=11)
        panel(part, run, run is runs[-1])
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _axes(part: Any, x: str, y: str) -> Any:
    axes = part.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _points(axes: Any, run: Record, names: Sequence[str], x: Callable[[str], float], quiet: Sequence[str] = ()) -> None:
    """Two-hop accuracy of methods against a cost; one family's methods of one number each are joined.

    Families that are ``quiet`` lie too close for their numbers to be read.
    """
    scores = run["scores"]
    labelled = set()
    groups: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        kind = family(name)
        at = (x(name), claims.accuracy(scores, name, 2))
        colour, marker = STYLES[kind]
        cell = scores["methods"][name]["hops"].get("2")
        error = None if cell is None else cell["error"]
        axes.errorbar(*at, yerr=error, color=colour, linewidth=1, zorder=2)
        hollow = "none" if name == "blind-norotate" or "=" in name or name in HALVES else colour
        axes.plot(
            *at,
            marker,
            color=colour,
            markerfacecolor=hollow,
            markeredgecolor="#000000" if kind == "patch + tokens" else colour,
            markersize=7,
            zorder=3,
            label="_" if kind in labelled else kind,
        )
        labelled.add(kind)
        number = "" if "+" in name or kind in quiet else name.partition(":")[2].removeprefix("bytes=")
        axes.annotate(number, at, (5, -10), textcoords="offset points", fontsize=7, color="#555555")
        if re.fullmatch(r"[a-z-]+:[\d.]+", name):
            groups.setdefault(kind, []).append(at)
    for kind, points in groups.items():
        axes.plot(*np.array(sorted(points)).T, "-", color=STYLES[kind][0], linewidth=1.2, zorder=1)
    axes.set_ylim(0, 1.08)


def _bytes(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "stored beside the KV, % of its bytes", "two-hop accuracy")
    methods = run["scores"]["methods"]
    stored = ["blind", *(name for name, own in methods.items() if own["cost"]["bytes"] and name not in HALVES)]
    full = claims.accuracy(run["scores"], "full", 2)
    axes.axhline(full, color=STYLES["full"][0], linestyle="--", linewidth=1, label="full", zorder=1)
    _points(axes, run, stored, lambda name: 100 * methods[name]["cost"]["bytes_share"])
    if last:
        axes.legend(loc="lower right", fontsize=8, frameon=False)


def _ttft(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "ms to fill a window and ask (fewer is better)", "two-hop accuracy")
    names = [name for name in run["scores"]["methods"] if name not in HALVES and run["ttft_s"].get(name)]
    _points(axes, run, names, lambda name: 1e3 * run["ttft_s"][name]["all"], quiet=("patch", "oracle-tokens"))
    if last:
        axes.legend(loc="lower right", fontsize=8, frameon=False)


def _layers(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "layer", "relative KV error against full prefill")
    methods = run["scores"]["methods"]
    halves = [name for name in HALVES if name in methods]
    dashes = iter(("--", ":"))
    for name in [*shown(run)[1:], *halves]:
        colour, marker = STYLES[family(name)]
        line = next(dashes) if name in halves else "-"
        axes.plot(methods[name]["kv_error"], line, marker=marker, color=colour, markersize=5, label=name)
    axes.set_xticks(range(len(methods["blind"]["kv_error"])))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)


def _spectrum(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "share of components, or of tokens, %", "share of the squared change, %")
    ends = {"components": STYLES["patch"][0], "tokens": STYLES["blind"][0]}
    for name, colour in ends.items():
        layers = [layer for layer in run["scores"]["absorbed"][name] if layer[-1] > 0.5]
        for depth, layer in enumerate(layers):
            axes.plot(
                100 * np.array(SHARES),
                100 * np.array(layer),
                "-" if name == "components" else "--",
                color=colour,
                alpha=0.35 + 0.65 * depth / max(len(layers) - 1, 1),
                label=f"{name}, deeper is darker" if layer is layers[-1] else "_",
            )
    axes.axhline(90, color="#999999", linewidth=0.8)
    axes.set_ylim(0, 103)
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _heatmaps(part: Any, run: Record, last: bool) -> None:
    methods = run["scores"]["methods"]
    names = shown(run)[:HEATMAPS]
    lengths = sorted(methods["full"]["lengths"], key=int)
    quarters = sorted({quarter for own in methods["full"]["lengths"].values() for quarter in own})
    grid = part.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        cells = [[methods[name]["lengths"][length].get(each) for length in lengths] for each in quarters]
        values = np.array([[np.nan if each is None else each["accuracy"] for each in row] for row in cells])
        axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for row, column in np.argwhere(~np.isnan(values)):
            value = values[row, column]
            colour = "#ffffff" if value < 0.6 else "#000000"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(quarters)), quarters)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("chunks")
    grid[0].set_ylabel("depth of the fact")


FIGURES: dict[str, tuple[str, Callable[[Any, Record, bool], None], tuple[float, float]]] = {
    "Accuracy against bytes": ("bytes", _bytes, (4.6, 4.0)),
    "Accuracy against time to the first token": ("ttft", _ttft, (4.6, 4.0)),
    "What is missing, layer by layer": ("layers", _layers, (4.6, 3.8)),
    "What a chunk absorbs: few directions, more tokens": ("spectrum", _spectrum, (4.6, 3.8)),
    "Two hops by depth of the fact and length of the window": ("depth", _heatmaps, (5.6, 3.2)),
}
"""Titles, file names, panels, and inches of a panel."""
