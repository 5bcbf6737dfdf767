"""Where a text may be cut into pieces that keep its token ids, and where it had better not end."""

import re
import sys
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import kamera_jax

TRIES = 256
"""Borders that are tried in a row, at most, before a text counts as one that cannot be cut there."""

_END = 64
"""Letters at the end of a text that say whether its last token depends on what follows."""

_OURS = (*map(str, kamera_jax.__path__), str(Path(__file__).parents[1]), "<@beartype")
"""How the names of files begin that a warning does not point to."""


_WARNED: set[tuple[str, int]] = set()
"""Places that were warned of once and for all: file and line."""


class TrailingSpaceWarning(UserWarning):
    """A text ends in white space that the tokenizer would join to a word that follows."""


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
        text: its letters.
        ids: its token ids: those that it has within the whole text.
    """

    text: str
    ids: list[int]


def ends_open(text: str, ids: Callable[[str], list[int]]) -> bool:
    """Whether a text ends in white space that a word which follows would be joined to, by its token ids."""
    if not text[-1:].isspace():
        return False
    end = text[-_END:]
    alone = ids(end)
    return ids(f"{end}a")[: len(alone)] != alone


def warn_of_trailing_space() -> None:
    """Warn of a text that ends in white space, where the project was called: once for each such place."""
    warn_caller(
        "the text ends in white space, which the tokenizer joins to a word that follows; where the next text begins "
        "with that word, the token ids of both are not those of the whole text: move the white space to the beginning "
        "of the next text, or let kamera_jax.encode_all cut the whole",
        TrailingSpaceWarning,
        once=True,
    )


def warn_caller(message: str, category: type[Warning], *, once: bool = False) -> None:
    """Warn where the project was called, by Python's own rules; ``once``: not again at a place, whatever these say.

    Python's own registry of places is forgotten whenever filters change, as they do within JAX.
    """
    frame: FrameType = sys._getframe()
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    place = (frame.f_code.co_filename, frame.f_lineno)
    if once and place in _WARNED:
        return
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=None if once else frame.f_globals.setdefault("__warningregistry__", {}),
    )
    if once:
        _WARNED.add(place)  # unless it was made an error


def _is_ours(frame: FrameType) -> bool:
    """Whether it is the project's, or of what checks its annotations."""
    return frame.f_code.co_filename.startswith(_OURS) or frame.f_globals.get("__name__", "").startswith("jaxtyping.")


def pieces(text: str, whole: Sequence[int], ids: Callable[[str], list[int]], tokens: int) -> list[Piece]:
    """A text in pieces of at most so many tokens, cut at its natural borders.

    A piece ends before a paragraph break, if there is one in its second half; else before white space, and of a word
    that is longer than a piece, within it. Where the tokenizer joins a line break to what stands before it, the piece
    ends behind it. No border changes a token id: the pieces' ids in a row are those of the whole, and each piece's are
    those that it has alone. What cannot be cut so is longer.

    Args:
        text: what is cut; the pieces in a row are this text.
        whole: its token ids; what they have behind those of the text comes to the last piece.
        ids: gives the token ids of a part of it.
        tokens: at most so many in a piece.
    """
    runs = [match.span() for match in re.finditer(r"\s+", text)]
    done = []
    start = 0
    first = 0
    while len(whole) - first > tokens:
        end, count = _Search(text, runs, start, whole, first, ids, tokens).border()
        if end == len(text):
            break
        done.append(Piece(text[start:end], list(whole[first : first + count])))
        start = end
        first += count
    return [*done, Piece(text[start:], list(whole[first:]))]


class _Search(NamedTuple):
    """For the end of one piece.

    Attributes:
        text: the whole text.
        runs: where its runs of white space begin and end.
        start: where the piece begins.
        whole: token ids of the whole text.
        first: of the piece, among them.
        ids: see `pieces`.
        tokens: of the piece, at most.
    """

    text: str
    runs: Sequence[tuple[int, int]]
    start: int
    whole: Sequence[int]
    first: int
    ids: Callable[[str], list[int]]
    tokens: int

    def border(self) -> tuple[int, int]:
        """Where the piece ends, and how many tokens it has; the text's end if it cannot be cut behind ``start``."""
        reach = self._reach()
        for end in self._within(reach):
            if 0 < (count := self._count(end)) <= self.tokens:
                return end, count
        for end in self._beyond(reach):
            if count := self._count(end):
                return end, count
        return len(self.text), len(self.whole) - self.first

    def _count(self, end: int) -> int:
        """How many tokens the piece has if it ends there; 0 if their ids are others than in the whole text."""
        own = self.ids(self.text[self.start : end])
        return len(own) if list(self.whole[self.first : self.first + len(own)]) == own else 0

    def _reach(self) -> int:
        """How far the piece may go, in the text, to have no more tokens than it may; not to the text's end."""
        longest = len(self.text) - 1
        step = 1 + self.tokens * (len(self.text) - self.start) // (len(self.whole) - self.first)
        fits = self.start
        not_fits = self.start + step
        while not_fits <= longest and self._fits(not_fits):
            fits = not_fits
            step *= 2
            not_fits += step
        not_fits = min(not_fits, longest + 1)
        while not_fits - fits > 1:
            middle = (fits + not_fits) // 2
            if self._fits(middle):
                fits = middle
            else:
                not_fits = middle
        return fits

    def _fits(self, end: int) -> bool:
        return len(self.ids(self.text[self.start : end])) <= self.tokens

    def _within(self, reach: int) -> Iterator[int]:
        """Borders up to ``reach``, the best first."""
        later = bisect_right(self.runs, (self.start, len(self.text)))
        runs = self.runs[later : bisect_right(self.runs, (reach, len(self.text)))]
        middle = (self.start + reach) / 2
        yield from self._around([run for run in runs if run[0] >= middle and self._breaks(run) > 1])
        yield from self._around(runs)
        yield from range(reach, max(self.start, reach - TRIES), -1)

    def _around(self, runs: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Before each run of white space, the last first; and then behind it, where it holds a line break."""
        for run in runs[: -TRIES - 1 : -1]:
            yield run[0]
            if self._breaks(run) and run[1] < len(self.text):
                yield run[1]

    def _breaks(self, run: tuple[int, int]) -> int:
        """Line breaks in a run of white space."""
        return len(f"{self.text[run[0] : run[1]]}.".splitlines()) - 1

    def _beyond(self, reach: int) -> Iterator[int]:
        """Borders of a piece that has more tokens than it may, the nearest first."""
        longest = len(self.text) - 1
        yield from range(reach + 1, min(longest, reach + TRIES) + 1)
        later = bisect_right(self.runs, (reach + TRIES, len(self.text)))
        yield from (run[0] for run in self.runs[later : later + TRIES])
