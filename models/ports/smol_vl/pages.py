"""Text drawn as pages that kamera-smol-vl reads."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from kamera_jax.backbone import Backbone
from models.media.typeset import PLAIN, Face, PageError, Piece, page, piece


def pages(vlm: Backbone, text: str, *, tokens: int = 128, face: Face = PLAIN, width: int = 480) -> list[Image.Image]:
    """A text as pages, black on white, in lines of `models.media.typeset.LINE` pixels.

    What is read of them is the text with one space for every run of white space, and one before it.

    Args:
        vlm: the model; its tokenizer says where tokens end.
        text: of letters in `models.media.typeset.LETTERS`, digits and punctuation among them.
        tokens: of a page, at most; pages end between words, save where one word has more.
        face: the type.
        width: of a page, in pixels.

    Raises:
        PageError: the text is empty, or has letters or runs of letters that cannot be drawn.
    """
    if tokens < 1:
        raise PageError(f"a page has at least one token; got tokens={tokens}")
    flat = " " + " ".join(text.split())
    if flat == " ":
        raise PageError("the text is empty; a page needs at least one word")
    segment = vlm.prepare(flat)
    drawn = pieces_of(vlm, np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist())
    images = []
    while drawn:
        end = min(tokens, len(drawn))
        border = next((i for i in range(end, 0, -1) if i == len(drawn) or drawn[i].apart), end)
        images.append(Image.fromarray(page(drawn[:border], face, width)))
        drawn = drawn[border:]
    return images


def page_of(vlm: Backbone, ids: Sequence[int], *, face: Face = PLAIN, width: int = 480) -> Image.Image:
    """A page of exactly these tokens.

    Raises:
        PageError: there are none, or one cannot be drawn.
    """
    return Image.fromarray(page(pieces_of(vlm, ids), face, width))


def pieces_of(vlm: Backbone, ids: Sequence[int]) -> list[Piece]:
    """The tokens as they are drawn.

    Raises:
        PageError: one cannot be drawn.
    """
    drawn = []
    for number in ids:
        spelled = vlm.decode([int(number)])
        each = piece(spelled)
        if each is None:
            raise PageError(
                f"the token {spelled!r} cannot be drawn on a page; expected up to 16 printable ASCII letters or one of "
                "‘’“”–—…: leave it out, or write it otherwise"
            )
        drawn.append(each)
    return drawn
