"""`kamera` as a process: pipes that close, streams that are closed, and Ctrl-C at any time."""

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress

from eval.commands import platforms as skipping
from eval.commands import streams
from eval.commands.command_line import parser
from eval.commands.help_text import wrapped
from kamera_jax.moved import HiddenPackageWarning, hidden, warn_of_hidden

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
WHERE = {"env": ENVIRONMENT, "cwd": ROOT}
KAMERA = (sys.executable, "-m", "eval.commands.main")


def test_a_reader_that_leaves_early_is_no_error():
    command = " ".join(KAMERA)
    for line in (f"{command} --print-completion bash | head -n 1", f"{command} --help | true"):
        done = subprocess.run(
            ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
            env=ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["bash", "-c", f"{command} library ls nowhere 2>&1 >&- | true; exit ${{PIPESTATUS[0]}}"],
        **WHERE,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")  # the error, which nobody read


def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*KAMERA, "--help"], **WHERE, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "kamera: standard output cannot be written: No space left on device\n"


LATER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
sys.argv[0] = "kamera"
import eval.commands.main as command
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = ["library", "ls", "nowhere"]
sys.exit(command.main())
"""


@pytest.mark.parametrize("module", ["eval.commands.command_line", "jax", "kamera_jax", "eval.commands.library"])
def test_an_interrupt_while_importing_says_one_line(module):
    code = LATER.format(module=module)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        **WHERE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")


def kamera(*arguments, cwd=ROOT, **environment):
    """The command in a process of its own."""
    env = {name: value for name, value in ENVIRONMENT.items() if environment.get(name, "") is not None}
    env |= {name: value for name, value in environment.items() if value is not None}
    return subprocess.run([*KAMERA, *arguments], env=env, cwd=cwd, capture_output=True, text=True)


def test_the_version_and_the_help_are_shown():
    version = kamera("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout == f"kamera {metadata.version('kamera-jax')}\n"
    for topic in ((), ("ask",), ("library", "ls")):
        shown = kamera("help", *topic)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout == kamera(*topic, "--help").stdout
    unknown = kamera("help", "answer")
    assert unknown.returncode == 2 and "invalid choice: 'answer'" in unknown.stderr
    none = kamera()
    assert (none.returncode, none.stdout) == (2, "") and none.stderr == kamera("--help").stdout


def parsers(top, name=()):
    yield name, top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, command in action.choices.items():
                yield from parsers(command, (*name, each))


def test_every_help_has_an_example_and_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in parsers(parser()):
        shown = command.format_help()
        assert max(map(len, shown.splitlines())) <= 80, name
        assert "example" in shown.lower(), name
        squeezed = "".join(shown.split())
        for action in command._actions:
            if action.help and not isinstance(action, argparse._SubParsersAction):
                whole = "".join((action.help % {**vars(action), "prog": command.prog}).split())
                assert whole in squeezed, (name, action.dest)
        for line in shown.splitlines():  # no word is cut at a hyphen
            assert not re.search(r"[a-z]-$", line), (name, line)


def test_words_stay_whole_and_long_lists_break_behind_commas():
    assert wrapped("a multi-head model", 12) == ["a multi-head", "model"]
    assert wrapped("of (default: aa,bb,cc,dd)", 12) == ["of (default:", "aa,bb,cc,dd)"]
    assert wrapped("see aa-aa,bb-bb,cc-cc", 12) == ["see aa-aa,", "bb-bb,cc-cc"]
    assert wrapped("", 12) == []


@pytest.mark.skipif(find_spec("libtpu") is None or skipping._may_have_tpu(), reason="no libtpu, or a TPU")
def test_libtpu_is_not_started_where_there_is_no_tpu():
    """Whether it writes anything depends on who else has it open: what JAX is to start is what counts."""
    code = "import sys; from eval.commands.main import main; sys.argv[1:] = ['library', 'ls', 'nowhere']; main(); "
    code += "import jax; print(jax.config.jax_platforms)"
    env = {name: value for name, value in ENVIRONMENT.items() if "TPU" not in name and name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() in ("cpu", "cuda,cpu")


@pytest.mark.parametrize(
    ("chosen", "settings", "devices", "plugins", "platforms"),
    [
        (None, {}, [], [], "cpu"),
        (None, {"TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": "libtpu.so"}, [], [], "cpu"),
        (None, {}, [], ["xla_cuda13"], "cuda,cpu"),
        (None, {}, [], ["xla_rocm7"], None),
        (None, {"TPU_WORKER_ID": "0"}, [], [], None),
        (None, {"CLOUD_TPU_TASK_ID": "0"}, [], [], None),
        (None, {"JAX_FORCE_TPU_INIT": "1"}, [], [], None),
        (None, {}, ["/dev/accel0"], [], None),
        (None, {}, ["/dev/vfio/0"], [], None),
        ("tpu,cpu", {}, [], [], "tpu,cpu"),  # as JAX sets it where it sees a TPU
        ("", {}, [], [], ""),
    ],
)
def test_where_devices_are_looked_for(monkeypatch, chosen, settings, devices, plugins, platforms):
    """Only where nothing says that there is a TPU, or what else is wanted."""
    asked = {"jax_platforms": chosen}
    monkeypatch.setattr("jax.config", SimpleNamespace(values=asked, update=asked.__setitem__))
    monkeypatch.setattr(skipping, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(skipping, "_plugins", lambda: plugins)
    monkeypatch.setattr(skipping, "glob", lambda pattern: [each for each in devices if fnmatch(each, pattern)])
    for name in [name for name in os.environ if "TPU" in name]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    skipping.skip_missing_tpu()
    assert asked["jax_platforms"] == platforms


@pytest.mark.parametrize("what", ["models.py", "kamera_jax.py"])
def test_a_file_that_hides_a_package_is_named(tmp_path, what):
    (tmp_path / what).write_text("x = 1\n", encoding="utf-8")
    arguments = ["ask", "what?", "--item", str(ROOT / "examples/pages/first.png")]
    first = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}"}
    code = f"import sys; sys.path.append({str(ROOT)!r}); from eval.commands.main import main; "
    code += f"sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=first, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / what) in done.stderr and "ename it" in done.stderr


def test_a_folder_without_modules_hides_a_package_that_an_editable_install_finds_last(tmp_path, monkeypatch):
    """Weights are often kept in a folder called models, beside the script that loads them."""
    (tmp_path / "models").mkdir()
    assert hidden(["models", "eval"]) == {}
    monkeypatch.delitem(sys.modules, "models")
    spec = ModuleSpec("models", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "models")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert hidden(["models", "no_such_package_here"]) == {"models": str(tmp_path / "models")}
    with pytest.warns(HiddenPackageWarning, match=r"models hides the package 'models' of kamera-jax.*Rename it"):
        warn_of_hidden(["models"])


@pytest.mark.parametrize("what", ["models.py", "eval.py"])
def test_an_import_of_the_operator_names_what_hides_the_other_packages(tmp_path, what):
    (tmp_path / what).write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text("import kamera_jax\nprint('goes on')\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert f"mine.py:1: HiddenPackageWarning: {tmp_path / what} hides the package" in done.stderr
    assert kamera("--version", PYTHONWARNINGS="error").stderr == ""


def test_a_script_that_hides_the_operator_is_named_by_the_models(tmp_path):
    (tmp_path / "kamera_jax.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text("from models import load\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"{tmp_path / 'kamera_jax.py'} hides the package 'kamera_jax'" in done.stderr


def test_quiet_keeps_progress_from_being_shown_and_gives_it_back():
    before = (Progress.start, Progress.stop)
    with streams.quiet(True):
        console = Console(file=io.StringIO(), force_terminal=True)
        with Progress(console=console) as bar:
            bar.add_task("work", total=2)
        assert console.file.getvalue() == ""
        with streams.quiet(False):
            assert Progress.start is not before[0]
    assert (Progress.start, Progress.stop) == before


def test_json_on_standard_output_stands_there_alone(tmp_path):
    done = kamera("library", "ls", str(tmp_path), "--json", "-")
    assert (done.returncode, done.stdout) == (1, "")
    done = kamera("eval", "--list", "--json", "-")
    assert done.returncode == 0 and {"tasks", "methods"} <= json.loads(done.stdout).keys()
