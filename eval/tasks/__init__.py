"""What is asked: tasks by name."""

from difflib import get_close_matches

from eval.tasks.base import Context, Outline, Question, Task
from eval.tasks.binding import Binding

__all__ = ["TASKS", "Context", "Outline", "Question", "Task", "UnknownTaskError", "get"]

TASKS: dict[str, Task] = {task.name: task for task in (Binding(),)}
"""By name; a new task joins here."""


class UnknownTaskError(ValueError):
    """A task that there is not."""


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownTaskError: there is none; the nearest name is suggested.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownTaskError(f"no task {name!r}{hint} There are {', '.join(TASKS)}")
    return TASKS[name]
