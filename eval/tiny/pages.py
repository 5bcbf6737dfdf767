"""Cells of 28 x 28 pixels, each one language-model token, and the pages they are laid out on.

A *fact* shows a glyph in its colour; a *reference* shows a source glyph, an arrow and a target glyph; a *background*
says nothing. Every cell there can be has one integer id: a page is an integer array, and its image a table look-up.
"""

from functools import cache
from operator import index
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from eval.tiny.glyphs import COLOUR_NAMES, COLOURS, GLYPHS, NAMES, SIZE
from kamera_jax.items import Video

CELL = 28
"""Side of a cell in pixels: a 14-pixel patch, merged 2 x 2, is one token."""

BACKGROUNDS = 8
"""How many backgrounds there are: ids 0..7."""

_FIRST_FACT = BACKGROUNDS
_FIRST_REFERENCE = _FIRST_FACT + len(NAMES) * len(COLOURS)

N_CELLS = _FIRST_REFERENCE + len(NAMES) ** 2
"""How many cells there are: 8 backgrounds, 48 x 8 facts, 48 x 48 references."""

PADDING = N_CELLS
"""The id of what stands around a page that is padded to a square; no page has such a cell of its own."""

_PAPER = (252, 252, 250)
_EDGE = (226, 226, 226)
_INK = (36, 36, 40)
_ARROW = (150, 150, 156)
_GREY = 228
_SHADE = 214

Kind = Literal["background", "fact", "reference"]


def fact(glyph: SupportsIndex, colour: SupportsIndex) -> int:
    """The id of the cell that shows a glyph in a colour.

    Args:
        glyph: index into `NAMES`.
        colour: index into `COLOUR_NAMES`.
    """
    g = _index("glyph", glyph, len(NAMES))
    c = _index("colour", colour, len(COLOURS))
    return _FIRST_FACT + g * len(COLOURS) + c


def reference(source: SupportsIndex, target: SupportsIndex) -> int:
    """The id of the cell that points from one glyph to another.

    Args:
        source: index into `NAMES`, the glyph that is explained.
        target: index into `NAMES`, the glyph it points to.
    """
    s = _index("source glyph", source, len(NAMES))
    t = _index("target glyph", target, len(NAMES))
    return _FIRST_REFERENCE + s * len(NAMES) + t


def parse(cell: SupportsIndex) -> tuple[Kind, int, int]:
    """The inverse of `fact` and `reference`: the kind of a cell and its two indices.

    Returns:
        `("fact", glyph, colour)`, `("reference", source, target)` or `("background", index, 0)`.
    """
    i = _index("cell id", cell, N_CELLS)
    if i >= _FIRST_REFERENCE:
        return "reference", *divmod(i - _FIRST_REFERENCE, len(NAMES))
    if i >= _FIRST_FACT:
        return "fact", *divmod(i - _FIRST_FACT, len(COLOURS))
    return "background", i, 0


def describe(cell: SupportsIndex) -> str:
    """A cell in words: `"red star"`, `"star → moon"` or `"background 3"`."""
    kind, first, second = parse(cell)
    if kind == "fact":
        return f"{COLOUR_NAMES[second]} {NAMES[first]}"
    if kind == "reference":
        return f"{NAMES[first]} → {NAMES[second]}"
    return f"background {first}"


@cache
def cell_pixels(cell: SupportsIndex) -> UInt8[np.ndarray, "28 28 3"]:
    """The picture of one cell.

    Args:
        cell: a cell id.

    Returns:
        uint8[28, 28, 3], read-only.
    """
    kind, first, second = parse(cell)
    if kind == "fact":
        image = _fact_image(first, second)
    elif kind == "reference":
        image = _reference_image(first, second)
    else:
        image = _background_image(first)
    pixels = np.array(image)
    pixels.flags.writeable = False
    return pixels


@cache
def all_cells() -> UInt8[np.ndarray, "N 28 28 3"]:
    """The pictures of all cells, by id.

    Returns:
        uint8[N_CELLS, 28, 28, 3], read-only.
    """
    pixels = np.stack([cell_pixels(cell) for cell in range(N_CELLS)])
    pixels.flags.writeable = False
    return pixels


