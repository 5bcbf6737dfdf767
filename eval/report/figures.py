"""Figures of `kamera eval`: one panel for each run, in colours that colour-blind readers can distinguish."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import style
from eval.run.folder import Record
from eval.tasks import comparison
from eval.tasks.comparison import SHARES

STYLES = {
    "full": (style.BLACK, "*"),
    "blind": (style.VERMILION, "X"),
    "patch": (style.BLUE, "o"),
    "cacheblend": (style.GREEN, "s"),
    "epic": (style.PURPLE, "^"),
    "mpic": (style.ORANGE, "v"),
    "vlcache": (style.SKY, "D"),
    "oracle-tokens": (style.GREY, "P"),
    "patch + tokens": (style.YELLOW, "h"),
}
"""A colour and a marker for each family of methods, so that each differs from the others in both."""

OTHER_COLOURS = ("#332288", "#117733", "#882255", "#999933", "#aa4499", "#6699cc", "#661100")
OTHER_MARKERS = ("<", ">", "p", "d", "H")
"""Of methods from other packages, in their order; no colour and marker come twice among the first 35."""

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


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for the family of each of these methods, whatever they are called."""
    kinds = dict.fromkeys(map(family, names))
    others = [kind for kind in kinds if kind not in STYLES]
    own = {
        kind: (OTHER_COLOURS[place % len(OTHER_COLOURS)], OTHER_MARKERS[place % len(OTHER_MARKERS)])
        for place, kind in enumerate(others)
    }
    return {kind: STYLES[kind] if kind in STYLES else own[kind] for kind in kinds}


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
    return {title: folder / f"{task}-{own.file}.png" for title, own in FIGURES.items()}


def draw(runs: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Draw every figure; returns the files by title."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = files(runs, folder)
    for title, path in drawn.items():
        own = FIGURES[title]
        with style.drawing(path, own.height(runs)) as figure:
            own.draw(figure, runs)
    return drawn


def markdown(drawn: Mapping[str, Path], folder: Path) -> str:
    """The figures with their captions, as a page in ``folder`` shows them."""
    return "\n\n".join(
        style.figure_block(title, Path(os.path.relpath(path, folder)).as_posix(), FIGURES[title].caption)
        for title, path in drawn.items()
    )


def _models(runs: Sequence[Record]) -> list[str]:
    return [str(run["config"]["model"]) for run in runs]


def _methods(runs: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run["scores"]["methods"]))


def _panels(figure: Any, runs: Sequence[Record], x: str, y: str) -> Any:
    panels = style.panels(figure, _models(runs))[0]
    for place, axes in enumerate(panels):
        axes.set_xlabel(x)
        if place % style.PER_ROW == 0:
            axes.set_ylabel(y)
    return panels


def _points(
    figure: Any,
    runs: Sequence[Record],
    panels: Sequence[Any],
    names: Callable[[Record], Sequence[str]],
    x: Callable[[Record, str], float],
    quiet: Sequence[str] = (),
) -> None:
    """The main score of methods against a cost; a line joins methods of one family that differ in one number.

    The numbers of families that are ``quiet`` are left out.
    """
    colours = styles(_methods(runs))
    labels = []
    for axes, run in zip(panels, runs, strict=True):
        scores = run["scores"]
        labelled: list[tuple[float, float, str]] = []
        groups: dict[str, list[tuple[float, float]]] = {}
        for name in names(run):
            kind = family(name)
            at = (x(run, name), comparison.main_score(scores, name))
            colour, marker = colours[kind]
            cell = scores["methods"][name]["hops"].get(str(comparison.compared_hops(scores)))
            axes.errorbar(*at, yerr=None if cell is None else cell["error"], color=colour, linewidth=1, zorder=2)
            axes.plot(
                *at,
                marker,
                color=colour,
                markerfacecolor="none" if name == "blind-norotate" or "=" in name or name in HALVES else colour,
                markeredgecolor=style.BLACK if kind == "patch + tokens" else colour,
                markersize=7,
                zorder=3,
                label=style.plain(style.shortened(kind)),
            )
            unnumbered = "+" in name or kind in quiet or kind not in STYLES
            labelled.append((*at, "" if unnumbered else name.partition(":")[2].removeprefix("bytes=")))
            if re.fullmatch(r"[a-z-]+:[\d.]+", name):
                groups.setdefault(kind, []).append(at)
        for kind, points in groups.items():
            axes.plot(*np.array(sorted(points)).T, "-", color=colours[kind][0], linewidth=1.2, zorder=1)
        axes.set_ylim(0, 1.08)
        axes.margins(x=0.08)
        labels.append((axes, labelled))
    style.legend(figure, panels)
    figure.draw_without_rendering()
    for axes, labelled in labels:
        others = [(x, y) for x, y, text in labelled if not text]
        style.label(axes, [each for each in labelled if each[2]], others)


