"""What a task is: contexts, each with questions that share it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Question:
    """One sample.

    Attributes:
        text: what is asked.
        answer: the right answer's first word.
        condition: what it is asked under: results are shown by it.
        hops: how many chunks its answer leads through.
        learned: whether models that know the task answer it from full prefill; the others are reported apart.
        depth: where in the window the chunk stands that shows the answer, 0 (first) to 1 (last).
        labels: what else the task tells samples apart by.
    """

    text: str
    answer: str
    condition: str
    hops: int
    learned: bool
    depth: float
    labels: dict[str, str | int | float]


@dataclass(frozen=True)
class Context:
    """A window's content.

    Attributes:
        items: what `kamera_jax.encode` takes, in order.
        questions: what is asked about them.
    """

    items: tuple[Any, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Outline:
    """A context before it is drawn.

    Attributes:
        context: its id, unique in the task.
        layout: contexts of one layout have equally many chunks and questions, of the same lengths, and run together.
        seed: of the data.
    """

    context: str
    layout: str
    seed: int


@runtime_checkable
class Task(Protocol):
    """A source of contexts.

    Attributes:
        name: on the command line.
        version: raised with every change of what is asked, so that results are not mixed.
        contexts: of one data seed, where no limit is given.
    """

    name: str
    version: int
    contexts: int

    def outline(self, seeds: Sequence[int], limit: int) -> list[Outline]:
        """The first ``limit`` contexts of every data seed."""
        ...

    def draw(self, outline: Outline) -> Context:
        """The context, always the same for the same outline."""
        ...