def render(cells: np.ndarray) -> Image.Image:
    """The image of a page.

    Args:
        cells: int[H, W], cell ids by row and column.

    Returns:
        An RGB image, 28·W wide and 28·H high. Every cell keeps exactly its own pixels.
    """
    cells = np.asarray(cells)
    if cells.ndim != 2 or cells.size == 0 or not np.issubdtype(cells.dtype, np.integer):
        raise ValueError(
            f"a page is {cells.dtype}{list(cells.shape)}; expected a non-empty integer array [rows, columns]; "
            "give the cell ids as a table, one row of cells per row"
        )
    return Image.fromarray(np.vstack([np.hstack([cell_pixels(int(cell)) for cell in row]) for row in cells]))


FRAMES = 2
"""Frames of a video for each moment: one temporal patch of the vision tower."""

SECONDS = 1.0
"""How long a moment is shown."""


def render_video(cells: np.ndarray) -> Video:
    """The video of a segment.

    Args:
        cells: int[M, H, W], cell ids by moment, row and column.

    Returns:
        `FRAMES` equal frames for each moment, a second long; times begin at 0.
    """
    frames = np.repeat([np.asarray(render(moment)) for moment in cells], FRAMES, axis=0)
    return Video(frames, SECONDS / FRAMES * np.arange(len(frames)))


def shown(cells: np.ndarray) -> Image.Image | Video:
    """The image of a page [H, W], or the video of a segment [M, H, W]."""
    return render(cells) if cells.ndim == 2 else render_video(cells)


def _index(what: str, value: SupportsIndex, count: int) -> int:
    i = index(value)
    if not 0 <= i < count:
        raise ValueError(
            f"{what} {i} does not exist; expected 0..{count - 1}; "
            "build cell ids with `fact` and `reference`, from indices into `NAMES` and `COLOUR_NAMES`"
        )
    return i


def _sheet() -> Image.Image:
    image = Image.new("RGB", (CELL, CELL), _PAPER)
    ImageDraw.Draw(image).rectangle((0, 0, CELL - 1, CELL - 1), outline=_EDGE)
    return image


def _stamp(image: Image.Image, glyph: int, scale: int, corner: int, colour: tuple[int, int, int]) -> None:
    mask = Image.fromarray(GLYPHS[glyph][1].astype(np.uint8) * 255)
    mask = mask.resize((SIZE * scale, SIZE * scale), Image.Resampling.NEAREST)
    image.paste(colour, (corner, corner), mask)


def _fact_image(glyph: int, colour: int) -> Image.Image:
    image = _sheet()
    _stamp(image, glyph, 3, (CELL - 3 * SIZE + 1) // 2, COLOURS[colour][1])
    return image


def _reference_image(source: int, target: int) -> Image.Image:
    image = _sheet()
    # Round the corner, from the right of the source to the top of the target: a diagonal would be hidden between them.
    draw = ImageDraw.Draw(image)
    draw.rectangle((16, 5, 21, 6), fill=_ARROW)
    draw.rectangle((20, 5, 21, 8), fill=_ARROW)
    draw.rectangle((18, 9, 23, 9), fill=_ARROW)
    draw.rectangle((19, 10, 22, 10), fill=_ARROW)
    draw.rectangle((20, 11, 21, 11), fill=_ARROW)
    _stamp(image, source, 2, 0, _INK)
    _stamp(image, target, 2, CELL // 2, _INK)
    return image


def _background_image(number: int) -> Image.Image:
    y, x = np.indices((CELL, CELL))
    textures = (
        np.zeros_like(x, bool),
        np.ones_like(x, bool),
        y % 4 == 0,
        x % 4 == 0,
        (x + y) % 7 == 0,
        (x - y) % 7 == 0,
        (x % 4 == 1) & (y % 4 == 1),
        (x // 7 + y // 7) % 2 == 0,
    )
    return Image.fromarray(np.where(textures[number], _SHADE, _GREY).astype(np.uint8)).convert("RGB")
