"""Text typeset as pictures of pages, token by token: lines of proportional type, as in a book.

The tokens of a word stand a little apart, farther than letters and nearer than words, so that whoever looks at the
page can tell where a token ends. A line that begins at the very edge of the page goes on with the word before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

LINE = 24
"""Rows of pixels of a line."""

BASELINE = 17
"""The row of a line that letters stand on."""

INK = 64
"""How dark, of 255, a pixel is that counts as ink."""

LETTER_GAP = 2
"""Blank columns within a token, at most."""

TOKEN_GAP = 4
"""Blank columns between the tokens of a word."""

WORD_GAP = 8
"""Blank columns between words, and before a line, at least."""

SPACE = "␣"
"""What is drawn for a token that is a space alone."""

LETTERS = "".join(map(chr, range(33, 127))) + SPACE + "‘’“”–—…"
"""What can be drawn."""

LONGEST = 16
"""Letters of a token that can be drawn, at most."""


class PageError(ValueError):
    """A text that cannot be drawn as a page."""


@dataclass(frozen=True)
class Piece:
    """A token as it is drawn.

    Attributes:
        text: its letters, all of `LETTERS`; `SPACE` for a space alone.
        apart: whether it begins with a space: it stands apart from the token before it.
    """

    text: str
    apart: bool


@dataclass(frozen=True)
class Face:
    """A typeface in one size.

    Attributes:
        name: a font that comes with matplotlib, such as ``"DejaVuSans"``, or the path of a TrueType file.
        size: in pixels; at most 14, so that letters fit in a line.
    """

    name: str = "DejaVuSans"
    size: int = 12

    def __post_init__(self) -> None:
        if not 9 <= self.size <= 14:
            raise PageError(f"the type is {self.size} pixels high; expected 9 to 14, which fits in lines of {LINE}")


PLAIN = Face()
"""The type of a page where none is asked for."""


def piece(spelling: str) -> Piece | None:
    """The token of this text as it is drawn; None where it cannot be."""
    apart = spelling.startswith(" ")
    text = spelling[1:] if apart else spelling
    if apart and not text:
        text = SPACE
    if not text or len(text) > LONGEST or (SPACE in text and spelling != " ") or not set(text) <= set(LETTERS):
        return None
    return Piece(text, apart)


@lru_cache(maxsize=256)
def _font(face: Face) -> ImageFont.FreeTypeFont:
    path = Path(face.name)
    if not path.is_file():
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face.name}.ttf"
    if not path.is_file():
        raise PageError(f"there is no font {face.name!r}: expected one of matplotlib's, or a TrueType file")
    return ImageFont.truetype(str(path), face.size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def _glyph(face: Face, letter: str) -> tuple[np.ndarray, int, int]:
    """A letter's darkness u8[LINE, w] from its first column of ink to its last, and the blanks before and behind it."""
    font = _font(face)
    if letter == SPACE and not face.name.startswith("DejaVu"):
        font = _font(Face("DejaVuSans", face.size))
    canvas = Image.new("L", (4 * face.size, LINE), 0)
    ImageDraw.Draw(canvas).text((face.size, BASELINE), letter, fill=255, font=font, anchor="ls")
    dark = np.asarray(canvas)
    inked = np.flatnonzero(dark.max(axis=0) >= INK)
    if not len(inked):
        raise PageError(f"the font {face.name} does not draw {letter!r}; choose another one")
    first = int(inked[0])
    last = int(inked[-1])
    behind = face.size + round(font.getlength(letter)) - 1 - last
    return _squeezed(dark[:, first : last + 1]), first - face.size, behind


def _squeezed(dark: np.ndarray) -> np.ndarray:
    """A letter without the blank columns within it that are too many, as between the strokes of a quotation mark."""
    keep = []
    blank = 0
    for column, has in enumerate(dark.max(axis=0) >= INK):
        blank = 0 if has else blank + 1
        if blank <= LETTER_GAP:
            keep.append(column)
    return dark[:, keep]


@lru_cache(maxsize=65536)
def drawn(face: Face, text: str) -> UInt8[np.ndarray, "24 W"]:
    """The darkness of a token, from its first column of ink to its last.

    Raises:
        PageError: the font lacks a letter.
    """
    glyphs = [_glyph(face, letter) for letter in text]
    parts = [glyphs[0][0]]
    for (_, _, behind), (dark, before, _) in zip(glyphs, glyphs[1:], strict=False):
        gap = min(max(behind + before, 1), LETTER_GAP)
        parts += [np.zeros((LINE, gap), np.uint8), dark]
    return np.concatenate(parts, axis=1)


def lines(pieces: Sequence[Piece], face: Face, width: int) -> list[list[tuple[int, Piece]]]:
    """Where the tokens stand: for each line, the column where each begins.

    A word that does not fit stands in the next line; one wider than a line is broken between its tokens.

    Raises:
        PageError: the page is too narrow for a token.
    """
    words: list[list[Piece]] = []
    for each in pieces:
        if each.apart or not words:
            words.append([])
        words[-1].append(each)
    placed: list[list[tuple[int, Piece]]] = []
    end = width + 1  # of the ink of the line so far
    for word in words:
        widths = [drawn(face, each.text).shape[1] for each in word]
        whole = sum(widths) + TOKEN_GAP * (len(widths) - 1)
        start = end + WORD_GAP
        if start + whole + WORD_GAP > width:
            placed.append([])
            start = WORD_GAP if word[0].apart else TOKEN_GAP
        for each, wide in zip(word, widths, strict=True):
            if start + wide > width:
                if not placed[-1] or wide + TOKEN_GAP > width:
                    raise PageError(f"the page is {width} pixels wide; {each.text!r} alone takes {wide}")
                placed.append([])
                start = TOKEN_GAP
            placed[-1].append((start, each))
            end = start + wide
            start = end + TOKEN_GAP
    return placed


def page(
    pieces: Sequence[Piece], face: Face = PLAIN, width: int = 480, wobble: Sequence[int] = ()
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a page, black on white.

    Args:
        pieces: its tokens.
        face: the type.
        width: in pixels; the height is what the text takes.
        wobble: rows by which each line is shifted down; none by default.

    Raises:
        PageError: there is no text, or it cannot be drawn.
    """
    if not pieces:
        raise PageError("a page needs at least one token")
    placed = lines(pieces, face, width)
    dark = np.zeros((LINE * len(placed), width), np.uint8)
    for number, line in enumerate(placed):
        strip = dark[LINE * number : LINE * (number + 1)]
        for start, each in line:
            image = drawn(face, each.text)
            strip[:, start : start + image.shape[1]] = image
        if number < len(wobble) and wobble[number]:
            strip[:] = np.roll(strip, wobble[number], axis=0)
    return np.repeat(255 - dark[:, :, None], 3, axis=2)