def _main(run: Record) -> str:
    """The main score, as an axis is labelled."""
    hops = {1: "", 2: "two-hop "}.get(comparison.compared_hops(run["scores"]), "several-hop ")
    return hops + comparison.measures(run["scores"])[0]


def _bytes(figure: Any, runs: Sequence[Record]) -> None:
    panels = _panels(figure, runs, "stored, % of the KV's bytes", _main(runs[0]))

    def stored(run: Record) -> list[str]:
        methods = run["scores"]["methods"].items()
        return ["blind", *(name for name, own in methods if own["cost"]["bytes"] and name not in HALVES)]

    for axes, run in zip(panels, runs, strict=True):
        full = comparison.main_score(run["scores"], "full")
        axes.axhline(full, color=STYLES["full"][0], linestyle="--", linewidth=1, label="full", zorder=1)
    share = "bytes_share"
    _points(figure, runs, panels, stored, lambda run, name: 100 * run["scores"]["methods"][name]["cost"][share])


def _ttft(figure: Any, runs: Sequence[Record]) -> None:
    panels = _panels(figure, runs, "ms to the first token", _main(runs[0]))

    def timed(run: Record) -> list[str]:  # a run may have no times
        return [name for name in run["scores"]["methods"] if name not in HALVES and run["ttft_s"].get(name)]

    quiet = ("patch", "oracle-tokens", "full")
    _points(figure, runs, panels, timed, lambda run, name: 1e3 * run["ttft_s"][name]["all"], quiet)


def _layers(figure: Any, runs: Sequence[Record]) -> None:
    panels = _panels(figure, runs, "layer", "relative KV error")
    colours = styles(_methods(runs))
    dashes = {"patch:deep": "--", "patch:shallow": ":"}
    kinds = {"patch": "best patch", "cacheblend": "best recomputation"}
    for axes, run in zip(panels, runs, strict=True):
        methods = run["scores"]["methods"]
        for name in [*shown(run)[1:], *(name for name in HALVES if name in methods)]:
            colour, marker = colours[family(name)]
            label = name if len(runs) == 1 else kinds.get(family(name), name) if name not in HALVES else name
            axes.plot(
                methods[name]["kv_error"],
                dashes.get(name, "-"),
                marker=marker,
                color=colour,
                label=style.plain(style.shortened(label)),
            )
        style.whole_numbers(axes.xaxis)
        axes.set_ylim(bottom=0)
    style.legend(figure, panels)


def _spectrum(figure: Any, runs: Sequence[Record]) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    panels = _panels(figure, runs, "components or tokens, %", "share of the squared change, %")
    changed = [run["scores"]["absorbed"] for run in runs]
    deepest = max(max(len(own[name]) for name in ("components", "tokens")) for own in changed)
    colours = matplotlib.colormaps[style.LAYERS].resampled(max(deepest, 2))
    norm = BoundaryNorm(np.arange(max(deepest, 1) + 1) - 0.5, colours.N)
    for axes, own in zip(panels, changed, strict=True):
        for name, dashes in (("components", "-"), ("tokens", "--")):
            axes.plot([], [], dashes, color=style.GREY, label=name)
            for depth, layer in enumerate(own[name]):
                if layer[-1] > 0.5:  # the first layer does not change
                    axes.plot(100 * np.array(SHARES), 100 * np.array(layer), dashes, color=colours(depth))
        axes.axhline(90, color="#999999", linewidth=0.8)
        axes.set_ylim(0, 103)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), label="layer", aspect=30, pad=0.02)
    style.whole_numbers(bar.ax.yaxis)
    bar.ax.minorticks_off()
    style.legend(figure, panels)


