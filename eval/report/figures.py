"""Figures of `kamera eval`: one panel for each run, in colours that colour-blind readers can distinguish."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.run.folder import Record
from eval.tasks import comparison
from eval.tasks.comparison import SHARES

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
"""A colour and a marker for each family of methods, so that each differs from the others in both."""

OTHER = ("#332288", "<")
"""The colour and marker of methods from other packages."""

HALVES = ("patch:deep", "patch:shallow")
"""Patches of some layers alone, which are shown by layer and not by cost."""

HEATMAPS = 3
"""How many methods are shown by depth and length."""


def family(name: str) -> str:
    """The family of a method, whose colour and marker `STYLES` has; of other packages' methods their own name."""
    if "+" in name:
        return "patch + tokens"
    if name.startswith("blind"):
        return "blind"
    kind = name.partition(":")[0]
    return kind if kind in STYLES else name


def shown(run: Record) -> list[str]:
    """Full, blind, the best patch and the best method that recomputes tokens, both within `comparison.EQUAL_COST`.

    Methods of other packages are shown beside them.
    """
    scores = run["scores"]
    kinds = (comparison.patches(scores, comparison.EQUAL_COST), comparison.recomputing(scores, comparison.EQUAL_COST))
    others = [name for name in scores["methods"] if family(name) not in STYLES]
    best = [name for names in kinds if (name := comparison.best(scores, names)) is not None]
    return ["full", "blind", *best, *others]


def files(runs: Sequence[Record], folder: Path) -> dict[str, Path]:
    """The files that the figures are drawn to, by title."""
    task = re.sub(r"[^\w-]+", "-", runs[0]["config"]["task"])
    return {title: folder / f"{task}-{name}.png" for title, (name, _, _) in FIGURES.items()}


def draw(runs: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Draw every figure; returns the files by title."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = files(runs, folder)
    for title, path in drawn.items():
        _figure(runs, path, title, *FIGURES[title][1:])
    return drawn


def _figure(
    runs: Sequence[Record],
    path: Path,
    title: str,
    panel: Callable[[Any, Record, bool], None],
    size: tuple[float, float],
) -> None:
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(max(width * len(runs), 6.5), height), layout="constrained")
    panels = figure.subfigures(1, len(runs), squeeze=False)[0]
    for part, run in zip(panels, runs, strict=True):
        part.suptitle(run["config"]["model"], x=0.02, ha="left", fontsize=11)
        panel(part, run, run is runs[-1])
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=130)


def _axes(part: Any, x: str, y: str) -> Any:
    axes = part.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _points(axes: Any, run: Record, names: Sequence[str], x: Callable[[str], float], quiet: Sequence[str] = ()) -> None:
    """The main score of methods against a cost; a line joins methods of one family that differ in one number.

    The numbers of families that are ``quiet`` are left out, as they would cover each other.
    """
    scores = run["scores"]
    labelled = set()
    groups: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        kind = family(name)
        at = (x(name), comparison.main_score(scores, name))
        colour, marker = STYLES.get(kind, OTHER)
        cell = scores["methods"][name]["hops"].get(str(comparison.compared_hops(scores)))
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
        unnumbered = "+" in name or kind in quiet or kind not in STYLES
        number = "" if unnumbered else name.partition(":")[2].removeprefix("bytes=")
        axes.annotate(number, at, (5, -10), textcoords="offset points", fontsize=7, color="#555555")
        if re.fullmatch(r"[a-z-]+:[\d.]+", name):
            groups.setdefault(kind, []).append(at)
    for kind, points in groups.items():
        axes.plot(*np.array(sorted(points)).T, "-", color=STYLES.get(kind, OTHER)[0], linewidth=1.2, zorder=1)
    axes.set_ylim(0, 1.08)


def _main(run: Record) -> str:
    """The main score, as an axis is labelled."""
    hops = {1: "", 2: "two-hop "}.get(comparison.compared_hops(run["scores"]), "several-hop ")
    return hops + comparison.measures(run["scores"])[0]


def _bytes(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "stored beside the KV, % of its bytes", _main(run))
    methods = run["scores"]["methods"]
    stored = ["blind", *(name for name, own in methods.items() if own["cost"]["bytes"] and name not in HALVES)]
    full = comparison.main_score(run["scores"], "full")
    axes.axhline(full, color=STYLES["full"][0], linestyle="--", linewidth=1, label="full", zorder=1)
    _points(axes, run, stored, lambda name: 100 * methods[name]["cost"]["bytes_share"])
    if last:
        axes.legend(loc="lower right", fontsize=8, frameon=False)


def _ttft(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "ms to fill a window and ask (fewer is better)", _main(run))
    names = [name for name in run["scores"]["methods"] if name not in HALVES and run["ttft_s"].get(name)]
    _points(axes, run, names, lambda name: 1e3 * run["ttft_s"][name]["all"], quiet=("patch", "oracle-tokens"))
    if last and names:  # a run may have no times
        axes.legend(loc="lower right", fontsize=8, frameon=False)


def _layers(part: Any, run: Record, last: bool) -> None:
    axes = _axes(part, "layer", "relative KV error against full prefill")
    methods = run["scores"]["methods"]
    halves = [name for name in HALVES if name in methods]
    dashes = iter(("--", ":"))
    for name in [*shown(run)[1:], *halves]:
        colour, marker = STYLES.get(family(name), OTHER)
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
    measure = comparison.measures(run["scores"])[0]
    names = shown(run)[:HEATMAPS]
    lengths = sorted(methods["full"]["lengths"], key=int)
    quarters = sorted({quarter for own in methods["full"]["lengths"].values() for quarter in own})
    grid = part.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        cells = [[methods[name]["lengths"][length].get(each) for length in lengths] for each in quarters]
        values = np.array([[np.nan if each is None else each[measure] for each in row] for row in cells])
        if not values.size:  # no question is marked as learned
            continue
        axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for row, column in np.argwhere(~np.isnan(values)):
            value = values[row, column]
            colour = "#ffffff" if value < 0.6 else "#000000"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(quarters)), quarters)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("chunks")
    grid[0].set_ylabel("depth of the answer's chunk")


FIGURES: dict[str, tuple[str, Callable[[Any, Record, bool], None], tuple[float, float]]] = {
    "Main score against stored bytes": ("bytes", _bytes, (4.6, 4.0)),
    "Main score against time to the first token": ("ttft", _ttft, (4.6, 4.0)),
    "Relative KV error by layer": ("layers", _layers, (4.6, 3.8)),
    "Share of the KV change in the strongest components and tokens": ("spectrum", _spectrum, (4.6, 3.8)),
    "Main score by depth of the answer's chunk and length of the window": ("depth", _heatmaps, (5.6, 3.2)),
}
"""By title: the file's name, the function that draws a panel, and the panel's inches."""
