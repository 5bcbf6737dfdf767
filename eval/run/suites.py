"""Suites: the tables of a paper, each a run and the numbers that were published, in a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from models.media.files import read_text

FOLDER = Path(__file__).parents[1] / "suites"
"""The suites that come with this project."""

OF_THE_KL = ("recovered", "eta", "kl", "kv_error")
"""What a table may show beside the task's own scores: flipped answers that come back, η, KL, and error of the KV."""


class SuiteError(ValueError):
    """A file that is no suite, or has what a suite cannot have."""


@dataclass(frozen=True)
class Table:
    """A table: what is run, and what was published.

    Attributes:
        title: what the table is called.
        task: its name, with settings, without its data.
        measure: what is compared: a score of the task, or one of `OF_THE_KL`.
        methods: their names.
        seeds, limit: see `eval.run.runner.Run`.
        data: the folder of the task's files, below the one that the user names; None where it reads none.
        condition: the beginning of the conditions that count; all by default.
        published: by method the number, or its lowest and highest; none where the paper gives no such number.
        source: where the numbers stand, and of which model.
    """

    title: str
    task: str
    measure: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    limit: int | None
    data: str | None
    condition: str
    published: Mapping[str, tuple[float, float]]
    source: str


@dataclass(frozen=True)
class Suite:
    """Tables in the order that they are run in.

    Attributes:
        name: of the suite; a part of its folders.
        tables: at least one.
    """

    name: str
    tables: tuple[Table, ...]


def names() -> list[str]:
    """The suites that come with this project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(file: str | Path) -> Suite:
    """The suite of a file, or one of `names`.

    Raises:
        SuiteError: there is none, or it is not as docs/benchmarks.md shows.
    """
    path = Path(file)
    if not path.exists() and str(file) in names():
        path = FOLDER / f"{file}.yaml"
    if not path.is_file():
        near = get_close_matches(str(file), names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise SuiteError(f"there is no suite {str(file)!r}{hint} expected a YAML file, or one of {', '.join(names())}")
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SuiteError(f"{path} is no YAML: {error}") from error
    fields = _fields(content, {"name", "tables"}, str(path))
    tables = fields.get("tables")
    if not isinstance(tables, list) or not tables:
        raise SuiteError(f"{path}: tables is {tables!r}; expected a list of tables")
    made = tuple(_table(each, f"{path}, table {number}") for number, each in enumerate(tables, 1))
    titles = [table.title for table in made]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise SuiteError(f"{path} has two tables named {twice[0]!r}; give each a title of its own")
    return Suite(_text(fields, "name", str(path)), made)


KEYS = {"title", "task", "measure", "methods", "seeds", "limit", "data", "condition", "published", "source"}


def _table(value: Any, where: str) -> Table:
    fields = _fields(value, KEYS, where)
    published = fields.get("published", {})
    if not isinstance(published, dict):
        raise SuiteError(f"{where}: published is {published!r}; expected numbers by method, as in full: 0.74")
    methods = fields.get("methods", list(published))
    if not isinstance(methods, list) or not methods or not all(isinstance(each, str) for each in methods):
        raise SuiteError(f"{where}: methods is {methods!r}; expected a list of names")
    seeds = fields.get("seeds", [0])
    if not isinstance(seeds, list) or not all(type(each) is int for each in seeds):
        raise SuiteError(f"{where}: seeds is {seeds!r}; expected a list of whole numbers")
    limit = fields.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise SuiteError(f"{where}: limit is {limit!r}; expected a whole number of at least 1")
    return Table(
        title=_text(fields, "title", where),
        task=_text(fields, "task", where),
        measure=_text(fields, "measure", where),
        methods=tuple(dict.fromkeys(["full", "blind", *methods])),
        seeds=tuple(seeds),
        limit=limit,
        data=_text(fields, "data", where) if "data" in fields else None,
        condition=str(fields.get("condition", "")),
        published={str(name): _number(number, f"{where}: published {name}") for name, number in published.items()},
        source=_text(fields, "source", where),
    )


def _fields(value: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SuiteError(f"{where} is {value!r}; expected {', '.join(sorted(known))}")
    for name in value:
        if name not in known:
            near = get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise SuiteError(f"{where} has the unknown field {name!r}{hint} It may have {', '.join(sorted(known))}")
    return value


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise SuiteError(f"{where}: {name} is {value!r}; expected a text")
    return value


def _number(value: Any, where: str) -> tuple[float, float]:
    values: Sequence[Any] = value if isinstance(value, list) else [value, value]
    if len(values) != 2 or any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in values):
        raise SuiteError(f"{where} is {value!r}; expected a number, or the lowest and the highest, as in [0.96, 0.97]")
    return float(values[0]), float(values[1])
