"""A run's arguments as a TOML file, which ``kamera eval --config`` takes: ``run.toml`` in the run's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.run.folder import write_text

CONFIG = "run.toml"

ORDER = ("task", "model", "methods", "seeds", "limit", "capacity", "batch", "devices", "mesh", "repeats")
"""Arguments in the order that they are written in."""


def write(folder: Path, run: Any, versions: Mapping[str, str], objects: Sequence[str] = ()) -> None:
    """Write the arguments of a run into its folder, unless they are there.

    Args:
        folder: the run's.
        run: an `eval.run.runner.Run`.
        versions: of the packages, by name.
        objects: which of ``task`` and ``model`` were given as objects in Python, so that their names are no more.
    """
    text = "".join(f"# {line}\n" for line in _notes(versions, objects))
    text += "".join(f"{name} = {_value(getattr(run, name))}\n" for name in ORDER if getattr(run, name) is not None)
    if not (folder / CONFIG).exists():
        write_text(folder / CONFIG, text)


def _notes(versions: Mapping[str, str], objects: Sequence[str]) -> list[str]:
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [f"Run with {with_versions}.", "To run it again: kamera eval --config THIS_FILE --output DIR"]
    given = [f"The {name} was given as an object in Python: name one in its place." for name in objects]
    return [*notes, *given]


def _value(value: Any) -> str:
    """A text, a number, or several, in TOML: JSON's texts are TOML's, but for a character that nobody types."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
