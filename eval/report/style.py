"""The look of every figure, in one place: sizes at which text can be read in the documentation, colours, panels."""

import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLUMN = 720
"""Pixels of the documentation's column, to which figures are scaled."""

WIDTH = 7.2
"""Inches of a figure: a hundred pixels of the column to an inch."""

SMALLEST = 9
"""Points of the smallest type: 12 pixels in the column, and 11 on a phone, where figures are 640 pixels wide."""

DPI = 200

BLACK = "#000000"
GREY = "#777777"
BLUE = "#0072b2"
SKY = "#56b4e9"
GREEN = "#009e73"
YELLOW = "#f0e442"
ORANGE = "#e69f00"
VERMILION = "#d55e00"
PURPLE = "#cc79a7"
"""The colours of Okabe and Ito, which readers with every kind of colour vision can distinguish."""

LAYERS = "viridis"
"""The colour map of lines that stand for layers; they are explained by a colour bar."""

SETTINGS: Any = {
    "font.size": SMALLEST,
    "axes.labelsize": SMALLEST,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "figure.labelsize": SMALLEST,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALLEST,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
}

PER_ROW = 3
"""Panels that stand beside each other."""

POSITIONS = (
    (6, -4, "left"),
    (-6, -4, "right"),
    (0, 6, "center"),
    (0, -13, "center"),
    (6, 5, "left"),
    (6, -13, "left"),
    (-6, 5, "right"),
    (-6, -13, "right"),
    (9, -22, "left"),
    (-9, -22, "right"),
    (9, 14, "left"),
    (-9, 14, "right"),
)
"""Offsets in points, and alignments, that a label is tried at, until it covers nothing."""


@contextmanager
def drawing(path: Path, height: float | int, width: float | int = WIDTH) -> Iterator[Any]:
    """A figure to draw into, which is written to ``path`` at the end; its ending says in which format."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=DPI)


def rows_of(count: int) -> int:
    """How many rows so many panels take."""
    return -(-count // PER_ROW)


def panels(figure: Any, titles: Sequence[str], rows: int = 1) -> list[list[Any]]:
    """Rows of axes, each column under its title; the axes of a row share one y axis.

    A single row is broken into rows of `PER_ROW` panels where it has more, and comes as one row all the same.

    Args:
        figure: what to draw into.
        titles: of the columns, which are lettered (a), (b), … where there are several panels.
        rows: of panels.
    """
    count = len(titles)
    broken = rows_of(count) if rows == 1 else rows
    across = min(count, PER_ROW) if rows == 1 else count
    grid = figure.subplots(broken, across, sharey="row", squeeze=False)
    flat = grid.ravel() if rows == 1 else grid
    for axes in grid.ravel()[count * rows :]:
        axes.set_visible(False)
    shown = [list(flat[:count])] if rows == 1 else [list(row) for row in grid]
    for place, axes in enumerate(axes for row in shown for axes in row):
        axes.set_title(lettered(place, plain(titles[place % count]), count * rows))
    return shown


def lettered(place: int, title: str, count: int) -> str:
    """The title of a panel with its letter, where there are several panels."""
    if count == 1:
        return title
    letters = string.ascii_lowercase
    letter = letters[place] if place < len(letters) else letters[place // 26 - 1] + letters[place % 26]
    return f"({letter}) {title}"


def plain(text: str) -> str:
    """Text as it is: neither a formula of matplotlib's nor hidden from a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shortened(name: str, most: int = 30) -> str:
    """A name of at most so many letters, for a legend; a longer one loses its beginning."""
    return name if len(name) <= most else "…" + name[-(most - 1) :]


def legend(figure: Any, panels: Iterable[Any], columns: int = 5) -> None:
    """One legend below the panels, with every label of any of them once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        count = min(columns, len(found))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=count)


def whole_numbers(axis: Any, most: int = 9) -> None:
    """Ticks at whole numbers alone, at most so many."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def label(axes: Any, labelled: Sequence[tuple[Any, Any, str]], others: Sequence[tuple[Any, Any]] = ()) -> None:
    """Put labels beside points so that none covers a label, a point, a line or the edge; what has no room is left out.

    Call it last: everything else has to be drawn, and laid out by ``figure.draw_without_rendering()``.

    Args:
        axes: where the points are.
        labelled: points and their labels.
        others: points without one.
    """
    figure = axes.get_figure(root=True)
    renderer = figure.canvas.get_renderer()
    half = figure.dpi * 3.5 / 72
    taken = []
    for x, y in [*((x, y) for x, y, _ in labelled), *others]:
        column, row = axes.transData.transform((x, y))
        taken.append((column - half, row - half, column + half, row + half))
    for line in axes.get_lines():
        taken += _along(line.get_transform().transform(line.get_xydata()))
    edge = axes.get_window_extent(renderer)
    for x, y, text in labelled:
        for right, up, align in POSITIONS:
            drawn = axes.annotate(
                plain(text), (x, y), (right, up), textcoords="offset points", ha=align, color="#444444", zorder=4
            )
            box = drawn.get_window_extent(renderer)
            extent = tuple(map(float, box.extents))
            inside = edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1
            if inside and not any(_overlap(extent, each) for each in taken):
                drawn.set_in_layout(False)
                taken.append(extent)
                break
            drawn.remove()


def _along(points: Any, step: float = 8.0) -> list[tuple[float, float, float, float]]:
    """Small boxes along a line, in pixels."""
    import numpy as np

    boxes = []
    for start, end in zip(points[:-1], points[1:], strict=True):
        length = float(np.hypot(*(end - start)))
        if not np.isfinite(length):
            continue
        for share in np.linspace(0, 1, max(int(length / step), 1) + 1):
            x, y = start + share * (end - start)
            boxes.append((x - 1, y - 1, x + 1, y + 1))
    return boxes


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return bool(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def figure_block(alt: str, source: str, caption: str) -> str:
    """A figure with its caption, as Markdown that a page and GitHub show alike."""
    return f"<figure markdown>\n\n![{alt}]({source})\n\n<figcaption markdown>{caption}</figcaption>\n</figure>"
