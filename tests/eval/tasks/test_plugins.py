"""Tasks and methods of other packages: found by module and by entry point, and refused with the reason."""

import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest

from eval import tasks
from eval.commands.main import main
from eval.methods import Method, names, parse, parse_all
from eval.tasks import base, plugins

TASK = """
    class Whole:
        name = "whole"
        version = 1
        contexts = 2
        max_new_tokens = 1
        def outline(self, seeds, limit): return []
        def draw(self, outline): raise NotImplementedError
        def score(self, question, said): return {"accuracy": 1.0}
        def findings(self, scores): return []

    class Partial:
        name = "partial"
        version = 1
        def draw(self, outline): raise NotImplementedError

    class Wrong(Whole):
        max_new_tokens = 0

    class Unnamed(Whole):
        name = ""

    class Needy(Whole):
        def __init__(self, path): self.path = path

    from eval.tasks import Task
    class Empty(Task):
        name = "empty"
        version = contexts = max_new_tokens = 1
        def outline(self, seeds, limit): return []
        def draw(self, outline): raise NotImplementedError

    whole = Whole()

    def made():
        return Whole()

    class Part:
        def __init__(self, number="0"): self.number = int(number)
        def prepare(self, batch): return None
        def apply(self, batch, windows, prepared): return windows
        def cost(self, batch, prepared): raise NotImplementedError

    part = Part()

    class Unfinished:
        def apply(self, batch, windows, prepared): return windows
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package on the path, and no entry points but those that a test declares."""
    folder = tmp_path / "outside_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "module.py").write_text(textwrap.dedent(TASK))
    (folder / "needs.py").write_text("import a_module_that_is_not_installed\n")
    (folder / "broken.py").write_text("def broken(:\n")
    (folder / "failing.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside_package"]:
        del sys.modules[name]


@pytest.fixture
def declare(monkeypatch):
    def declare(group, *points):
        found = [EntryPoint(name, value, group) for name, value in points]
        monkeypatch.setattr(plugins, "entry_points", lambda group: [each for each in found if each.group == group])

    return declare


@pytest.mark.parametrize("name", ["Whole", "whole", "made"])
def test_a_task_is_a_class_an_object_or_a_function(name):
    assert tasks.get(f"outside_package.module:{name}").name == "whole"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_package.module:Whole", "no module no_package; install its package"),
        ("outside_package.modul:Whole", "no module outside_package.modul;"),
        ("outside_package.needs:Whole", "needs a_module_that_is_not_installed, which is missing"),
        ("outside_package.broken:Whole", "fails with SyntaxError"),
        ("outside_package.failing:Whole", "fails with ZeroDivisionError: division by zero"),
        ("outside_package.module:Whol", "has no 'Whol'; did you mean Whole"),
        ("outside_package.module:Partial", "lacks contexts, max_new_tokens, outline, score, findings;"),
        ("outside_package.module:Empty", "lacks score, findings;"),
        ("outside_package.module:Wrong", "max_new_tokens .* at least 1; got 0"),
        ("outside_package.module:Unnamed", "name .* must be a text; got ''"),
        ("outside_package.module:Needy", "cannot be made without arguments: TypeError"),
        ("outside_package.module:part", "of type Part, and no task"),
        ("json:decoder", "is the module json.decoder, and no task"),
        ("report", "no task 'report'"),
        ("outside_package/module.py:Whole", "expected module:Name, .*; write it outside_package.module:Whole"),
        ("bindin", "did you mean binding"),
    ],
)
def test_what_is_no_task_is_refused_with_the_reason(name, message):
    with pytest.raises(ValueError, match=message):
        tasks.get(name)


def test_a_task_has_a_name_by_an_entry_point(declare):
    declare("kamera_jax.tasks", ("colours", "outside_package.module:Whole"))
    assert tasks.get("colours").name == "whole"
    assert tasks.get("binding").name == "binding"
    with pytest.raises(tasks.UnknownTaskError, match="did you mean colours"):
        tasks.get("colour")


