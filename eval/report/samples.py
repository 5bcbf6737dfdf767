"""What each method answered to each question of a run, beside the expected answer: for people, and as records."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import tasks
from eval.report.run_tables import HOPS
from eval.run.folder import CONTEXTS, RESULTS, SAMPLES, Record, expected, failures, read_json, read_lines
from eval.run.scores import with_scores

WIDTH = 80
"""Columns of a terminal that questions and answers keep to."""

LONGEST = 3
"""Lines that a question or an answer takes at most."""

NAME = 24
"""Columns of a method's name; longer ones stand in a line of their own."""


class UnknownMethodError(ValueError):
    """A method that a run does not have."""


def read(path: Path, task: Any = None) -> list[Record]:
    """The samples of a run, each method's answer with its scores, the main one first.

    Args:
        path: the run's folder.
        task: the task, where it cannot be found by its name.

    Returns:
        The lines of ``samples.jsonl``, with ``scores`` in each method's entry; without them where the task is not
        installed here.

    Raises:
        OtherRunError: the folder has no finished run, or one that is damaged.
    """
    results = read_json(path / RESULTS)
    lines = read_lines(path / SAMPLES)
    with expected(path / SAMPLES):
        failed = failures(read_lines(path / CONTEXTS))
        methods = [name for name in results["config"]["methods"] if name not in failed]
        try:
            own = tasks.get(results["config"]["task"]) if task is None else task
        except (tasks.PluginError, tasks.UnknownTaskError):
            return lines
        scored = with_scores(own, methods, lines)
        return [
            {
                **{name: value for name, value in sample.items() if name != "scores"},
                "methods": {name: {**sample["methods"][name], "scores": sample["scores"][name]} for name in methods},
            }
            for sample in scored
        ]


def chosen(
    samples: Sequence[Record], methods: Sequence[str] = (), *, wrong: bool = False, every: bool = False
) -> list[Record]:
    """The samples that are worth a look, each with the answers of some methods alone.

    Args:
        samples: of a run; see `read`.
        methods: whose answers are looked at, beside those of ``full`` and ``blind``; all by default.
        wrong: whether those are chosen that one of the methods (of those named, if some are) answered wrong, in place
            of those that methods answered differently.
        every: whether all are chosen.

    Raises:
        UnknownMethodError: a method that the run does not have.
        ValueError: the samples have no scores to tell which answers are wrong by.
    """
    known = list(samples[0]["methods"]) if samples else []
    for name in methods:
        if samples and name not in known:
            raise UnknownMethodError(f"the run has no method {name!r}; it has {', '.join(known)}")
    shown = list(dict.fromkeys([*known[:2], *methods])) if methods else known
    if wrong and samples and "scores" not in samples[0]["methods"][known[0]]:
        raise ValueError("the answers have no scores here, as their task is not installed; leave --wrong out")
    best = max((main(sample, name) for sample in samples for name in known), default=1.0) if wrong else 1.0
    asked = list(methods) or shown

    def wanted(sample: Record) -> bool:
        if every:
            return True
        if wrong:
            return any(main(sample, name) < max(best, 1.0) for name in asked)
        return len({answer(sample, name) for name in shown}) > 1

    return [
        {**sample, "methods": {name: sample["methods"][name] for name in shown}} for sample in samples if wanted(sample)
    ]


def main(sample: Record, name: str) -> float:
    """The main score of a method's answer."""
    return next(iter(sample["methods"][name]["scores"].values()))


def answer(sample: Record, name: str) -> str | int:
    """What a method answered, as it is compared with others: of known text the id of the token."""
    own = sample["methods"][name]
    return own["token"] if "token" in own else own["said"].strip().lower()


def print_samples(samples: Sequence[Record], console: Console | None = None) -> None:
    """Print questions, what was expected and what each method answered.

    Args:
        samples: those that are shown; see `chosen`.
        console: where to; the terminal by default.
    """
    console = console or Console(emoji=False, highlight=False)
    for sample in samples:
        hops = HOPS.get(str(sample["hops"]), f"{sample['hops']} hops")
        unlearned = "" if sample["learned"] else ", not learned"
        console.print(f"{sample['id']}  ({sample['condition']}, {hops}{unlearned})", style="bold", markup=False)
        _line(console, "question", sample.get("question", ""))
        for letter, choice in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", sample.get("choices", ()), strict=False):
            _line(console, f"  {letter}", choice)
        answers = sample["answers"] if "answers" in sample else [sample["answer"]]
        _line(console, "expected", " | ".join(map(_visible, answers)))
        for name, own in sample["methods"].items():
            scores = ", ".join(f"{key} {value:.3g}" for key, value in own.get("scores", {}).items())
            _line(console, name, f"{_visible(own['said'])}  ({scores}{', ' if scores else ''}KL {own['kl']:.3g})")
        console.print()


def _visible(text: str) -> str:
    """A text on one line; what is empty or white space alone in quotation marks."""
    return repr(text) if not text.strip() or text != text.strip() else " ".join(text.split())


def _line(console: Console, name: str, text: str) -> None:
    """A name and a text behind it, wrapped within a terminal's columns and cut after some lines."""
    column = NAME + 2
    lines = textwrap.wrap(text, WIDTH - column - 2, max_lines=LONGEST, placeholder=" …") or [""]
    if len(name) > NAME:
        console.print(f"  {name}", markup=False, soft_wrap=True)
        name = ""
    for line in lines:
        console.print(f"  {name.ljust(column)}{line}".rstrip(), markup=False, soft_wrap=True)
        name = ""
