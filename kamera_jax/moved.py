"""Old import paths: each is a module that says where its names went when one of them is asked for."""

import importlib
import sys
import warnings
from collections.abc import Mapping
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
