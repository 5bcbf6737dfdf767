"""Strict reading of the JSON files of a Hugging Face folder: every field is used, checked or ignored by name."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kamera_jax.rope import is_positive
from models.errors import (
    ConfigError,
    MissingConfigFieldError,
    MissingConfigFileError,
    UnknownConfigFieldError,
    UnsupportedConfigError,
)

__all__ = [
    "ConfigError",
    "Fields",
    "MissingConfigFieldError",
    "MissingConfigFileError",
    "UnknownConfigFieldError",
    "UnsupportedConfigError",
    "read_json",
]

_REQUIRED = object()


class Fields:
    """One JSON object, taken apart field by field; `close` refuses what is left over.

    Fields that are null count as absent, as they do in transformers.
    """

    def __init__(self, section: str, mapping: Mapping[str, Any]) -> None:
        """``section`` names the object in messages."""
        self.section = section
        self.rest = {name: value for name, value in mapping.items() if value is not None}

    def take(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of a field that the port uses.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is not of this kind.
        """
        if name not in self.rest:
            if default is _REQUIRED:
                raise MissingConfigFieldError(f"{self.section} has no {name!r}; add it, as {kind.__name__}")
            return default
        value = self.rest.pop(name)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise UnsupportedConfigError(f"{self.section}: {name} is {value!r}; expected {kind.__name__}")
        if kind is float and not (value == 0 or is_positive(abs(value))):
            raise UnsupportedConfigError(
                f"{self.section}: {name} is {value!r}; expected a number that f32 can represent"
            )
        return kind(value)

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A field that is a finite number.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is not a number, or not one that f32 can represent.
        """
        return self.take(name, float, default)

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """A field that measures something: finite and above 0.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is no such number.
        """
        value = self.take(name, float, default)
        if value <= 0:
            raise UnsupportedConfigError(f"{self.section}: {name} is {value}; expected a number above 0")
        return value

    def size(self, name: str, default: Any = _REQUIRED, *, least: int = 1) -> int:
        """A field that counts something: at least 1, or ``least``.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is no such integer, or one that needs more than 32 bits.
        """
        return _counted(self.take(name, int, default), f"{self.section}: {name}", least)

    def sizes(self, name: str, default: Any = _REQUIRED, *, least: int = 1) -> tuple[int, ...]:
        """A field that is a list of such integers.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is something else.
        """
        values = self.take(name, list, default)
        if not all(type(value) is int for value in values):
            raise UnsupportedConfigError(f"{self.section}: {name} is {values!r}; expected integers")
        return tuple(_counted(value, f"{self.section}: {name}", least) for value in values)

    def expect(self, name: str, *accepted: Any) -> None:
        """Check a field whose other values would need another computation; absent means the first accepted one.

        Raises:
            UnsupportedConfigError: it has another value.
        """
        value = self.rest.pop(name, accepted[0])
        # To Python 1 is True, and 0 is False.
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in accepted):
            expected = " or ".join(repr(each) for each in accepted)
            raise UnsupportedConfigError(f"{self.section}: {name} is {value!r}; only {expected} is supported")

    def ignore(self, *names: str) -> None:
        """Drop fields that do not change what the port computes."""
        for name in names:
            self.rest.pop(name, None)

    def close(self) -> None:
        """Refuse what is left.

        Raises:
            UnknownConfigFieldError: fields remain that were neither taken, nor checked, nor ignored.
        """
        if self.rest:
            raise UnknownConfigFieldError(
                f"{self.section} has unknown fields {sorted(self.rest)}; they may change the computation: "
                "remove them if they do not, or add them to the port if they do"
            )


def _counted(value: int, named: str, least: int) -> int:
    if not least <= value < 2**31:
        raise UnsupportedConfigError(f"{named} is {value}; expected at least {least}, and less than 2**31")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        MissingConfigFileError: it is not there.
        ConfigError: it is not a JSON object, or contains NaN or an infinity, which JSON does not have.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingConfigFileError(
            f"{path.parent} has no {path.name}; expected a Hugging Face model folder"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch the model's folder again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is a {type(content).__name__}; expected a JSON object")
    if strange := _not_finite(content):
        raise ConfigError(f"{path}: {strange}; expected a finite number: fetch the model's folder again")
    return content


def _not_finite(value: Any, name: str = "") -> str:
    """The first number in a JSON value that is none, by its name; empty if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{name} is {value}"
    if isinstance(value, dict):
        inner = ((f"{name}.{key}" if name else key, each) for key, each in value.items())
    elif isinstance(value, list):
        inner = ((f"{name}[{index}]", each) for index, each in enumerate(value))
    else:
        return ""
    return next(filter(None, (_not_finite(each, key) for key, each in inner)), "")
