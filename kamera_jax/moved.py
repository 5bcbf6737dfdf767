"""Import paths: old ones, each a module that says where its names went, and names that others hide.

The project's packages have short names, such as `models`: a user's own ``models.py``, or a folder of that name beside a
script, comes before them.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class Moved(ModuleType):
    """Stands in ``sys.modules`` under an old name; it imports nothing until then."""

    def __init__(self, old: str, new: str) -> None:
        """Give the names of the module ``new`` under the name ``old``."""
        super().__init__(old, f"Moved to `{new}`.")
        self.__dict__["_new"] = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks every module for
            raise AttributeError(name)
        new = self.__dict__["_new"]
        value = getattr(importlib.import_module(new), name)
        warnings.warn(
            f"{self.__name__} is now {new}; the old path goes with the next version", DeprecationWarning, stacklevel=2
        )
        return value


def moved(package: str, paths: Mapping[str, str]) -> None:
    """Keep old import paths of a package for one version.

    Args:
        package: its name.
        paths: old module names within it, and the new ones, with their package.
    """
    for old, new in paths.items():
        sys.modules.setdefault(f"{package}.{old}", Moved(f"{package}.{old}", new))

    def attribute(name: str) -> Any:
        if name in paths:  # `package.old`, as after an import of the package alone
            return sys.modules[f"{package}.{name}"]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    vars(sys.modules[package]).setdefault("__getattr__", attribute)


class HiddenPackageWarning(UserWarning):
    """A package of this project cannot be imported: a file or folder of the same name comes before it."""


def hidden(packages: Iterable[str]) -> dict[str, str]:
    """The packages that stand beside this one, but that an import of their names does not give.

    Args:
        packages: their names.

    Returns:
        What is imported in the place of each, by the package's name: a path.
    """
    beside = Path(__file__).resolve().parents[1]
    found: dict[str, str] = {}
    for name in packages:
        own = beside / name / "__init__.py"
        other = _imported(name)
        if own.is_file() and other is not None and os.path.realpath(other) not in (str(own), str(own.parent)):
            found[name] = other
    return found


def warn_of_hidden(packages: Iterable[str]) -> None:
    """Warn of packages that are hidden; see `hidden`."""
    for name, other in hidden(packages).items():
        warnings.warn(describe_hidden(name, other), HiddenPackageWarning, stacklevel=3)


def describe_hidden(name: str, other: str) -> str:
    """A message that a package is hidden, and what to do."""
    return (
        f"{other} hides the package {name!r} of kamera-jax, which cannot be imported: `import {name}` gives that one. "
        "Rename it, or run Python from another folder; if you do not use this package, ignore "
        "kamera_jax.moved.HiddenPackageWarning"
    )


def _imported(name: str) -> str | None:
    """The path of what an import of a name gives; None for nothing."""
    module = sys.modules.get(name)
    try:
        spec = importlib.util.find_spec(name) if module is None else None
    except (ImportError, ValueError):  # a package that is half there
        return None
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if origin is not None:
        return origin
    places = getattr(module, "__path__", None) or getattr(spec, "submodule_search_locations", None) or ()
    return next(iter(places), None)  # a folder without __init__.py
