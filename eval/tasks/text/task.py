"""What the tasks on real text share: their settings, their passages, and questions about known text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from eval.tasks.base import Context, Finding, InvalidTaskError, Outline, Question
from eval.tasks.settings import text, whole
from eval.tasks.text import corpus
from eval.tasks.text.reader import Reader
from kamera_jax.backbone import Backbone

AHEAD = 32
"""Next tokens that a continuation is judged by."""


@dataclass(frozen=True)
class Need:
    """Passages that contexts are drawn from.

    Attributes:
        tokens, lead, across: see `eval.tasks.text.reader.Reader.passages`.
        count: how many a data seed takes.
    """

    tokens: int
    count: int
    lead: int = 0
    across: bool = False


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A task on real text: it is for one model once `for_model` has read its corpus with that model's tokenizer.

    Attributes:
        corpus: a name or a folder; see `eval.tasks.text.corpus.read`.
        reader: the corpus as the model reads it; None before `for_model`.
    """

    corpus: str = "pydoc"
    reader: Reader | None = None

    name = ""
    version = 1
    contexts = 1
    max_new_tokens = 1
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {"corpus": text}

    @property
    def conditions(self) -> Sequence[str]:
        """What results are shown by; contexts are drawn of each in turn."""
        raise NotImplementedError

    def needs(self, contexts: int) -> Iterator[Need]:
        """The passages that so many contexts of one data seed are drawn from."""
        raise NotImplementedError

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """The context of that number among those of its seed and condition."""
        raise NotImplementedError

    def for_model(self, vlm: Backbone) -> "TextTask":
        """The task with its corpus, as the model reads it.

        Raises:
            CorpusError: the corpus does not exist or cannot be read.
        """
        return replace(self, reader=Reader(vlm, corpus.read(self.corpus)))

    @property
    def sources(self) -> Mapping[str, str]:
        """Where the texts come from, for the run's record."""
        return {} if self.reader is None else self.reader.corpus.sources

    def outline(self, seeds: Sequence[int], limit: int) -> list[Outline]:
        """The conditions in turn, so that any limit has of each about as many.

        Raises:
            CorpusTooSmallError: the corpus has too few passages for them.
        """
        if self.reader is not None:
            for need in self.needs(limit):
                self.reader.check(need.count, need.tokens, lead=need.lead, across=need.across)
        names = self.conditions
        return [
            Outline(
                f"{seed}/{names[i % len(names)]}/{i // len(names)}".replace(" ", "-"),
                self.layout(names[i % len(names)], i // len(names)),
                seed,
            )
            for seed in seeds
            for i in range(limit)
        ]

    def layout(self, condition: str, index: int) -> str:
        """The layout of a context: by default one for each condition, of the same name."""
        return condition

    def draw(self, outline: Outline) -> Context:
        """The context, always the same for the same model, corpus and outline.

        Raises:
            InvalidTaskError: the task has no model yet.
        """
        if self.reader is None:
            raise InvalidTaskError(
                f"the contexts of the task {self.name} depend on the model's tokenizer; draw them from "
                "task.for_model(vlm)"
            )
        return self.drawn(self.reader, outline, int(outline.context.rpartition("/")[2]))

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the token is the one that follows; known text is scored by token ids, without this."""
        return {"accuracy": float(said in question.answers)}

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """None."""
        return []


def known(
    reader: Reader, ids: Sequence[Any] | np.ndarray, condition: Callable[[int], str] | str, **fields: Any
) -> list[Question]:
    """A question for each token of a known text but the first: which one it is, given those before it.

    Args:
        reader: spells the tokens.
        ids: of the text, the first of which stands right behind the window.
        condition: what the answers are shown by: a text, or one for each number of a token, from 1.
        fields: the same for all questions; see `eval.tasks.Question`.
    """
    tail = tuple(int(each) for each in ids[:-1])
    return [
        Question(
            text=f"…{reader.text(tail[max(0, i - 7) : i + 1])}",
            answers=(reader.spelling(int(ids[i + 1])),),
            condition=condition if isinstance(condition, str) else condition(i + 1),
            tail=tail,
            at=i,
            next_token=int(ids[i + 1]),
            **fields,
        )
        for i in range(len(tail))
    ]


def shares(contexts: int, conditions: int) -> list[int]:
    """How many contexts each condition has where conditions take turns."""
    return [len(range(i, contexts, conditions)) for i in range(conditions)]


tokens_setting = {"tokens": whole}
"""The setting of a task whose passages have one length."""
