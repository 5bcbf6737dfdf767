"""Files of a model's folder, which may come from anybody: read if they are files, of a size that they may have.

Links are followed, as the hub's cache has links to its files.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from kamera_jax.library.opening import QUIET
from models.errors import ConfigError, GitLfsPointerError, MissingConfigFileError

JSON_BYTES = 2**25
"""Bytes of a JSON file, or of a header, at most: 32 MiB."""

VOCABULARY_BYTES = 2**27
"""Bytes of a file with a vocabulary, at most: 128 MiB."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer of Git LFS begins, which stands where a large file was not fetched."""

DEEPEST = 64
"""So many objects and lists may stand within each other."""

_FILES = 10_000
_VALUES = 3_000_000


def is_regular(path: Path) -> bool:
    """Whether a file is there, itself or behind a link."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, most: int) -> bytes:
    """All bytes of a file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        MissingConfigFileError: it is not there.
        GitLfsPointerError: it is a pointer of Git LFS, whose file was not fetched.
        ConfigError: it is no file, is longer, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | QUIET)
    except FileNotFoundError as error:
        raise MissingConfigFileError(
            f"{path.parent} has no {path.name}; expected a Hugging Face model folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); fetch the model's folder again") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is a folder, pipe or device; expected a file: fetch the model's folder again")
    try:
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ConfigError(f"{path} has {size} bytes; expected at most {most}: fetch the model's folder again")
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); fetch the model's folder again") from error
    check_no_pointer(path, content[: len(LFS_POINTER)])
    return content


def check_no_pointer(path: Path, start: bytes) -> None:
    """Raise GitLfsPointerError if a file that begins like this is a pointer of Git LFS, and not the file itself."""
    if start.startswith(LFS_POINTER):
        raise GitLfsPointerError(
            f"{path} is a Git-LFS pointer: a few lines that stand in place of the file, whose content was not fetched; "
            f"run `git lfs install` and `git lfs pull` in {path.parent}, or download the file itself"
        )


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """The text of a file.

    Raises:
        MissingConfigFileError, ConfigError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}); fetch the model's folder again") from error


def parsed(text: str | bytes, what: Any, *, unique: bool = False) -> dict[str, Any]:
    """The object that JSON holds.

    Args:
        text: the JSON.
        what: its name, for messages.
        unique: refuse an object that has a name twice.

    Raises:
        ConfigError: it is something else, has numbers that are none, or is nested too deeply.
    """
    try:
        marks = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
        if sum(text.count(mark) for mark in marks) > _VALUES:  # pyright: ignore[reportArgumentType]
            raise ConfigError(f"{what} has over {_VALUES} values; fetch the model's folder again")
        content = json.loads(text, object_pairs_hook=_unique if unique else None)
        if not isinstance(content, dict):
            raise ConfigError(f"{what} is a {type(content).__name__}; expected a JSON object")
        strange = _strange(content)
    except ConfigError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        reason = f"nested more than {DEEPEST} deep" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{what} is not JSON ({reason}); fetch the model's folder again") from error
    if strange:
        raise ConfigError(f"{what}: {strange}: fetch the model's folder again")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        MissingConfigFileError: it is not there.
        ConfigError: it is not a JSON object, is too long or nested too deeply, or contains NaN or an infinity, which
            JSON does not have.
    """
    return parsed(read_text(path), path)


def check_folder(folder: Path) -> None:
    """Raise ConfigError for what would block or mislead whoever opens a model folder's files.

    Raises:
        ConfigError: the folder holds a pipe, socket or device, too many files, or cannot be read.
    """
    try:
        entries = list(zip(range(_FILES + 1), os.scandir(folder), strict=False))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read ({error}); expected a Hugging Face model folder") from error
    if len(entries) > _FILES:
        raise ConfigError(f"{folder} holds over {_FILES} files; expected a Hugging Face model folder")
    for _, entry in entries:
        try:
            mode = entry.stat().st_mode
        except OSError:
            continue  # a link to nothing
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ConfigError(f"{entry.path} is a pipe, socket or device; expected files: fetch the model again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it has the name {twice[:80]!r} twice")
    return content


def _strange(content: Any) -> str:
    """What is wrong with a JSON value: a number that is none, by its name, or too deep; empty if there is nothing."""
    waiting = [(content, "", 1)]
    while waiting:
        value, name, depth = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}; expected a finite number"
        if isinstance(value, dict | list) and depth > DEEPEST:
            return f"{name[:200]} is nested more than {DEEPEST} deep"
        if isinstance(value, dict):
            waiting += [(each, f"{name}.{key}" if name else key, depth + 1) for key, each in reversed(value.items())]
        elif isinstance(value, list) and any(isinstance(each, float | dict | list) for each in value):
            waiting += [(each, f"{name}[{i}]", depth + 1) for i, each in reversed(list(enumerate(value)))]
    return ""
