import re

import numpy as np
import pytest

from eval.smol_vl.words import FACES, HELD_OUT, SIZES
from models.media.typeset import LINE, WORD_GAP, Face, PageError, Piece, drawn, lines, page, piece
from models.ports.smol_vl.boxes import WIDTH, PageFormatError, boxes, edges

TEXT = (
    " It was the \"best\" of times; (numpy.ndarray) x_1 = f(a, b): 'quoted' l|I !? 100% responsibility @#$^&*~`<>/\\ "
    "“curly” ‘too’ … – — {[+-]}"
)
PIECES = [piece(each) for each in re.findall(r" ?[A-Za-z]+| ?[^\sA-Za-z]| ", TEXT)]


@pytest.mark.parametrize("face", [Face(name, size) for name in (*FACES, *HELD_OUT) for size in (SIZES[0], SIZES[-1])])
def test_every_token_of_a_page_is_one_box_in_reading_order(face):
    found = boxes(page(PIECES, face, 300)).reshape(-1, LINE, WIDTH)
    assert len(found) == len(PIECES)
    for box, each in zip(found, PIECES, strict=True):
        image = drawn(face, each.text)
        np.testing.assert_array_equal(box[:, WORD_GAP : WORD_GAP + image.shape[1]], image / np.float32(255))
        assert not box[:, WORD_GAP + image.shape[1] :].any()
        assert box[:, : WORD_GAP - 1].any() != each.apart  # the token before it shows if they are of one word


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (" the", Piece("the", True)),
        ("ing", Piece("ing", False)),
        (" ", Piece("␣", True)),
        ("…", Piece("…", False)),
        ("\n", None),
        ("  ", None),
        ("é", None),
        (" ␣", None),
        ("x" * 17, None),
        ("", None),
    ],
)
def test_tokens_that_can_be_drawn(spelling, expected):
    assert piece(spelling) == expected


def test_a_line_at_the_edge_goes_on_with_the_word_before():
    pieces = [Piece("some", True), Piece("where", False), Piece("there", False), Piece("over", True)]
    placed = lines(pieces, Face(), 90)
    assert [[each.text for _, each in line] for line in placed] == [["some", "where"], ["there", "over"]]
    assert placed[0][0][0] == WORD_GAP
    shown = boxes(page(pieces, Face(), 90)).reshape(-1, LINE, WIDTH)
    assert [bool(box[:, : WORD_GAP - 1].any()) for box in shown] == [False, True, True, False]


def test_a_line_shifted_down_is_read_as_one():
    assert len(boxes(page(PIECES, Face("DejaVuSerif", 12), 300, [1, -1] * 4))) == len(PIECES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: page([]), "at least one token"),
        (lambda: page([Piece("responsibility", True)], Face(), 60), "60 pixels wide; 'responsibility' alone takes"),
        (lambda: Face(size=30), "30 pixels high; expected 9 to 14"),
        (lambda: page(PIECES, Face("Nothing")), "no font 'Nothing'"),
    ],
)
def test_pages_that_cannot_be_drawn_are_refused(make, message):
    with pytest.raises(PageError, match=message):
        make()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((30, 200, 3), 255, np.uint8), "200 x 30 pixels; expected a page of text in lines of 24"),
        (np.full((48, 200, 3), 255, np.uint8), "200 x 48 pixels is blank"),
    ],
)
def test_images_that_are_no_pages_are_refused(image, message):
    with pytest.raises(PageFormatError, match=message):
        boxes(image)


def test_a_token_wider_than_a_box_is_cut():
    image = np.full((24, 400, 3), 255, np.uint8)
    image[8:16, 20:300] = 0
    (box,) = boxes(image).reshape(-1, LINE, WIDTH)
    assert edges(255 - image[:, :, 0]) == [(20, 300)]
    assert box[10, WORD_GAP:].all()
