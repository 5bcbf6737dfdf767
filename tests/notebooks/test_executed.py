"""The notebooks run from the first cell to the last, and every cell that draws shows what it drew.

Each is executed once; the copy with its outputs, in build/notebooks, is what the documentation shows.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "build" / "notebooks"

DRAWS = re.compile(r"\b(?:plt\.(?:show|figure|subplots|plot)|imshow|display)\(")
"""Calls whose cell has to show a picture."""

pytestmark = pytest.mark.notebooks


def without_picture(notebook):
    """The cells that draw and have no picture among their outputs."""
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code"
        and DRAWS.search(cell.source)
        and not any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_draws(path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # What rich and tqdm say where there are no widgets to show progress with; nobody looks on.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:install:UserWarning,ignore:IProgress")

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, EXECUTED / path.name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum(bool(DRAWS.search(cell.source)) for cell in code) or path.stem == "library"
    assert not without_picture(notebook)
    assert not [
        output.text
        for cell in code
        for output in cell.outputs
        if output.get("name") == "stderr" and "Error" in output.text
    ]


def test_a_cell_that_draws_nothing_is_found():
    from nbformat import v4

    printed = v4.new_output("stream", text="done")
    drawn = v4.new_output("display_data", data={"image/png": "…"})
    cells = [
        v4.new_code_cell("plt.plot(x)\nplt.show()", outputs=[printed]),
        v4.new_code_cell("plt.plot(x)\nplt.show()", outputs=[printed, drawn]),
        v4.new_code_cell("print(x)", outputs=[printed]),
    ]
    assert without_picture(v4.new_notebook(cells=cells)) == ["plt.plot(x)\nplt.show()"]
