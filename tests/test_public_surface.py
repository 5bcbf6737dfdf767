"""The public surface is what the design writes down: its calls can be made, its names are exported and documented."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import kamera_jax as kj
import models
import pallas_kernels
from kamera_jax.backbone import Backbone, Output

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs/design.md").read_text()
(SURFACE,) = re.findall(r"## The public surface.*?```python\n(.*?)```", DESIGN, re.DOTALL)
OBJECTS = {"kj": kj, "load": models.load, "s": kj.Session, "lib": kj.ChunkLibrary, "policy": kj.ReusePolicy}
"""What the names stand for that the design's lines begin with; methods are looked up on the class."""

NOT_YET: set[str] = set()
"""What later work brings; the line moves up when it does."""


def statements():
    """What the design shows, statement by statement: without comments, results and what is left out."""
    for line in SURFACE.splitlines():
        for statement in re.split(r";\s+", line.partition("#")[0].strip()):
            statement = re.sub(r"\s*->.*", "", statement).replace("(…, ", "(").replace("…", "...").replace(": KV", "")
            # `dtype=` names an argument without a value.
            yield re.sub(r"(\w+)=(?=[,)])", r"\1=None", statement)


def called(path):
    """The function of a dotted name, and how many arguments stand before those written: self."""
    found = OBJECTS[path[0]]
    owner = None
    for name in path[1:]:
        owner, found = found, getattr(found, name)
    static = inspect.isclass(owner) and isinstance(inspect.getattr_static(owner, path[-1]), (classmethod, staticmethod))
    return found, int(inspect.isclass(owner) and not static)


CALLS = [
    node
    for statement in statements()
    if statement
    for node in ast.walk(ast.parse(statement))
    if isinstance(node, ast.Call) and "(" not in ast.unparse(node.func)
    if ast.unparse(node.func).split(".")[0] in OBJECTS
]


@pytest.mark.parametrize("node", CALLS, ids=lambda node: ast.unparse(node.func))
def test_what_the_design_calls_can_be_called_like_that(node):
    if ast.unparse(node.func).removeprefix("kj.") in NOT_YET:
        return
    function, before = called(ast.unparse(node.func).split("."))
    given = {word.arg: None for word in node.keywords}
    if ast.unparse(node.func) == "load" and not node.args:  # `load(…, dtype=, mesh=)`: the name is left out there
        given["name"] = None
    inspect.signature(function).bind(*[None] * (before + len(node.args)), **given)


def test_the_design_calls_most_of_what_there_is():
    assert len(CALLS) >= 50
    named = {ast.unparse(node.func).removeprefix("kj.").partition(".")[0] for node in CALLS}
    functions = {name for name in kj.__all__ if inspect.isfunction(getattr(kj, name))}
    assert functions - {"calibrate", "staleness"} <= named


def test_every_exported_name_is_there_and_documented():
    for package in (kj, pallas_kernels):
        assert sorted(package.__all__) == sorted(set(package.__all__))
        for name in package.__all__:
            value = getattr(package, name)
            # A dataclass without a docstring is given its signature for one.
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def test_what_is_exported_cannot_be_changed():
    kinds = [getattr(kj, name) for name in kj.__all__]
    for kind in (*(kind for kind in kinds if dataclasses.is_dataclass(kind)), Output):
        assert kind.__dataclass_params__.frozen, kind


def test_whatever_has_the_members_is_a_backbone():
    class Bare:
        spec = params = fingerprint = preamble = eos = None

        def prepare(self, item): ...
        def tail(self, text): ...
        def decode(self, tokens): ...
        def forward(self, params, segment, state, *, logits_at=None, collect=()): ...

    assert isinstance(Bare(), Backbone)
    del Bare.tail
    assert not isinstance(Bare(), Backbone)


def test_what_is_not_built_is_not_offered():
    assert not [name for name in NOT_YET if hasattr(kj, name)]


def test_the_api_pages_have_every_public_name():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    documented = {part for path in re.findall(r"::: kamera_jax\.([\w.]+)", pages) for part in path.split(".")}
    assert set(kj.__all__) - documented == set()
