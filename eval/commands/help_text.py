"""How help is laid out: words stay whole, and examples stand on lines of their own."""

import argparse
import re


class HelpFormatter(argparse.HelpFormatter):
    """Help whose lines break at spaces alone, and within lists that are longer than a line behind commas.

    Line breaks of a description and an epilog are kept, and so is what a line is indented by.
    """

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            own = indent + " " * (len(line) - len(line.lstrip()))
            lines += [own + each for each in wrapped(line, width - len(own))] or [""]
        return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most so many letters, as far as words are not longer."""
    lines: list[str] = []
    for word in text.split():
        pieces = re.findall(r"[^,]*,|[^,]+", word) if len(word) > width else [word]
        for number, piece in enumerate(pieces):
            gap = "" if number else " "
            if lines and len(lines[-1]) + len(gap) + len(piece) <= width:
                lines[-1] += gap + piece
            else:
                lines.append(piece)
    return lines