def _heatmaps(figure: Any, runs: Sequence[Record]) -> None:
    figure.supxlabel("chunks of the window")
    figure.supylabel("depth of the answer's chunk")
    across = max(min(len(shown(run)), HEATMAPS) for run in runs)
    grid = figure.subplots(len(runs), across, sharey="row", squeeze=False)
    picture = None
    for place, (line, run) in enumerate(zip(grid, runs, strict=True)):
        methods = run["scores"]["methods"]
        measure = comparison.measures(run["scores"])[0]
        lengths = sorted(methods["full"]["lengths"], key=int)
        quarters = sorted({quarter for own in methods["full"]["lengths"].values() for quarter in own})
        names = shown(run)[:HEATMAPS]
        for axes, name in zip(line, names, strict=False):
            title = f"{_models([run])[0]}\n{name}" if name == "full" else f"\n{name}"
            axes.set_title(style.lettered(place, title, len(runs)) if name == "full" else style.plain(title))
            axes.grid(False)
            cells = [[methods[name]["lengths"][length].get(each) for length in lengths] for each in quarters]
            values = np.array([[np.nan if each is None else each[measure] for each in row] for row in cells])
            if not values.size:  # no question is marked as learned
                continue
            picture = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            for row, column in np.argwhere(~np.isnan(values)):
                value = values[row, column]
                colour = "#ffffff" if value < 0.6 else style.BLACK
                text = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
                axes.text(column, row, text, ha="center", va="center", color=colour)
            axes.set_xticks(range(len(lengths)), lengths)
            axes.set_yticks(range(len(quarters)), quarters)
        for axes in line[len(names) :]:
            axes.set_visible(False)
    if picture is not None:
        figure.colorbar(picture, ax=grid.ravel().tolist(), label=_main(runs[0]), aspect=40, pad=0.02)


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Attributes:
        file: its file's name.
        draw: draws it, a panel for each run.
        inches: of each row of panels.
        caption: what it shows.
        run_a_row: each run has a row of its own.
    """

    file: str
    draw: Callable[[Any, Sequence[Record]], None]
    inches: float
    caption: str
    run_a_row: bool = False

    def height(self, runs: Sequence[Record]) -> float:
        """Inches of the figure."""
        return 0.9 + self.inches * (len(runs) if self.run_a_row else style.rows_of(len(runs)))


FIGURES = {
    "Main score against stored bytes": Drawing(
        "bytes",
        _bytes,
        2.3,
        "The main score against the bytes that a method stores beside the KV. Numbers are the methods' own (rank of a "
        "patch, share of tokens); hollow markers are patches by energy or bytes. Bars are standard errors, contexts "
        "being the clusters.",
    ),
    "Main score against time to the first token": Drawing(
        "ttft",
        _ttft,
        2.3,
        "The main score against the time to fill a window and ask, compilation excluded. Bars are standard errors, "
        "contexts being the clusters. Times of small models on a CPU say little about accelerators.",
    ),
    "Relative KV error by layer": Drawing(
        "layers",
        _layers,
        2.2,
        "How far the KV of a filled window is from full prefill's, by layer, relative to its size: of blind reuse, of "
        "the best patch and the best recomputation of tokens within a quarter of the cost, and of patches of one half "
        "of the layers.",
    ),
    "Share of the KV change in the strongest components and tokens": Drawing(
        "spectrum",
        _spectrum,
        2.3,
        "How concentrated the change of the KV is that patches store: the share of its squared size in the strongest "
        "components (low-rank) and in the tokens that change most (diffuse), by layer. The grey line is 90 %.",
    ),
    "Main score by depth of the answer's chunk and length of the window": Drawing(
        "depth",
        _heatmaps,
        1.6,
        "The main score by where the answer's chunk stands in the window (as a share of its length) and by how many "
        "chunks the window has; empty where there was no question.",
        run_a_row=True,
    ),
}
"""The figures of a report by title."""
