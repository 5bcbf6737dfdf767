"""What the documentation's build does to docstrings, formulas, tables, drawings and notebooks; no browser is needed."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.site


def module(name):
    spec = importlib.util.spec_from_file_location(f"build_{name}", ROOT / ".ci" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("names", "description", "items"),
    [
        ("ValueError", "it is empty.", [("ValueError", "it is empty.")]),
        ("AError, BError", "gone.", [("AError", "gone."), ("BError", "gone.")]),
        ("(AError, BError)", "gone.", [("AError", "gone."), ("BError", "gone.")]),
        (
            "ValueError",
            "an item. WindowFullError: `capacity`. AError, OSError:\n    a chunk: lost.",
            [
                ("ValueError", "an item."),
                ("WindowFullError", "`capacity`."),
                ("AError", "a chunk: lost."),
                ("OSError", "a chunk: lost."),
            ],
        ),
        ("ValueError", "see `LibraryError`. It is so: yes.", [("ValueError", "see `LibraryError`. It is so: yes.")]),
    ],
)
def test_errors_are_separated(names, description, items):
    assert list(module("docstrings").separated(names, description)) == items


@pytest.fixture
def built():
    site = module("site")
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "docs/index.md")))
    return lambda html: site.on_page_content(html, page=page, config=None, files=None)


def test_formulas_become_mathml(built):
    inline = built(r'<p>so <span class="arithmatex">\(a &lt; b^2\)</span> is</p>')
    assert inline.startswith("<p>so <math") and "<msup>" in inline and "arithmatex" not in inline
    assert 'display="block"' in built('<div class="arithmatex">\\[\nU V^\\top\n\\]</div>')


def test_numbers_in_tables_are_not_broken(built):
    for cell in ("4.9e-08", "1.000 ± 0.000", "−473.9 to −1.9", "23.0%"):
        assert built(f"<td>{cell}</td>") == f'<td class="number">{cell}</td>'
    for cell in ("holds", "3 pages, 4 orders: a dependant first", "–", "0.822 (0.791–0.850) of 681"):
        assert built(f"<td>{cell}</td>") == f"<td>{cell}</td>"


def test_drawings_are_put_into_the_page(built):
    drawn = built('<p><img alt="the idea" src="figures/idea.svg" /></p>')
    assert drawn.startswith("<p><svg ") and "currentColor" in drawn and 'role="img"' in drawn
    assert built('<img alt="" src="figures/none.svg" />') == '<img alt="" src="figures/none.svg" />'


def test_a_notebook_is_a_page_with_its_outputs():
    from nbformat import v4

    cells = [
        v4.new_markdown_cell("[![badge](colab-badge.svg)](x)\n\n# Title\n\nSee `docs/window.md` and `agent.ipynb`."),
        v4.new_code_cell('if "COLAB_RELEASE_TAG" in os.environ:\n\n    pass'),
        v4.new_markdown_cell("## Pictures"),
        v4.new_code_cell(
            "plt.show()",
            outputs=[
                v4.new_output("stream", text="one\x1b[1m two\x1b[0m\nin /a/b/tmpa1b2c3d4/run\n"),
                v4.new_output("stream", name="stderr", text="a warning of someone's machine"),
                v4.new_output("display_data", data={"image/png": "aGVsbG8="}),
            ],
        ),
    ]
    pictures = {}
    text = module("site").page(v4.new_notebook(cells=cells), "tour", pictures)
    assert text.startswith("# Title\n\n*This is [notebooks/tour.ipynb]") and "badge" not in text
    assert "[`docs/window.md`](../window.md) and [`agent.ipynb`](agent.md)" in text
    assert '??? note "Setup"\n\n    ```python\n' in text
    assert pictures == {"tour-0.png": b"hello"}
    assert "one two\nin …/run\n```\n\n![Pictures](tour-0.png)" in text and "someone" not in text


@pytest.mark.parametrize("path", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda path: path.stem)
def test_what_the_api_names_can_be_imported_as_it_says(path):
    text = path.read_text(encoding="utf-8")
    said = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, said)
    for described in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        owner, _, name = described.rpartition(".")
        found = importlib.import_module(described) if name in ("errors", "planning") else None
        found = found or getattr(importlib.import_module(owner), name)
        if owner not in ("kamera_jax", "kamera_jax.patch", "kamera_jax.rope", "models", "pallas_kernels"):
            assert name in ("errors", "planning") or said[name] is found, described
