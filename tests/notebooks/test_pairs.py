"""Notebooks are pairs that agree, carry no outputs, and open with what a hosted runtime needs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

spec = importlib.util.spec_from_file_location("install", FOLDER / "install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def cells(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_every_notebook_has_its_script():
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.py")} - {"install"} != set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_pair_agrees_and_has_no_outputs(path):
    assert cells(path) == cells(path.with_suffix(".py"))
    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert not [cell.source for cell in code if cell.outputs or cell.execution_count]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_with_a_badge_of_its_own_and_the_setup_all_share(path):
    (_, badge), (_, setup) = cells(path)[:2]
    assert f"/notebooks/{path.name})" in badge and "colab-badge.svg" in badge
    assert setup == cells(NOTEBOOKS[0])[1][1]
    assert setup.index("install.py") < setup.index("import jax") and "jax.devices()" in setup


@pytest.mark.parametrize(
    ("installed", "kind", "wanted"),
    [
        ("0.7.2", "tpu", ["jax[tpu]>=0.10.2"]),
        ("0.10.1.dev3", "cuda12", ["jax[cuda12]>=0.10.2"]),
        (None, "cpu", ["jax>=0.10.2"]),
        ("0.10.2", "tpu", []),
        ("0.11.0", "cpu", []),
    ],
)
def test_jax_is_put_in_place_where_the_image_has_an_old_one(installed, kind, wanted):
    assert install.requirements(installed, kind) == wanted


def test_it_refuses_once_jax_is_imported(monkeypatch):
    monkeypatch.setitem(install.sys.modules, "jax", object())
    with pytest.raises(SystemExit, match="restart the runtime"):
        install.main()


def test_the_setup_is_done_once_whatever_is_run_again(tmp_path, monkeypatch):
    """Run twice, run after the runtime was restarted, and run after an installation that failed."""
    checkout = tmp_path / "content" / "kamera-jax"
    lines = cells(NOTEBOOKS[0])[1][1].partition("sys.path.insert")[0].replace("/content/kamera-jax", str(checkout))
    done = []

    def run(command, check):
        assert check
        done.append(command[0])
        if command[0] == "git":
            assert command[-1] == str(checkout)
            (checkout / "notebooks").mkdir(parents=True)
        elif fails:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("COLAB_RELEASE_TAG", "today")
    monkeypatch.setattr(subprocess, "run", run)
    start = tmp_path / "content"
    start.mkdir()
    monkeypatch.chdir(start)
    fails = True
    with pytest.raises(subprocess.CalledProcessError):
        exec(lines, {})
    fails = False
    exec(lines, {})
    exec(lines, {})
    assert Path.cwd() == checkout
    monkeypatch.chdir(start)
    exec(lines, {})
    assert Path.cwd() == checkout
    assert done == ["git", sys.executable, sys.executable]
