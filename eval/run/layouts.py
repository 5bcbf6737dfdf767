"""The contexts of a run by layout, drawn, and whether they fit the window."""

from collections.abc import Iterator, Sequence
from typing import Any

from eval.tasks import Context, InvalidTaskError, Outline, Task
from eval.tasks.tokens import segment_of
from kamera_jax.backbone import Backbone
from kamera_jax.window.window import aligned


class ContextTooLongError(ValueError):
    """A context that does not fit the window."""


def of(task: Task, outlines: Sequence[Outline]) -> dict[str, list[Outline]]:
    """Outlines by layout, in the order of their first ones."""
    layouts: dict[str, list[Outline]] = {}
    known = set()
    for outline in outlines:
        if outline.context in known:
            raise InvalidTaskError(f"the task {task.name} has two contexts with the id {outline.context!r}")
        known.add(outline.context)
        layouts.setdefault(outline.layout, []).append(outline)
    if not layouts:
        raise InvalidTaskError(f"the task {task.name} has no contexts for these seeds and this limit")
    return layouts


def drawn(task: Task, group: Sequence[Outline]) -> list[Context]:
    """The contexts of a group, which have equally many items and questions."""
    drawn = [task.draw(outline) for outline in group]
    for outline, context in zip(group, drawn, strict=True):
        if len(context.items) < 2 or not context.questions:
            raise InvalidTaskError(
                f"context {outline.context!r} of the task {task.name} has {len(context.items)} items and "
                f"{len(context.questions)} questions; expected at least two items, as reuse is measured on those "
                "behind the first, and one question"
            )
        counts = [(len(each.items), len(each.questions)) for each in (drawn[0], context)]
        if counts[0] != counts[1]:
            raise InvalidTaskError(
                f"contexts {group[0].context!r} and {outline.context!r} of the task {task.name} have the layout "
                f"{outline.layout!r}, and {counts[0][0]} and {counts[1][0]} items, {counts[0][1]} and {counts[1][1]} "
                "questions; give contexts that differ in that layouts of their own"
            )
        if task.max_new_tokens > 1 and any(question.tail for question in context.questions):
            raise InvalidTaskError(
                f"context {outline.context!r} of the task {task.name} has questions with a known tail, and the task's "
                f"max_new_tokens is {task.max_new_tokens}; what follows a known tail is read off its logits: set it to "
                "1, or ask questions as texts"
            )
    return drawn


def groups(outlines: Sequence[Outline], size: int) -> Iterator[list[Outline]]:
    """Outlines in groups of at most so many, in order."""
    for start in range(0, len(outlines), size):
        yield list(outlines[start : start + size])


def slots(vlm: Backbone, task: Task, outline: Outline) -> tuple[int, int]:
    """Slots that the preamble and the chunks of a context take, and those that they take with its history."""
    (context,) = drawn(task, [outline])

    def taken(items: Sequence[Any]) -> int:
        return sum(aligned(int(segment_of(vlm, item).length)) for item in items)

    own = aligned(int(vlm.preamble.length)) + taken(context.items)
    return own, own + taken(context.history)


def check_fits(context: str, needed: int, capacity: int | None) -> None:
    """Raise ContextTooLongError if a context takes more slots than the window has; None: it has as many as it takes."""
    if capacity is not None and needed > capacity:
        raise ContextTooLongError(
            f"sample {context} takes {needed} slots with the preamble, the window has {capacity}; raise --capacity, or "
            "leave it out for a window that fits the longest"
        )
