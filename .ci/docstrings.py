"""A Griffe extension for the API's pages: each error that a docstring names is an item of its own; no name is private.

A docstring may put several on one line, `LockedError, OSError: why`, or one after another, `LockedError: why.
OSError: why`.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

NEXT_ERROR = re.compile(r"(?<=[.;])\s+(?=[A-Z]\w*(?:Error|Exception|Warning)(?:, [A-Z]\w*)*:\s)")
"""Where the description of one error ends and the name of another begins."""


def separated(names: str, description: str) -> Iterator[tuple[str, str]]:
    """The name and the description of each error in one entry of a docstring's section `Raises`."""
    first, *others = NEXT_ERROR.split(description)
    for entry in (f"{names}: {first}", *others):
        these, why = re.split(r":\s", entry, maxsplit=1)
        for name in these.strip("()").split(", "):  # Griffe reads several names as a tuple
            yield name, why.strip()


class Docstrings(griffe.Extension):
    """Separates the errors of every docstring, and hides defaults that have a private name, once a package is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go through all that the package defines."""
        self._visit(pkg)

    def _visit(self, owner: Any) -> None:
        if owner.docstring is not None:
            for section in owner.docstring.parsed:
                if section.kind is griffe.DocstringSectionKind.raises:
                    section.value = [
                        griffe.DocstringRaise(
                            annotation=griffe.parse_docstring_annotation(name, owner.docstring), description=why
                        )
                        for item in section.value
                        for name, why in separated(str(item.annotation), item.description)
                    ]
        for parameter in getattr(owner, "parameters", ()) if owner.is_function or owner.is_class else ():
            if re.match(r"(\w+\.)*_\w+", str(parameter.default or "")):
                parameter.default = "..."
        for member in owner.members.values():
            if not member.is_alias:
                self._visit(member)
