"""Glyphs differ from each other, every cell has one id and one picture, and a page is exactly its cells."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from eval.tiny import pages
from eval.tiny.glyphs import COLOUR_NAMES, COLOURS, GLYPHS, NAMES


def test_names():
    assert len(NAMES) == len(set(NAMES)) == 48
    assert len(COLOUR_NAMES) == len(set(COLOUR_NAMES)) == 8
    assert not set(NAMES) & set(COLOUR_NAMES)
    assert all(name.isascii() and name.isalpha() and name.islower() for name in NAMES + COLOUR_NAMES)


def test_glyphs_differ():
    assert all(bitmap.shape == (7, 7) and bitmap.dtype == bool for _, bitmap in GLYPHS)
    for (a, left), (b, right) in combinations(GLYPHS, 2):
        assert (left != right).sum() >= 6, (a, b)


def test_colours_differ():
    for (a, left), (b, right) in combinations((*COLOURS, ("paper", (252, 252, 250)), ("ink", (36, 36, 40))), 2):
        assert np.linalg.norm(np.subtract(left, right)) >= 90, (a, b)


def test_ids():
    assert (pages.CELL, pages.BACKGROUNDS, pages.N_CELLS) == (28, 8, 8 + 48 * 8 + 48 * 48)
    facts = [pages.fact(g, c) for g in range(48) for c in range(8)]
    references = [pages.reference(s, t) for s in range(48) for t in range(48)]
    assert facts + references == list(range(8, pages.N_CELLS))
    assert pages.fact(np.int64(2), np.int32(3)) == 8 + 2 * 8 + 3


def test_parse_inverts():
    assert pages.parse(3) == ("background", 3, 0)
    assert pages.parse(pages.fact(5, 7)) == ("fact", 5, 7)
    assert pages.parse(pages.reference(47, 1)) == ("reference", 47, 1)


def test_describe():
    star = NAMES.index("star")
    moon = NAMES.index("moon")
    red = COLOUR_NAMES.index("red")
    assert pages.describe(pages.fact(star, red)) == "red star"
    assert pages.describe(pages.reference(star, moon)) == "star → moon"
    assert pages.describe(3) == "background 3"


def test_every_cell_has_its_own_picture():
    cells = pages.all_cells()
    assert cells.shape == (pages.N_CELLS, 28, 28, 3) and cells.dtype == np.uint8
    assert len({cell.tobytes() for cell in cells}) == pages.N_CELLS
    assert not cells.flags.writeable and not pages.cell_pixels(0).flags.writeable


def test_pictures_show_what_they_say():
    glyph = 11
    colour = 4
    drawn = (pages.cell_pixels(pages.fact(glyph, colour)) == COLOURS[colour][1]).all(-1)
    np.testing.assert_array_equal(drawn[4:25, 4:25], np.kron(GLYPHS[glyph][1], np.ones((3, 3), bool)))
    assert drawn.sum() == 9 * GLYPHS[glyph][1].sum()

    dark = pages.cell_pixels(pages.reference(5, 9)).max(-1) < 64
    np.testing.assert_array_equal(dark[:14, :14], np.kron(GLYPHS[5][1], np.ones((2, 2), bool)))
    np.testing.assert_array_equal(dark[14:, 14:], np.kron(GLYPHS[9][1], np.ones((2, 2), bool)))
    assert not dark[:14, 14:].any() and not dark[14:, :14].any()

    for background in range(pages.BACKGROUNDS):
        pixels = pages.cell_pixels(background)
        assert (pixels == pixels[..., :1]).all() and np.ptp(pixels) < 20


def test_render_is_its_cells():
    cells = np.random.default_rng(0).integers(0, pages.N_CELLS, (6, 8))
    image = pages.render(cells)
    assert image.mode == "RGB" and image.size == (8 * 28, 6 * 28)
    tiles = np.asarray(image).reshape(6, 28, 8, 28, 3).transpose(0, 2, 1, 3, 4)
    np.testing.assert_array_equal(tiles, pages.all_cells()[cells])


def test_pictures_are_stable():
    # The shipped vision tower was trained on these pixels.
    assert hashlib.sha256(pages.all_cells().tobytes()).hexdigest()[:16] == "b3884f70fd95ac78"


@pytest.mark.parametrize(
    "call",
    [
        lambda: pages.fact(48, 0),
        lambda: pages.fact(0, 8),
        lambda: pages.fact(-1, 0),
        lambda: pages.reference(0, 48),
        lambda: pages.describe(pages.N_CELLS),
        lambda: pages.cell_pixels(-1),
        lambda: pages.render(np.array([[pages.N_CELLS]])),
        lambda: pages.render(np.arange(4)),
        lambda: pages.render(np.zeros((0, 4), int)),
        lambda: pages.render(np.zeros((2, 2))),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(ValueError, match="expected"):
        call()