def test_one_name_of_two_packages_is_refused(declare):
    declare("kamera_jax.tasks", ("colours", "outside_package.module:Whole"), ("colours", "another.module:Task"))
    with pytest.raises(tasks.PluginError, match="several entry points, outside_package.module:Whole.*another.module"):
        tasks.get("colours")


@pytest.mark.parametrize("name", ["binding", "report", "samples", "claims"])
def test_a_task_with_a_built_in_name_is_refused(declare, name):
    declare("kamera_jax.tasks", (name, "outside_package.module:Whole"))
    with pytest.raises(tasks.PluginError, match=f"{name}' is built in.*outside_package.module:Whole"):
        tasks.get(name)


def test_an_entry_point_that_names_no_object_is_refused(declare):
    declare("kamera_jax.tasks", ("colours", "outside_package.module"))
    with pytest.raises(tasks.PluginError, match="expected module:name"):
        tasks.get("colours")


def test_a_method_is_a_part_of_a_module_with_or_without_a_number():
    (part,) = parse("outside_package.module:Part:7").parts
    assert part.number == 7
    blind, own = parse("blind+outside_package.module:Part").parts
    assert own.number == 0
    (same,) = parse("outside_package.module:part").parts
    assert same.number == 0
    assert [method.name for method in parse_all(["outside_package.module:part"])][-1] == "outside_package.module:part"
    assert isinstance(parse("outside_package.module:Part"), Method)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_package:Part", "no module no_package"),
        ("outside_package.module:Unfinished", "Unfinished, and no method: it lacks prepare, cost"),
        ("outside_package.module:part:3", "takes no number"),
        ("outside_package.module:Part:x", "cannot be made with 'x': ValueError"),
        ("outside_package.module:Whole", "no method: it lacks prepare, apply, cost"),
        ("epik:4", "did you mean epic"),
    ],
)
def test_what_is_no_method_is_refused_with_the_reason(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_a_method_has_a_name_by_an_entry_point(declare):
    declare("kamera_jax.methods", ("mine", "outside_package.module:Part"), ("epic", "outside_package.module:Part"))
    (part,) = parse("mine:4").parts
    assert part.number == 4
    with pytest.raises(ValueError, match="'epic' is built in"):
        parse("epic:4")
    with pytest.raises(names.UnknownMethodError, match="did you mean mine"):
        parse("minne:4")


def test_everything_is_listed_with_what_cannot_be_used(declare, capsys, tmp_path):
    declare(
        "kamera_jax.tasks", ("colours", "outside_package.module:Whole"), ("binding", "outside_package.module:Whole")
    )
    assert main(["eval", "--list", "--json", str(tmp_path / "list.json")]) == 0
    shown = capsys.readouterr().out
    assert "outside_package.module:Whole" in shown and "cacheblend:0.15" in shown
    assert "binding cannot be used: the task 'binding' is built in" in shown
    assert "slide: A window of four passages that slides over a text" in shown
    assert "epic:K: runs the first K tokens of each chunk (arXiv 2410.15332). As in epic:16." in " ".join(shown.split())
    assert "Settings: corpus=, tokens=, ahead=." in shown and max(map(len, shown.splitlines()[:40])) <= 80
    assert (tmp_path / "list.json").stat().st_size > 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected at least one number"),
        (0.5, "expected at least one number"),
        ({"f1": float("nan")}, "f1 = nan; expected a finite number"),
        ({"f1": "high"}, "f1 = 'high'"),
        ({"f1": None}, "f1 = None"),
        ({"kl": 1.0}, "under the name 'kl'"),
        ({"exact": 1.0}, "with exact, and answers before with f1"),
    ],
)
def test_scores_that_cannot_be_averaged_are_refused(given, message):
    task = tasks.get("outside_package.module:Whole")
    task.score = lambda question, said: given
    before = ["f1"] if "exact" in str(given) else None
    with pytest.raises(tasks.InvalidTaskError, match=message):
        base.checked_scores(task, base.Question("?", ["red"]), "", before)
