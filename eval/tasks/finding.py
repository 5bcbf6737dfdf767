"""What a task finds in a run's scores; a verdict on figures that are not there, or on nothing, is no verdict."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NOT_MEASURED = "not measured: the run lacks the questions or the methods that it takes"

_MISSING = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?![A-Za-z])", re.IGNORECASE)
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_OF = re.compile(rf"(?:({_NUMBER})\s*%?\s*(?:\([^()]*\)\s*)?)?\bof\s+({_NUMBER})", re.IGNORECASE)
_AGAINST = re.compile(rf"({_NUMBER})\s*%?\s*(?:\([^()]*\)\s*)?against\s+({_NUMBER})", re.IGNORECASE)


def lacks_figures(measured: str) -> bool:
    """Whether a text about what was measured has a figure that is none (NaN, infinity)."""
    return _MISSING.search(measured) is not None


def compares_nothing(measured: str) -> bool:
    """Whether a text about what was measured compares with nothing: ``0.4 of 0.000``, or ``0.0 against 0.0``."""
    return any(float(each[2]) == 0 for each in _OF.finditer(measured)) or any(
        float(each[1]) == float(each[2]) == 0 for each in _AGAINST.finditer(measured)
    )


def judged(measured: str, holds: Any, missing: str = NOT_MEASURED) -> tuple[str, bool | None]:
    """What was measured and whether a statement holds, after verdicts that say nothing are taken back.

    Args:
        measured: the figures, in words.
        holds: the verdict; None where there is none.
        missing: stands in place of figures of which one is none.

    Raises:
        ValueError: the verdict is neither true nor false.
    """
    if lacks_figures(measured):
        return missing, None
    if holds is None:
        return measured, None
    if not isinstance(holds, (bool, np.bool_)):
        raise ValueError(f"whether {measured!r} is as claimed is {holds!r}; expected True, False or None")
    if not compares_nothing(measured):
        return measured, bool(holds)
    why = "no verdict, as what it is compared with is 0"
    tells = any(float(each[1] or 0) != 0 for each in _OF.finditer(measured))
    return (f"{why}: {measured}" if tells else why), None


@dataclass(frozen=True)
class Finding:
    """A statement about a task's scores, and what was measured.

    A verdict needs figures: where ``measured`` has a NaN, or compares with nothing (``0.000 of 0.000``), ``holds``
    becomes None and ``measured`` says why.

    Attributes:
        claim: the statement, with its bound.
        measured: the figures it is about, in words.
        holds: whether it is true of them; None where it is no claim, or the run lacks what it takes.
    """

    claim: str
    measured: str
    holds: bool | np.bool_ | None

    def __post_init__(self) -> None:
        """Take back a verdict that says nothing; refuse one that is neither true nor false."""
        measured, holds = judged(self.measured, self.holds)
        object.__setattr__(self, "measured", measured)
        object.__setattr__(self, "holds", holds)


def findings_of(task: Any, scores: Mapping[str, Any]) -> list[Finding]:
    """What a task finds in a run's scores; whatever it raises is said in a finding of its own.

    Args:
        task: see `eval.tasks.Task`; ``findings`` may return a sequence, or yield them, so that those before a failing
            one are kept.
        scores: what ``results.json`` has under ``scores``.
    """
    made: list[Finding] = []
    try:
        for each in task.findings(scores) or ():
            if not isinstance(each, Finding):
                raise TypeError(f"{each!r} is no eval.tasks.Finding")
            made.append(each)
    except (LookupError, ArithmeticError) as error:
        what = f"the run has no {error}" if isinstance(error, LookupError) else str(error)
        made.append(Finding(_further(task, made), f"not measured: {what}", None))
    except Exception as error:
        made.append(Finding(_further(task, made), f"they could not be made ({type(error).__name__}: {error})", None))
    return made


def _further(task: Any, made: Sequence[Finding]) -> str:
    return f"{'further ' if made else ''}findings of the task {task.name}"
