"""Tasks and methods from other packages: as ``module:name``, or by an entry point of an installed package."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How an object of a module is written: ``package.module:Name``."""


FILE = re.compile(r"(?P<path>[^:]+)\.py:(?P<name>[A-Za-z_]\w*)(?P<rest>:.*)?")
"""How users may write an object of a file, which is not how it is written: ``folder/file.py:Name``."""


class PluginError(ValueError):
    """Something from another package that cannot be found, imported or told apart from something else."""


@dataclass(frozen=True)
class Group:
    """What can be added from other packages under one entry-point group.

    Attributes:
        kind: what its members are, in a word, for messages.
        name: the entry-point group.
        builtin: names that no package may take.
    """

    kind: str
    name: str
    builtin: Collection[str]

    def declared(self) -> dict[str, list[EntryPoint]]:
        """The entry points of installed packages by name; a name should have one."""
        by_name: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=self.name):
            by_name.setdefault(point.name, {}).setdefault(point.value, point)
        return {name: list(points.values()) for name, points in sorted(by_name.items())}

    def problem(self, name: str, points: Collection[EntryPoint]) -> str:
        """Why a name that is declared by these entry points cannot be used; empty if it can."""
        packages = " and ".join(f"{point.value} of {_package(point)}" for point in points)
        if points and name in self.builtin:
            return (
                f"the {self.kind} {name!r} is built in, and the entry point {packages} takes the same name; give the "
                "entry point another name, or uninstall the package"
            )
        if len(points) > 1:
            return (
                f"the {self.kind} {name!r} is declared by several entry points, {packages}; uninstall one of the "
                "packages, or write the one you mean as module:name"
            )
        return ""

    def find(self, name: str) -> Any | None:
        """The object of that name: of a module, or of an entry point. None if the name is neither.

        Raises:
            PluginError: the name is not one entry point's alone, or its object cannot be imported.
        """
        points = self.declared().get(name, [])
        if problem := self.problem(name, points):
            raise PluginError(problem)
        if points:
            return imported(points[0].value, f"the {self.kind} {name!r} of {_package(points[0])}")
        if written := FILE.fullmatch(name):
            module = re.sub(r"[\\/]+", ".", os.path.relpath(written["path"]))
            how = f"; write it {module}:{written['name']}{written['rest'] or ''}" if module[0] != "." else ""
            raise PluginError(
                f"the {self.kind} {name!r} is written as a file; expected module:Name, the module found from the "
                f"current folder or on Python's path{how}"
            )
        return imported(name, f"the {self.kind} {name!r}") if REFERENCE.fullmatch(name) else None


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name


def look_here() -> None:
    """Let modules be found in the current folder too, behind all that is installed.

    Python itself does that for scripts and ``python -m``, and not for installed commands such as `kamera`.
    """
    here = os.path.realpath(os.curdir)
    if "" not in sys.path and here not in map(os.path.realpath, sys.path):
        sys.path.append(here)
        importlib.invalidate_caches()


def _missing_module(module: str, missing: str) -> str:
    """Why a module is not found, and what to do."""
    top = missing.partition(".")[0]
    here = os.path.realpath(os.curdir)
    files = sorted(os.listdir(here)) if os.path.isdir(here) else []
    known = [
        each.removesuffix(".py") for each in files if each[0] not in "._" and (each.endswith(".py") or "." not in each)
    ]
    near = get_close_matches(top, known, n=1) if top == missing and top not in known else []
    hint = f" (did you mean {near[0]}, which is there?)" if near else ""
    return (
        f"needs the module {module}, and there is no module {missing}; install its package, run the command from the "
        f"folder that has {top}.py or the folder {top} (it runs in {here} now{hint}), or name that folder in "
        "PYTHONPATH: export PYTHONPATH=FOLDER"
    )


def imported(reference: str, what: str) -> Any:
    """The object that ``module:name`` refers to.

    Args:
        reference: the module's dotted name, a colon, and a name in it, which may be dotted.
        what: what it is wanted for, for the message.

    Raises:
        PluginError: there is no such module, it fails while it is imported, or it has no such name.
    """
    module_name, _, path = reference.partition(":")
    if not path:
        raise PluginError(f"{what} is declared as {reference!r}; expected module:name")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise PluginError(f"{what} {_missing_module(module_name, error.name)}") from error
        raise PluginError(f"{what} cannot be imported: {module_name} needs {error.name}, which is missing") from error
    except Exception as error:
        raise PluginError(
            f"{what} cannot be imported: {module_name} fails with {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(value, name):
            near = get_close_matches(name, [each for each in dir(value) if not each.startswith("_")], n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            file = getattr(sys.modules.get(module_name), "__file__", None)
            where = f" ({file})" if file else ""
            raise PluginError(f"{what}: {module_name}{where} has no {path!r}{hint}")
        value = getattr(value, name)
    return value


def constructed(value: Any, what: str, *arguments: str) -> Any:
    """An instance of a class, or what a function returns; any other object as it is.

    Args:
        value: what was imported.
        what: what it is wanted for, for the message.
        arguments: texts to call it with.

    Raises:
        PluginError: the call fails, or there are arguments for what cannot be called.
    """
    if not isinstance(value, type) and not inspect.isroutine(value):
        if arguments:
            raise PluginError(f"{what} takes no number, as it is neither a class nor a function; got {arguments[0]!r}")
        return value
    try:
        return value(*arguments)
    except Exception as error:
        given = f" with {arguments[0]!r}" if arguments else " without arguments"
        raise PluginError(f"{what} cannot be made{given}: {type(error).__name__}: {error}") from error
