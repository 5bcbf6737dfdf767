"""What a task is: contexts, the questions about each of them, and how an answer is scored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from eval.tasks.finding import Finding
from eval.tasks.tokens import checked_ids
from kamera_jax.backbone import Backbone

Label = str | int | float
"""What a sample may be labelled with: it is written to ``samples.jsonl`` as it is."""

RESERVED = frozenset(
    {"id", "context", "seed", "chunks", "methods", "question", "answer", "answers", "choices"}
    | {"condition", "hops", "learned", "depth", "next_token", "among", "follows"}
)
"""Names of a sample's own fields, which no label may have."""


@dataclass(frozen=True)
class Question:
    """One sample.

    Attributes:
        text: the question.
        answers: every answer that counts as right, at least one. What they mean is the task's ``score``'s to say.
        condition: the group that results are shown by.
        hops: how many chunks have to be combined for the answer.
        learned: whether models that know the task answer it from full prefill; the others are reported apart.
        depth: where in the window the chunk stands that shows the answer, 0 (first) to 1 (last).
        labels: what else tells the task's samples apart.
        choices: of a multiple-choice question, the texts to choose from; A is the first.
        tail: token ids that are run behind the window in place of the question and the chat template's header: known
            text that goes on where the window ends (teacher forcing). Questions of one context that have the same tail
            are read from one forward.
        at: which token of the tail the answer follows; the last by default.
        next_token: the id of the token that does follow. The question is then scored without the task's ``score``:
            ``accuracy``, whether the most likely token is this one; ``so far``, whether it and all tokens asked for
            before it in the same tail are, as if the text were written greedily; and ``nll``, its negative
            log-likelihood in nats.
        among: of a known next token, the ids that it is to be chosen from, itself among them. Then ``choice`` is a
            score too: whether the model gives it a higher probability than the others.
    """

    text: str
    answers: Sequence[str]
    condition: str = "all"
    hops: int = 1
    learned: bool = True
    depth: float | int = 0.0
    labels: Mapping[str, Label] = field(default_factory=dict)
    choices: Sequence[str] = ()
    tail: Sequence[int] = ()
    at: int = -1
    next_token: int | None = None
    among: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be scored or written."""
        if isinstance(self.answers, str):
            raise ValueError(
                f"the answers of {self.text!r} are one text, {self.answers!r}; expected a sequence of texts, as in "
                f"({self.answers!r},)"
            )
        if not self.answers:
            raise ValueError(f"the question {self.text!r} has no answers; give at least one that counts as right")
        if wrong := [each for each in (*self.answers, *self.choices) if not isinstance(each, str)]:
            raise ValueError(f"answers and choices are texts; {self.text!r} has {wrong[0]!r}: write {str(wrong[0])!r}")
        if not 0 <= self.depth <= 1 or self.hops < 1:
            raise ValueError(
                f"a depth is 0 to 1, and hops are at least 1; {self.text!r} has depth {self.depth} and {self.hops} hops"
            )
        if wrong := [name for name, value in self.labels.items() if not isinstance(value, (str, int, float))]:
            raise ValueError(
                f"labels are texts and Python's numbers; {wrong[0]} of {self.text!r} is of type "
                f"{type(self.labels[wrong[0]]).__name__}"
            )
        if taken := sorted(RESERVED & set(self.labels)):
            raise ValueError(
                f"the question {self.text!r} has labels named {', '.join(taken)}, which are fields of every sample; "
                "give them other names"
            )
        object.__setattr__(self, "tail", checked_ids(self.tail, f"the tail of {self.text!r}"))
        if self.tail and not -len(self.tail) <= self.at < len(self.tail):
            raise ValueError(
                f"the tail of {self.text!r} has {len(self.tail)} tokens, and none at {self.at}, which the answer is to "
                "follow"
            )
        if self.next_token is not None:
            if not self.tail:
                raise ValueError(f"{self.text!r} has a next token and no tail that it follows; give both")
            checked_ids([self.next_token], f"the next token of {self.text!r}")
        object.__setattr__(self, "among", checked_ids(self.among, f"what {self.text!r} is answered from"))
        if self.among and self.next_token not in self.among:
            raise ValueError(
                f"{self.text!r} is to be answered with one of the tokens {self.among}, and the right one, "
                f"{self.next_token}, is none of them; give it too"
            )

    def record(self) -> dict[str, Any]:
        """The question's part of its line in ``samples.jsonl``."""
        fields = {
            "question": self.text,
            "answers": list(self.answers),
            "condition": self.condition,
            "hops": int(self.hops),
            "learned": bool(self.learned),
            "depth": float(f"{self.depth:.6g}"),
        }
        fields |= {"choices": list(self.choices)} if self.choices else {}
        fields |= {} if self.next_token is None else {"next_token": int(self.next_token)}
        fields |= {"among": list(self.among)} if self.among else {}
        return fields | dict(self.labels)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Question":
        """The question of a line, so that it can be scored again.

        Lines that were written before questions had several answers have one, under ``answer``, and no text.
        """
        return Question(
            text=record.get("question", record["id"]),
            answers=tuple(record["answers"] if "answers" in record else [record["answer"]]),
            condition=record["condition"],
            hops=record["hops"],
            learned=record["learned"],
            depth=record["depth"],
            labels={name: value for name, value in record.items() if name not in RESERVED},
            choices=tuple(record.get("choices", ())),
        )


