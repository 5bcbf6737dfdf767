"""Tasks by name: built in, from an entry point, or as ``module:name``."""

from difflib import get_close_matches

from eval.tasks.base import Context, InvalidTaskError, Outline, Question, Task, check_task, for_model
from eval.tasks.binding import Binding
from eval.tasks.finding import Finding, findings_of
from eval.tasks.plugins import Group, PluginError, constructed
from eval.tasks.published.docqa import TwoPageDocQA
from eval.tasks.published.gui import AgentNetBench, ScreenSpot
from eval.tasks.published.milebench import MileBenchTemporal
from eval.tasks.published.mm_niah import MMNiah
from eval.tasks.published.musique import Musique
from eval.tasks.published.scbench import SCBench
from eval.tasks.published.video import EgoSchema, StreamingBench, VideoMME
from eval.tasks.settings import with_settings
from eval.tasks.text.continuation import Continuation, NeedsContext
from eval.tasks.text.induction import Induction
from eval.tasks.text.moving import Orders, Recall, Slide
from eval.tasks.text.page_break import PageBreak
from eval.tasks.text.quotation import Quotation
from eval.tasks.text.seen import SeenPageBreak, SeenQuotation

__all__ = [
    "GROUP",
    "TASKS",
    "Context",
    "Finding",
    "InvalidTaskError",
    "Outline",
    "PluginError",
    "Question",
    "Task",
    "UnknownTaskError",
    "findings_of",
    "for_model",
    "get",
]

# Published tasks count their contexts when they are asked, by a property.
BUILTIN: tuple[Task, ...] = (  # pyright: ignore[reportAssignmentType]
    Binding(),
    Continuation(),
    Quotation(),
    PageBreak(),
    NeedsContext(),
    Induction(),
    Orders(),
    Slide(),
    Recall(),
    SeenQuotation(),
    SeenPageBreak(),
    MMNiah(),
    TwoPageDocQA(),
    MileBenchTemporal(),
    VideoMME(),
    EgoSchema(),
    StreamingBench(),
    SCBench(),
    Musique(),
    ScreenSpot(),
    AgentNetBench(),
)

TASKS: dict[str, Task] = {task.name: task for task in BUILTIN}
"""The built-in tasks by name."""

RESERVED = frozenset({"report", "samples", "claims", "suite", "leaderboard"})
"""Names that no task can have: the command line means something else by them."""

GROUP = Group("task", "kamera_jax.tasks", {*TASKS, *RESERVED})
"""Tasks of installed packages."""


class UnknownTaskError(ValueError):
    """A name that no task has."""


def get(name: str) -> Task:
    """The task of that name.

    Args:
        name: of a built-in task, of an entry point in the group ``kamera_jax.tasks``, or ``module:name``: a class or
            function that is called without arguments, or an object. Settings of a built-in task stand behind a colon,
            as in ``continuation:tokens=256,corpus=docstrings``.

    Raises:
        UnknownTaskError: there is none; the nearest name is suggested.
        PluginError: it comes from another package, and cannot be found or imported; or two packages use its name.
        InvalidTaskError: what is found is no task; the missing members are named.
        SettingError: the task has no such setting, or the setting no such value.
    """
    kind, given, settings = name.partition(":")
    if kind in TASKS and given:
        return with_settings(get(kind), settings)
    value = GROUP.find(name)  # before the built-in ones, so that a name that is used twice is an error
    if value is not None:
        source = f"the task {name!r}"
        return check_task(constructed(value, source), source)
    if name not in TASKS:
        names = [*TASKS, *GROUP.declared()]
        near = get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownTaskError(
            f"no task {name!r}{hint} There are {', '.join(names)}, and those of your own, as module:Name"
        )
    return TASKS[name]
