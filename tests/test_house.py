"""The rules of the house that no linter holds."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import kamera_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pallas_kernels", "kamera_jax", "models", "eval")
BESIDE = ("tests", "benchmarks", "notebooks", "docs", "examples", ".ci")
TEXT = {"", ".py", ".md", ".toml", ".json", ".jinja", ".ipynb", ".yml", ".yaml", ".sh"}
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|tmp|mnt)/[\w.]")

SHIPPED = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
KERNELS = [path for path in SHIPPED if path.is_relative_to(ROOT / "pallas_kernels")]
FILES = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"] + [
    path
    for folder in PACKAGES + BESIDE
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]


def imports(path):
    """Every imported module as (level, dotted name), wherever in the file it is imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()
    assert (ROOT / package / "__init__.py").is_file()


def test_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert kamera_jax.__version__ == project["version"]


def test_imports_are_absolute():
    assert not [str(path) for path in SHIPPED for level, _ in imports(path) if level]


def test_kernels_import_only_jax():
    allowed = {"jax", "pallas_kernels"} | sys.stdlib_module_names
    assert {name.split(".")[0] for path in KERNELS for _, name in imports(path)} <= allowed


def test_no_file_names_a_machine_path():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in FILES
        if path.suffix in TEXT
        for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not found


def test_files_stay_short():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in FILES if path.suffix == ".py"}
    assert not {str(path): length for path, length in lengths.items() if length > 400}


def test_functions_stay_short():
    """At most 90 lines; 120 in kernels, where one stage needs the arrays of the one before."""
    found = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= (120 if path in KERNELS else 90)
    }
    assert not found


def unrelated_pairs(tree):
    """Lines that assign a tuple to a tuple where one assignment a line says the same."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        if not isinstance(target, ast.Tuple) or not isinstance(node.value, ast.Tuple):
            continue
        names = [ast.unparse(each) for each in target.elts]
        values = [{ast.unparse(part) for part in ast.walk(each)} for each in node.value.elts]
        swapped = any(name in value for i, name in enumerate(names) for j, value in enumerate(values) if i != j)
        starred = any(isinstance(each, ast.Starred) for each in (*target.elts, *node.value.elts))
        if not swapped and not starred:
            yield node.lineno


@pytest.mark.parametrize(
    ("code", "unrelated"),
    [
        ("a, b = 1, 2", True),
        ("self.a, b = x, y", True),
        ("a, b = b, a", False),
        ("a, b = b, a + b", False),
        ("a, b = x.shape", False),
        ("a, *b = 1, 2, 3", False),
    ],
)
def test_the_rule_of_one_assignment_a_line(code, unrelated):
    assert bool(list(unrelated_pairs(ast.parse(code)))) is unrelated


def test_one_assignment_a_line():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        if path.suffix == ".py"
        for line in unrelated_pairs(ast.parse(path.read_text()))
    ]
    assert not found, "write one assignment a line; only what is exchanged is assigned together"