@dataclass(frozen=True)
class Context:
    """The content of a window.

    Attributes:
        items: what `kamera_jax.encode` takes, or `eval.tasks.tokens.Tokens`, in order; each becomes a chunk.
        questions: what is asked about them, at least one question.
        antecedents: for each item, what stands before it when its patch is formed, where that is something else than
            the items before it here: chunks that have left the window since, say. Empty where it is the same for all.
        any_order: whether patches are formed behind their antecedents in several orders; see `kamera_jax.form_patch`.
        history: chunks that stood in the window before these, in order, and have left it. Where there are some,
            methods are compared with full prefill of them and the items behind them, the history then hidden from what
            is asked (the history reference), and not with full prefill of the items alone.
    """

    items: Sequence[Any]
    questions: Sequence[Question]
    antecedents: Sequence[Sequence[Any]] = ()
    history: Sequence[Any] = ()
    any_order: bool = False

    def __post_init__(self) -> None:
        """Refuse antecedents that are not one sequence for each item."""
        if self.antecedents and len(self.antecedents) != len(self.items):
            raise ValueError(
                f"a context of {len(self.items)} items has antecedents for {len(self.antecedents)}; give a sequence "
                "for each item, or none"
            )


@dataclass(frozen=True)
class Outline:
    """A context before it is drawn.

    Attributes:
        context: its id, unique in the task.
        layout: contexts of one layout have equally many chunks and questions, chunk by chunk of the same length, and
            are run together.
        seed: the data seed.
    """

    context: str
    layout: str
    seed: int


