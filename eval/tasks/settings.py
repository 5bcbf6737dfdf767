"""Settings of built-in tasks, behind their names: ``continuation:tokens=256,corpus=docstrings``."""

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any


class SettingError(ValueError):
    """A setting that a task does not have, or a value that it cannot have."""


def text(name: str, value: str) -> str:
    """A setting that is a text."""
    if not value:
        raise SettingError(f"{name} is empty; expected {name}=VALUE")
    return value


def whole(name: str, value: str) -> int:
    """A setting that is a whole number of at least 1."""
    if not value.isdigit() or int(value) < 1:
        raise SettingError(f"{name} needs a whole number of at least 1, as in {name}=128; got {value!r}")
    return int(value)


def wholes(name: str, value: str) -> tuple[int, ...]:
    """A setting that is whole numbers of at least 1, joined by +."""
    numbers = tuple(whole(name, each) for each in value.split("+"))
    if len(set(numbers)) < len(numbers):
        raise SettingError(f"the numbers of {name} must differ; got {value!r}")
    return numbers


def one_of(*values: str) -> Callable[[str, str], str]:
    """A setting that is one of these values."""

    def read(name: str, value: str) -> str:
        if value not in values:
            raise SettingError(f"{name} is one of {' and '.join(values)}; got {value!r}")
        return value

    return read


def with_settings(task: Any, settings: str) -> Any:
    """The task with these settings.

    Args:
        task: a dataclass with a mapping ``settings``: what reads each of them, called with its name and its value.
        settings: as the user writes them, behind the task's name and a colon.

    Raises:
        SettingError: the task has no such setting, one is named twice, or has a value that it cannot have.
    """
    known = getattr(task, "settings", {})
    if not known:
        raise SettingError(f"the task {task.name} has no settings; write it {task.name}; got {settings!r} behind it")
    values: dict[str, Any] = {}
    for each in re.split(r",(?=\w+=)", settings):  # a folder's name may have a comma
        name, given, value = each.partition("=")
        if not given or name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise SettingError(
                f"the task {task.name} has no setting {each!r}{hint} It has {', '.join(f'{n}=…' for n in known)}, "
                "joined by commas"
            )
        if name in values:
            raise SettingError(f"{name} of the task {task.name} is given twice, in {settings!r}")
        values[name] = known[name](name, value)
    return replace(task, **values)
