"""The arguments of `kamera eval`: help, config, where runs go, and what is refused; no model is run here."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eval import descriptions, tasks
from eval.commands import eval_command, evaluate
from eval.commands.command_line import check, parser
from eval.commands.main import main
from eval.methods import names
from eval.run import config, runner
from kamera_jax.patch import SHARE

ROOT = Path(__file__).parents[3]


def options(*arguments):
    parsed = parser().parse_args(["eval", *map(str, arguments)])
    check(parsed)
    return parsed


def test_help_says_what_tasks_settings_and_methods_are_without_jax():
    code = (
        "import sys\nfrom eval.commands.main import main\n"
        "try:\n    main(['eval', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'numpy', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
        "import eval\nassert 'jax' not in sys.modules and set(eval.__all__) == {'evaluate', 'Result'}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for what in (*descriptions.TASKS.values(), *descriptions.SETTINGS.values()):
        assert what in words
    for method in descriptions.METHODS.values():
        assert method.form in shown and method.what in words
    usage = shown.partition("\n\n")[0]
    assert "kamera eval TASK [--model M] [--methods A,B,…] [--limit N] [--output DIR]" in usage
    assert "claims --model M --output DIR" in usage and "--rescore --output DIR" in usage


def test_every_task_setting_and_method_is_described():
    built_in = {task.name: task for task in tasks.BUILTIN}
    assert list(descriptions.TASKS) == list(built_in)
    assert set(descriptions.SETTINGS) == {name for task in built_in.values() for name in getattr(task, "settings", {})}
    kinds = {name.partition(":")[0] for name in descriptions.METHODS}
    assert kinds == {*names.FILLS, *names.REPAIRS, *names.CODECS}
    for method in descriptions.METHODS.values():
        names.parse(method.example)
        assert descriptions.method_of(method.example) is method
    assert f"patch:{SHARE:.0%}" in descriptions.METHODS["patch:default"].what
    assert descriptions.method_of("mine:Part") is None
    for name in ("report", "samples", "claims"):
        assert name in tasks.RESERVED


@pytest.mark.parametrize("place", range(3))
def test_options_stand_anywhere(place, tmp_path):
    words = ["report", "out/run", "out/other"]
    words[place:place] = ["--page", str(tmp_path / "page.md"), "--all"]
    parsed = options(*words)
    assert parsed.task == "report" and parsed.runs == [Path("out/run"), Path("out/other")] and parsed.all


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--limt", "3"], "there is no option --limt; did you mean --limit?"),
        (["--ouput=x"], "there is no option --ouput=x; did you mean --output?"),
        (["--zebra"], "unrecognized arguments: --zebra"),
        (["--seeds", "a"], "expected whole numbers, as in 0,1,2; got a"),
        (["--mesh", "model"], "expected axes and their sizes, as in model=2,fsdp=4; got 'model'"),
        (["--mesh", "model=0"], "expected axes and their sizes, as in model=2,fsdp=4; got 'model=0'"),
        (["--mesh", "model=2,"], "expected axes and their sizes, as in model=2,fsdp=4; got 'model=2,'"),
        (["--mesh", "model=2,model=2"], "expected each axis once; got 'model=2,model=2', with model twice"),
    ],
)
def test_an_option_that_there_is_not_is_named_with_the_nearest(given, message, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["eval", "binding", *given])
    assert message in capsys.readouterr().err


CONFIG = """
task = "quotation:tokens=64"   # a comment
model = "smollm2"
methods = ["full", "blind", "patch:1"]
seeds = [0, 1]
limit = 2
repeats = 0
output = "out/here"
"""


def test_a_config_has_the_options_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text(CONFIG)
    parsed = options("--config", file)
    assert (parsed.task, parsed.model, parsed.methods) == ("quotation:tokens=64", "smollm2", "full,blind,patch:1")
    assert (parsed.seeds, parsed.limit, parsed.repeats, parsed.output) == ((0, 1), 2, 0, Path("out/here"))
    assert (parsed.batch, parsed.capacity, parsed.devices) == (10, None, None)
    parsed = options("induction", "--config", file, "--limit", 5, "--methods", "patch:4", "--seeds", 3)
    assert (parsed.task, parsed.limit, parsed.methods, parsed.seeds) == ("induction", 5, "patch:4", (3,))
    assert (parsed.model, parsed.repeats) == ("smollm2", 0)
    file.write_text('methods = "full,blind"\nseeds = "4,5"')
    parsed = options("binding", "--config", file)
    assert (parsed.methods, parsed.seeds, parsed.model) == ("full,blind", (4, 5), "kamera-tiny-gqa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits = 3", "there is no option 'limits'; did you mean limit? It may have task, model, methods, seeds"),
        ("Model = 'x'", "there is no option 'Model'; did you mean model?"),
        ("[run]\nlimit = 3", "there is no option 'run'"),
        ("limit = '3'", "limit = '3'; expected a whole number of at least 1"),
        ("limit = 0", "limit = 0; expected a whole number of at least 1"),
        ("repeats = -1", "repeats = -1; expected a whole number of at least 0"),
        ("batch = true", "batch = True; expected a whole number of at least 1"),
        ("devices = 1.5", "devices = 1.5; expected a whole number"),
        ("mesh = 2", "mesh = 2; expected axes and their sizes"),
        ("mesh = 'model=x'", "mesh = 'model=x'; expected axes and their sizes, as in \"model=2,fsdp=4\""),
        ("model = 3", "model = 3; expected a text"),
        ("task = ''", "task = ''; expected a text"),
        ("methods = [1]", 'methods = [1]; expected a list of texts, as in ["full", "blind"]'),
        ("methods = []", "methods = []; expected a list of texts"),
        ("seeds = ['a']", "seeds = ['a']; expected a list of whole numbers, as in [0, 1, 2]"),
        ("seeds = 'a'", "seeds = 'a'; expected a list of whole numbers"),
        ("limit = ", "is not TOML: "),
        (None, "there is no such file"),
    ],
)
def test_what_a_config_cannot_have_is_said(text, message, tmp_path, capsys):
    file = tmp_path / "run.toml"
    if text is not None:
        file.write_text(text)
    assert main(["eval", "binding", "--config", str(file), "--output", str(tmp_path / "run")]) == 1
    assert f"kamera: --config {file}" in (shown := capsys.readouterr().err) and message in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [b"\xff", None])
def test_a_config_that_cannot_be_read_is_said(text, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.mkdir() if text is None else file.write_bytes(text)
    assert main(["eval", "binding", "--config", str(file)]) == 1
    assert f"--config {file}: it cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"limit": 4, "capacity": 300, "devices": 2, "repeats": 0, "seeds": (7,)},
        {"mesh": "model=2,fsdp=4"},
        {"task": 'odd:Nam\\e"\n', "model": "models/ü \x7f", "methods": ("a:b", "c+d:0.5")},
    ],
)
def test_what_a_folder_records_can_be_given_back(given, tmp_path):
    run = runner.Run(**({"task": "binding", "model": "m", "methods": ("patch:4", "patch:10%")} | given))
    config.write(tmp_path, run, {"jax": "0.0"})
    parsed = options("--config", tmp_path / "run.toml")
    for name in ("task", "model", "seeds", "limit", "capacity", "batch", "devices", "mesh", "repeats"):
        assert getattr(parsed, name) == getattr(run, name), name
    assert tuple(parsed.methods.split(",")) == run.methods
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    assert "# Run with jax 0.0." in text and set(tomllib.loads(text)) <= set(eval_command.KINDS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["binding", "--mesh", "tensor=1"], "--mesh tensor=1: nothing is split over tensor; parameters are split over"),
        (["binding", "--mesh", "model=512"], "--mesh model=512 takes 512 devices; there are "),
        (["binding", "--mesh", "model=1", "--devices", "1"], "give the one or the other"),
        (["claims", "--mesh", "model=1"], "--mesh goes with a run of one task"),
    ],
)
def test_a_mesh_that_cannot_be_is_said_before_anything_is_written(given, message, tmp_path, capsys):
    assert main(["eval", *given, "--output", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_without_a_folder_has_one_of_its_own():
    identity = {
        "config": {"task": "slide:tokens=64,passages=8", "model": "some/where/a model"},
        "versions": {"jax": "1"},
    }
    folder = evaluate.default_folder(identity)
    assert folder.parent == Path("out") and folder.name.startswith("slide-a-model-")
    assert evaluate.default_folder(json.loads(json.dumps(identity))) == folder
    other = {**identity, "versions": {"jax": "2"}}
    assert evaluate.default_folder(other) != folder
    outside = {"config": {"task": "../x:Mine", "model": ".."}, "versions": {}}
    assert evaluate.default_folder(outside).parts[:1] == ("out",) and len(evaluate.default_folder(outside).parts) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a task, report, samples, claims, suite or leaderboard"),
        (["report"], "give the folders of the runs"),
        (["samples"], "give the folder of one run"),
        (["samples", "a", "b"], "give the folder of one run"),
        (["binding", "--rescore"], "give its folder: --output DIR"),
        (["binding", "out/run"], "folders, --figures, --page and --all go with a report"),
        (["binding", "--wrong"], "--wrong with kamera eval samples DIR"),
        (["my_task:Mine"], "there is no module my_task; install its package, run the command from the folder"),
        (["tasks/my_task.py:Mine"], "is written as a file; expected module:Name"),
        (["tasks/my_task.py:Mine"], "write it tasks.my_task:Mine"),
        (["binding", "--methods", "lib/part.py:Part:8"], "write it lib.part:Part"),
    ],
)
def test_what_cannot_be_run_is_said(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["eval", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_run_is_no_task(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("{}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["eval", str(tmp_path)]) == 1
    assert f"to see it: kamera eval report {tmp_path}" in capsys.readouterr().err


def test_modules_are_found_in_the_current_folder_behind_all_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    (tmp_path / "found_here.py").write_text("part = 3\n")
    (tmp_path / "json.py").write_text("1 / 0\n")
    with pytest.raises(tasks.PluginError, match="no module found_here; .*it runs in"):
        tasks.plugins.imported("found_here:part", "it")
    tasks.plugins.look_here()
    tasks.plugins.look_here()
    assert sys.path[-1] == str(tmp_path.resolve()) and sys.path.count(sys.path[-1]) == 1
    assert tasks.plugins.imported("found_here:part", "it") == 3
    with pytest.raises(tasks.PluginError, match=r"found_here \(.*found_here.py\) has no 'prt'; did you mean part"):
        tasks.plugins.imported("found_here:prt", "it")
    with pytest.raises(tasks.PluginError, match="did you mean found_here, which is there"):
        tasks.plugins.imported("found_her:part", "it")
    monkeypatch.delitem(sys.modules, "found_here")