@runtime_checkable
class Task(Protocol):
    """A source of contexts and questions, with its own scoring.

    A task whose contexts depend on the model, on its tokenizer say, has a method ``for_model(vlm)`` too, which returns
    the task for that model: its contexts are drawn. `for_model` calls it. What a task draws from, such as the versions
    of its texts, may stand in an attribute ``sources``, texts by name; a run records it.

    Attributes:
        name: the task's name in reports.
        version: a whole number, to be raised with every change of what is asked, so that results are not mixed.
        contexts: how many contexts a data seed has where no limit is given.
        max_new_tokens: 1 where the answer is read off the next-token logits; more where it is generated, greedily and
            up to so many tokens.
    """

    name: str
    version: int
    contexts: int
    max_new_tokens: int

    def outline(self, seeds: Sequence[int], limit: int) -> Sequence[Outline]:
        """The first ``limit`` contexts of every data seed."""
        ...

    def draw(self, outline: Outline) -> Context:
        """The context, always the same for the same outline."""
        ...

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Scores of an answer by name, the same names for every question; the first name is the one figures show.

        Args:
            question: the sample, with ``answers``.
            said: what the model answered: the most likely next token, or the generated text. It may be empty.
        """
        ...

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """Statements about a finished run that its report shows; none for a task without claims of its own.

        Args:
            scores: what ``results.json`` has under ``scores``; `eval.tasks.comparison` reads it.
        """
        ...


def for_model(task: Task, vlm: Backbone) -> Task:
    """The task for one model: what its own ``for_model`` returns, or, if it has none, the task as it is."""
    own = getattr(task, "for_model", None)
    return task if own is None else check_task(own(vlm), f"what for_model of the task {task.name!r} returns")


class InvalidTaskError(ValueError):
    """An object that is no task, or a task that gives what cannot be run or scored."""


NUMBERS = ("version", "contexts", "max_new_tokens")
METHODS = ("outline", "draw", "score", "findings")


def check_task(task: Any, source: str) -> Task:
    """The same object, if it is a task.

    Args:
        task: any object.
        source: where it comes from, for the message.

    Raises:
        InvalidTaskError: members are missing or of the wrong kind; all of them are named.
    """
    missing = [name for name in ("name", *NUMBERS) if not hasattr(task, name)]
    missing += [name for name in METHODS if lacks(task, name, Task)]
    if missing:
        raise InvalidTaskError(
            f"{source} is {_article(task)}, and no task: it lacks {', '.join(missing)}; see eval.tasks.Task and "
            "docs/howto/task.md"
        )
    if not isinstance(task.name, str) or not task.name:
        raise InvalidTaskError(f"the name of {source} must be a text; got {task.name!r}")
    for name in NUMBERS:
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidTaskError(f"{name} of {source} must be a whole number of at least 1; got {value!r}")
    return task


def lacks(value: Any, name: str, protocol: type) -> bool:
    """Whether an object has no method of that name, or only the one that the protocol declares and leaves empty."""
    found = getattr(type(value), name, None) or getattr(value, name, None)
    return not callable(found) or found is getattr(protocol, name)


def _article(value: Any) -> str:
    return f"the module {value.__name__}" if type(value).__name__ == "module" else f"of type {type(value).__name__}"


SCORE_FIELDS = frozenset({"error", "errors", "kl", "samples"})
"""Fields that stand beside the scores in ``results.json``, which no score may be named after."""


def checked_scores(task: Task, question: Question, said: str, names: Sequence[str] | None = None) -> dict[str, float]:
    """What the task's ``score`` gives for an answer, as plain numbers.

    Args:
        task: the task.
        question: the sample.
        said: the answer.
        names: the scores of the samples before, which this one has to have too; None for the first sample.

    Raises:
        InvalidTaskError: no scores, other scores than before, a name that is taken, or what is no finite number.
    """
    given = task.score(question, said)
    where = f"the task {task.name} scored {said!r} as an answer to {question.text!r}"
    if not isinstance(given, Mapping) or not given:
        raise InvalidTaskError(f"{where} with {given!r}; expected at least one number by name, as in {{'f1': 0.5}}")
    if names is not None and set(given) != set(names):
        raise InvalidTaskError(
            f"{where} with {', '.join(map(str, given))}, and answers before with {', '.join(names)}; every question "
            "needs the same scores"
        )
    scores = {}
    for name in given if names is None else names:
        if not isinstance(name, str) or not name or name in SCORE_FIELDS:
            raise InvalidTaskError(
                f"{where} under the name {name!r}; a score has a name, and none of {', '.join(sorted(SCORE_FIELDS))}"
            )
        try:
            scores[name] = float(given[name])
        except (TypeError, ValueError):
            scores[name] = math.nan
        if not math.isfinite(scores[name]):
            raise InvalidTaskError(f"{where} with {name} = {given[name]!r}; expected a finite number")
    return scores
