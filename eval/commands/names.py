"""Names and rows as terminals show them: within so many columns, and without what would steer a terminal."""

import re

from rich.cells import cell_len

from eval.commands import streams
from eval.commands.arguments import EMBEDDED

COLUMNS = 80

PLACE = re.compile(r", (page [0-9]+|[0-9.e+-]+ s)$")
"""Where in a file an item is, at the end of its name."""
_MARK = "…"


def printable(text: str) -> str:
    """A text of one line, whatever a file's name holds."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shortened(name: str, columns: int) -> str:
    """A name within some columns of a terminal: cut in the middle of the file's name, never in its page.

    Args:
        name: as ``report.pdf, page 12``.
        columns: at least enough for the page.
    """
    name = printable(name)
    if (len(name) if name.isascii() else cell_len(name)) <= columns:
        return name
    place = PLACE.search(name)
    tail = "" if place is None else place.group()
    file = name.removesuffix(tail)
    room = max(columns - cell_len(tail) - cell_len(_MARK), 0)
    head = _leading(file, room // 3)
    return head + _MARK + _leading(file[::-1], room - cell_len(head))[::-1] + tail


def _leading(text: str, columns: int) -> str:
    """The beginning of a text that fits."""
    taken = 0
    for place, letter in enumerate(text):
        taken += cell_len(letter)
        if taken > columns:
            return text[:place]
    return text


def slug(name: str) -> str:
    """A name as a part of a folder's: letters, digits and what stands in them, at most 60."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:60] or "run"


def note_embedded(model: str) -> None:
    """Say on standard error that an embedded model is a toy, where it is one that is used."""
    if model.startswith(EMBEDDED):
        streams.note("The embedded model knows only its own pages of coloured glyphs: it was trained on nothing else.")
