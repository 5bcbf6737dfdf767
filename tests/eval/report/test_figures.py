"""Figures can be read in the column of the documentation: size of type, letters of panels, no text on another text."""

import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from benchmarks import redraw
from eval.report import console, demo_text, figures, style
from eval.run import scores
from eval.tasks import get
from tests.eval.made_up import make

ROOT = Path(__file__).parents[3]
ODD = ("full", "blind", "my_package.trailing:trailing:8", "_hidden:x", "a$b$c", "patch:4+mine:8", "patch", "x" * 60)
"""Names that methods may have: of other packages, with what matplotlib reads as a formula, or hides."""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, by file name, with everything in its place."""
    kept = {}

    def keep(self, path, **options):
        self.draw_without_rendering()
        kept[Path(path).stem] = self

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def texts(figure):
    return [each for each in figure.findobj(Text) if each.get_visible() and each.get_text().strip()]


def shown(figure):
    """Texts that are on the page; ticks beyond an axis' limits are not."""
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    seen = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            seen += [tick.label1 for tick in ticks if tick.label1.get_visible()]
            seen.append(axis.label)
        seen += [axes.title, axes._left_title, *axes.texts]
    seen += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in seen if text.get_text().strip()]
    return [(text, box) for text, box in boxes if box.width and page.overlaps(box)]


def check(figure):
    inches = figure.get_size_inches()[0]
    pixels = style.COLUMN / inches / 72
    assert min(text.get_size() for text in texts(figure)) * pixels >= 9
    for (one, box), (other, beside) in itertools.combinations(shown(figure), 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert min(across, down) < 2, (one, other)
    letters = [axes.get_title(loc="left")[:4] for axes in figure.axes if axes.get_title(loc="left").startswith("(")]
    assert letters == [f"({chr(97 + i)}) " for i in range(len(letters))]


def test_figures_of_the_documentation_can_be_read(drawn, tmp_path):
    redraw.draw(ROOT / "docs", tmp_path)
    assert len(drawn) == len(figures.FIGURES) + 7
    for name, figure in drawn.items():
        check(figure)
        assert abs(figure.get_size_inches()[0] - style.WIDTH) < 1e-6, name
        with Image.open(ROOT / "docs/figures" / f"{name}.png") as committed:  # or `make pages` was not run
            assert np.abs(np.array(committed.size) - figure.get_size_inches() * style.DPI).max() <= 1, name
    for name in ("binding-bytes", "binding-ttft", "binding-layers", "binding-spectrum", "guard", "patch-text"):
        panels = [axes for axes in drawn[name].axes if axes.get_title(loc="left")]
        assert len(panels) == 3 and len({axes.get_ylim() for axes in panels}) == 1, name
    assert all(isinstance(axes.xaxis.get_major_locator(), MaxNLocator) for axes in drawn["binding-layers"].axes)
    for name in ("binding-depth", "binding-spectrum"):
        assert [axes.get_label() for axes in drawn[name].axes].count("<colorbar>") == 1, name
    for name in ("binding-bytes", "binding-ttft", "patch", "patch-text"):
        assert all(axes.containers for axes in drawn[name].axes if axes.get_visible()), name  # error bars


def run_of(methods, model="kamera-tiny-gqa"):
    lines, samples = make(np.random.default_rng(1), methods=methods)
    return {
        "config": {"task": "binding", "model": model, "seeds": [0, 1, 2], "batch": 9, "methods": list(methods)},
        "versions": {"jax": "0.0"},
        "scores": scores.score(get("binding"), list(methods), lines, samples),
        "ttft_s": {name: {"all": 0.01 * (1 + i)} for i, name in enumerate(methods)},
    }


@pytest.mark.parametrize("count", [1, 2, 4])
def test_methods_of_any_name_are_drawn_and_named(drawn, tmp_path, count):
    figures.draw([run_of(ODD, f"model_{i}$") for i in range(count)], tmp_path)
    legend = [text.get_text().replace("\\$", "$").strip() for text in drawn["binding-ttft"].legends[0].get_texts()]
    assert legend == [style.shortened(kind) for kind in dict.fromkeys(map(figures.family, ODD))]
    for figure in drawn.values():
        assert abs(figure.get_size_inches()[0] - style.WIDTH) < 1e-6


@pytest.mark.parametrize("layers", [0, 1, 40])
def test_runs_with_little_are_drawn(drawn, tmp_path, layers):
    """Without times, without a change of the KV, of one layer and of many."""
    run = run_of(("full", "blind"))
    run["ttft_s"] = {}
    run["scores"]["absorbed"] = {name: [[0.0] * 13 + [1.0]] * layers for name in ("components", "tokens")}
    figures.draw([run], tmp_path)
    for figure in drawn.values():
        check(figure)


def test_methods_of_other_packages_differ_from_each_other_and_from_those_built_in():
    others = [f"pack.age:method{i}" for i in range(20)]
    own = figures.styles([*others, "patch:4"])
    marks = {(colour, marker) for colour, marker in own.values()}
    assert len(marks) == 21
    built_in = {colour for colour, _ in figures.STYLES.values()} | {marker for _, marker in figures.STYLES.values()}
    assert not built_in & {each for name in others for each in own[name]}
    assert all(to_rgb(colour) for colour, _ in marks)


def test_a_label_without_room_is_left_out_and_none_covers_another(drawn, tmp_path):
    with style.drawing(tmp_path / "many.png", 2, width=2) as figure:
        axes = style.panels(figure, ["one"])[0][0]
        axes.plot([0, 1], [0, 1])
        figure.draw_without_rendering()
        style.label(axes, [(0.5 + i / 200, 0.5, f"label {i}") for i in range(20)])
    labels = drawn["many"].axes[0].texts
    assert 0 < len(labels) < 20
    boxes = [each.get_window_extent(drawn["many"].canvas.get_renderer()) for each in labels]
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_one_panel_has_no_letter_and_settings_do_not_leak(drawn, tmp_path):
    before = dict(matplotlib.rcParams)
    result = {
        "rows": [
            {"tokens": 2**i} | {f"{n}_ms": i + 1.0 for n in ("reprefill", "form", "encode", "apply")} for i in (8, 9)
        ]
    }
    console.plot_form(result, tmp_path / "form.png")
    assert dict(matplotlib.rcParams) == before
    assert not drawn["form"].axes[0].get_title(loc="left").startswith("(")
    check(drawn["form"])


def test_a_demo_of_a_method_without_a_style_is_drawn(drawn, tmp_path):
    result = json.loads((ROOT / "docs/results/demo-smollm2.json").read_text(encoding="utf-8"))
    result["methods"].append({**result["methods"][1], "name": "my_package.trailing:trailing:8"})
    demo_text.plot_text(result, tmp_path / "demo.png")
    assert "my_package.trailing:trailing:8" in "".join(text.get_text() for text in texts(drawn["demo"]))
