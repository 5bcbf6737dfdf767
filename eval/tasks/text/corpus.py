"""Texts that every machine with this project has, or a folder of one's own."""

import hashlib
import importlib
import inspect
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

LONG = 1500
"""Letters of a docstring that is long enough to be a document."""

SUFFIXES = (".txt", ".md")
"""Files of a folder that are read."""


class CorpusError(ValueError):
    """A corpus that does not exist, or cannot be read."""


@dataclass(frozen=True)
class Corpus:
    """Texts to cut passages from.

    Attributes:
        name: as the user writes it.
        documents: the texts.
        sources: where they come from, and their digest: what a run records.
    """

    name: str
    documents: tuple[str, ...]
    sources: Mapping[str, str]


def read(name: str) -> Corpus:
    """The corpus of that name.

    Args:
        name: one of `BUILTIN`, or a folder: its .txt and .md files, and those in folders below it, are the documents.

    Raises:
        CorpusError: there is no such folder, or its files are none, empty or no UTF-8.
    """
    if name in BUILTIN:
        return _builtin(name)
    return _corpus(name, _files(name), {})


@lru_cache
def _builtin(name: str) -> Corpus:
    texts, versions = BUILTIN[name]
    return _corpus(name, texts(), versions())


def _corpus(name: str, texts: Iterator[str], versions: Mapping[str, str]) -> Corpus:
    """The corpus of these texts: each once, without spaces at the ends of lines, so that a line break ends them."""
    cleaned = (re.sub(r"[^\S\n]+(?=\n|\Z)", "", text.replace("\r\n", "\n")).strip("\n") for text in texts)
    documents = tuple(dict.fromkeys(text for text in cleaned if text))
    if not documents:
        raise CorpusError(f"the corpus {name!r} has no text in its files; give a folder of texts")
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return Corpus(name, documents, {"corpus": name, **versions, "documents": str(len(documents)), "sha256": digest})


def _files(name: str) -> Iterator[str]:
    folder = Path(name)
    if not folder.is_dir():
        raise CorpusError(
            f"there is no corpus {name!r}: it is neither {' nor '.join(BUILTIN)}, nor a folder; give one of these "
            f"names, or a folder of {' and '.join(SUFFIXES)} files"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise CorpusError(f"the folder {name} has no {' or '.join(SUFFIXES)} files; give a folder of texts")
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise CorpusError(f"{path} cannot be read as a UTF-8 text: {error}") from error


def _topics() -> Iterator[str]:
    """What Python's help() says of its language, topic by topic."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return (topics[name] for name in sorted(topics))


MODULES = (
    *("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial.polynomial", "numpy.ma"),
    *("jax", "jax.numpy", "jax.numpy.linalg", "jax.lax", "jax.nn", "jax.random", "jax.tree_util", "jax.scipy.linalg"),
)
"""Modules whose public names are looked at for docstrings."""


def _docstrings() -> Iterator[str]:
    """Long docstrings of public functions and classes of numpy and jax, and of the classes' methods."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in sorted(getattr(module, "__all__", None) or vars(module)):
            if public.startswith("_"):
                continue
            value = inspect.getattr_static(module, public, None)  # a deprecated name warns when it is asked for
            members = [value]
            if inspect.isclass(value):
                members += [member for key, member in sorted(vars(value).items()) if not key.startswith("_")]
            for member in members:
                text = _docstring(member)
                if len(text) >= LONG:
                    yield text


def _docstring(value: object) -> str:
    """The docstring of a function, method or class, without its indentation; empty where there is none."""
    own = getattr(value, "__doc__", None)
    described = callable(value) or inspect.isdatadescriptor(value)
    return inspect.cleandoc(own) if described and isinstance(own, str) else ""


BUILTIN: Mapping[str, tuple[Callable[[], Iterator[str]], Callable[[], Mapping[str, str]]]] = {
    "pydoc": (_topics, lambda: {"python": platform.python_version()}),
    "docstrings": (_docstrings, lambda: {name: version(name) for name in ("numpy", "jax")}),
}
"""Corpora that come with Python and this project's requirements: their texts, and the versions that decide them."""
