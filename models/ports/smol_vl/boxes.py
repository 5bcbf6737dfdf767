"""A page of text cut into its tokens: strips of one line each, parted where columns are blank."""

import numpy as np
from jaxtyping import Float32, UInt8

from models.media.images import ImageError
from models.media.typeset import INK, LETTER_GAP, LINE, WORD_GAP

WIDTH = 128
"""Columns of a box: what stands before the token (`WORD_GAP` of them), the token, and blanks."""


MAX_BOXES = 2**14
"""Tokens of a page, at most: more than the model reads in one text."""


class PageFormatError(ImageError):
    """An image that is no page of lines of text."""


def edges(strip: UInt8[np.ndarray, "24 W"]) -> list[tuple[int, int]]:
    """Where the tokens of a line begin and end: ink with no more than `LETTER_GAP` blank columns in a row."""
    inked = np.flatnonzero(strip.max(axis=0) >= INK)
    if not len(inked):
        return []
    borders = np.flatnonzero(np.diff(inked) > LETTER_GAP + 1)
    starts = inked[np.concatenate([[0], borders + 1])]
    ends = inked[np.concatenate([borders, [len(inked) - 1]])] + 1
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def boxes(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "n P"]:
    """The tokens' pictures, line by line from left to right: darkness from 0 to 1, rows one behind the other.

    Left of a token stand the columns before it, in which the token before it shows if they are of one word. The
    outside of the page counts as ink.

    Raises:
        PageFormatError: the image is not made of lines, has nothing on it, or has more than `MAX_BOXES` tokens.
    """
    height, width = image.shape[:2]
    if height % LINE or not height:
        raise PageFormatError(
            f"the image is {width} x {height} pixels; expected a page of text in lines of {LINE} pixels each, as "
            "models.ports.smol_vl.pages draws them"
        )
    found = []
    for top in range(0, height, LINE):
        strip = 255 - image[top : top + LINE].astype(np.uint16).mean(axis=2).astype(np.uint8)
        padded = np.pad(strip, ((0, 0), (WORD_GAP, 0)), constant_values=255)
        tokens = edges(strip)
        if len(found) + len(tokens) > MAX_BOXES:
            raise PageFormatError(
                f"the image of {width} x {height} pixels has more than {MAX_BOXES} tokens; expected a page of text"
            )
        for start, end in tokens:
            box = np.zeros((LINE, WIDTH), np.float32)
            taken = padded[:, start : min(end + WORD_GAP, start + WIDTH)]
            box[:, : taken.shape[1]] = taken
            found.append(box.reshape(-1))
    if not found:
        raise PageFormatError(f"the image of {width} x {height} pixels is blank; expected a page of text")
    return np.stack(found) / np.float32(255)
