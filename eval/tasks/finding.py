"""What a task finds in a run's scores; a verdict on figures that are not there, or on nothing, is no verdict."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    holds: bool | None

    def __post_init__(self) -> None:
        """Take back a verdict that says nothing; refuse one that is neither true nor false."""
        holds: Any = self.holds
        if holds is not None and not (isinstance(holds, bool) or type(holds).__name__ in ("bool_", "bool")):
            raise ValueError(
                f"whether {self.claim!r} holds is {holds!r}; expected True, False, or None for what was not measured"
            )
        if lacks_figures(self.measured):
            object.__setattr__(self, "measured", NOT_MEASURED)
            holds = None
        elif holds is not None and compares_nothing(self.measured):
            of_zero = any(float(each[1] or 0) != 0 for each in _OF.finditer(self.measured))
            why = "no verdict, as what it is compared with is 0"
            object.__setattr__(self, "measured", f"{why}: {self.measured}" if of_zero else why)
            holds = None
        object.__setattr__(self, "holds", None if holds is None else bool(holds))


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
