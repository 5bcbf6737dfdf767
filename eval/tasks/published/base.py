"""What the tasks on published benchmarks share: contexts from official files, in an order of the seed's own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eval.tasks.base import Context, Finding, Outline, Question
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.settings import SettingError, text
from kamera_jax.backbone import Backbone

SEED = 90_000_000
"""Of the orders that data seeds other than 0 take the contexts in."""

LONGEST = 8_000
"""Letters of a passage that is one chunk; a longer one is cut."""


@dataclass(frozen=True)
class Source:
    """What a context is made of, before its media are read.

    Attributes:
        name: unique in the task; a part of the context's id.
        group: contexts of each group are taken in turn, so that a limit has of each about as many.
        media: opens the items, in order; the files that it will need were looked for before.
        questions: what is asked about them; made when the context is drawn.
        files: of the media, checked when the context is chosen: called, it raises `DataError` where one is missing.
    """

    name: str
    group: str
    media: Callable[[], Sequence[Any]]
    questions: Callable[[], Sequence[Question]]
    files: Callable[[], Any] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Published(ABC):
    """A task on the official files of a benchmark.

    Attributes:
        data: the folder of the files.
        vlm: the model, where media are cut as it reads them; None before `for_model`.
    """

    data: str = ""
    vlm: Any = None

    name = ""
    version = 1
    max_new_tokens = 16
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {"data": text}
    LAYOUT: ClassVar[str] = ""
    """The files that are expected, a line each."""
    VARIANT: ClassVar[str] = ""
    """Which of the benchmark's settings and scorers this is."""
    SOURCE: ClassVar[str] = ""
    """Where the benchmark and its official script are published."""

    by_context = True
    """Contexts differ in length: each is a layout of its own, in a window of its own size."""

    @abstractmethod
    def read(self, folder: DataFolder) -> Iterator[Source]:
        """All contexts, in the files' order."""

    @abstractmethod
    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The files that say what is asked."""

    @abstractmethod
    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """As the official script scores."""

    @cached_property
    def folder(self) -> DataFolder:
        """The folder of the files.

        Raises:
            DataError: there is none.
        """
        return DataFolder.opened(self.data, self.name, self.LAYOUT)

    @cached_property
    def all(self) -> dict[str, Source]:
        """All contexts by name.

        Raises:
            DataError: the files are missing or malformed, or a name stands twice.
        """
        found: dict[str, Source] = {}
        for source in self.read(self.folder):
            if source.name in found:
                raise DataError(f"{self.folder.root} has {source.name!r} twice; expected each id once")
            found[source.name] = source
        if not found:
            raise DataError(f"{self.folder.root} has no contexts of {self.name}{self._but}")
        return found

    @property
    def _but(self) -> str:
        return f"; expected the folder{self.folder.expected}"

    @property
    def contexts(self) -> int:
        """How many there are; 1 where the files cannot be read, which `outline` says."""
        try:
            return len(self.all)
        except DataError:
            return 1

    @property
    def sources(self) -> Mapping[str, str]:
        """The variant, where it is published, and what the files were: a run records it."""
        digests = self.folder.digests(self.annotations(self.folder))
        return {"variant": self.VARIANT, "benchmark": self.SOURCE, **{f"sha256 of {k}": v for k, v in digests.items()}}

    def for_model(self, vlm: Backbone) -> "Published":
        """The task for one model; its files are looked at here."""
        return replace(self, vlm=vlm)

    def order(self, seed: int) -> list[Source]:
        """The contexts as a seed takes them, its groups in turn: 0 in the files' order, others in one of their own."""
        sources = list(self.all.values())
        if seed:
            places = np.random.default_rng((SEED, seed)).permutation(len(sources))
            sources = [sources[place] for place in places]
        groups: dict[str, list[Source]] = {}
        for source in sources:
            groups.setdefault(source.group, []).append(source)
        most = max(map(len, groups.values()))
        return [own[place] for place in range(most) for own in groups.values() if place < len(own)]

    def outline(self, seeds: Sequence[int], limit: int) -> list[Outline]:
        """Up to so many contexts of every seed; what an earlier seed has taken is not taken again.

        Raises:
            DataError: the files are missing or malformed, or media of the chosen contexts are missing.
        """
        taken: dict[str, Outline] = {}
        for seed in seeds:
            left = [source for source in self.order(seed) if source.name not in taken]
            for source in left[:limit]:
                source.files()
                taken[source.name] = Outline(source.name, source.name, seed)
        return list(taken.values())

    def draw(self, outline: Outline) -> Context:
        """The context with its media."""
        source = self.all[outline.context]
        return Context(tuple(source.media()), tuple(source.questions()))

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """None: what a run is to show stands in a suite."""
        return []


def given(value: Any) -> Callable[[], Any]:
    """A function that gives a value that is there already."""
    return lambda: value


def choice(*values: str) -> Callable[[str, str], tuple[str, ...]]:
    """A setting that is one of these values, several joined by +."""

    def read(name: str, value: str) -> tuple[str, ...]:
        chosen = tuple(value.split("+"))
        if wrong := [each for each in chosen if each not in values]:
            raise SettingError(f"{name} is one of {', '.join(values)}, or several joined by +; got {wrong[0]!r}")
        if len(set(chosen)) < len(chosen):
            raise SettingError(f"{name} names one twice; got {value!r}")
        return chosen

    return read


def passages(text: str, longest: int = LONGEST) -> list[str]:
    """A text in parts of at most so many letters, cut before a paragraph, else a line, else a word; none is empty.

    White space at the ends of the parts is left out.

    Args:
        text: the text.
        longest: letters.
    """
    parts = []
    rest = text.strip()
    while len(rest) > longest:
        head = rest[: longest + 1]
        cut = max(head.rfind("\n\n"), 0) or max(head.rfind("\n"), 0) or max(head.rfind(" "), 0) or longest
        parts.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*parts, rest] if rest else parts


def pieces(text: str, count: int) -> list[str]:
    """A text in about so many parts of about equal length, cut as `passages` cuts; at least two where it has two words.

    Args:
        text: the text.
        count: how many.
    """
    longest = max(1, -(-len(text.strip()) // count))
    found = passages(text, longest)
    while len(found) > count:
        longest += max(1, longest // 20)
        found = passages(text, longest)
    return found


def lettered(options: Sequence[str]) -> str:
    """Options below each other, each behind its letter; those that have it already stay as they are."""
    return "\n".join(
        option if option.startswith(f"{chr(65 + i)}.") else f"{chr(65 + i)}. {option}"
        for i, option in enumerate(options)
    )
