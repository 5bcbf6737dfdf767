"""Strict reading of the JSON files of a Hugging Face folder: every field is used, checked or ignored by name."""

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
from models.hub.files import read_json

__all__ = [
    "ConfigError",
    "Fields",
    "MissingConfigFieldError",
    "MissingConfigFileError",
    "UnknownConfigFieldError",
    "UnsupportedConfigError",
    "preprocessing_of",
    "read_json",
]

_REQUIRED = object()
_MOST = 2**31 - 1

LAYERS = 4096
"""Layers that a model may have, or experts in one: none has so many, and a wrong number must not fill the memory."""

WIDTH = 2**16
"""Width of a head at most, for each two of which a frequency is kept."""


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
            raise UnsupportedConfigError(f"{self.section}: {name} is {shown(value)}; expected {kind.__name__}")
        if kind is float and not (value == 0 or is_positive(abs(value))):
            raise UnsupportedConfigError(
                f"{self.section}: {name} is {shown(value)}; expected a number that f32 can represent"
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

    def size(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = _MOST) -> int:
        """A field that counts something: at least 1, or ``least``.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is no such integer, or more than ``most``, by default what 32 bits hold.
        """
        return _counted(self.take(name, int, default), f"{self.section}: {name}", least, most)

    def sizes(self, name: str, default: Any = _REQUIRED, *, least: int = 1) -> tuple[int, ...]:
        """A field that is a list of such integers.

        Raises:
            MissingConfigFieldError: it is absent and there is no default.
            UnsupportedConfigError: it is something else.
        """
        values = self.take(name, list, default)
        if not all(type(value) is int for value in values):
            raise UnsupportedConfigError(f"{self.section}: {name} is {shown(values)}; expected integers")
        return tuple(_counted(value, f"{self.section}: {name}", least, _MOST) for value in values)

    def expect(self, name: str, *accepted: Any) -> None:
        """Check a field whose other values would need another computation; absent means the first accepted one.

        Raises:
            UnsupportedConfigError: it has another value.
        """
        value = self.rest.pop(name, accepted[0])
        # To Python 1 is True, and 0 is False.
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in accepted):
            expected = " or ".join(repr(each) for each in accepted)
            raise UnsupportedConfigError(f"{self.section}: {name} is {shown(value)}; only {expected} is supported")

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
                f"{self.section} has unknown fields {shown(sorted(self.rest))}; they may change the computation: "
                "remove them if they do not, or add them to the port if they do"
            )


def shown(value: Any) -> str:
    """A value in a message: long ones are cut."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _counted(value: int, named: str, least: int, most: int) -> int:
    if not least <= value <= most:
        limit = "less than 2**31" if most == _MOST else f"at most {most}"
        raise UnsupportedConfigError(f"{named} is {shown(value)}; expected at least {least}, and {limit}")
    return value


def preprocessing_of(folder: Path, kind: str = "image") -> dict[str, Any]:
    """Settings of a kind of media: a file of their own, or, from transformers 5, a section of the processor's.

    Kinds that have neither are preprocessed as images are.
    """
    sections = (f"{kind}_processor", *(("feature_extractor",) if kind == "audio" else ()))
    own = "preprocessor_config.json" if kind == "image" else f"{kind}_preprocessor_config.json"
    if (folder / own).exists():
        return read_json(folder / own)
    if (folder / "processor_config.json").exists():
        processor = Fields("processor_config.json", read_json(folder / "processor_config.json"))
        named = [section for section in sections if section in processor.rest]
        if kind == "image" or named:
            return processor.take((*named, *sections)[0], dict)
    return read_json(folder / own) if kind == "image" else preprocessing_of(folder)
