"""Pages of PDF files as images, rendered by pypdfium2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
from PIL import Image

POINTS = 72
"""Points to the inch: a page of n points is n pixels at this resolution."""

DPI = 144


class PdfError(ValueError):
    """A PDF file that cannot be read."""


def page_count(path: Path) -> int:
    """How many pages a PDF file has.

    Raises:
        PdfError: it is none, is damaged, needs a password, or has no page.
        FileNotFoundError: there is no such file.
    """
    document = _open(path)
    try:
        return len(document)
    finally:
        document.close()


def pdf_pages(path: Path, *, dpi: int = DPI) -> Iterator[Image.Image]:
    """The pages of a PDF file, one after another, rendered at ``dpi``.

    Raises:
        PdfError: it is none, is damaged, needs a password, or has no page; or dpi is not above 0.
        FileNotFoundError: there is no such file.
    """
    if dpi <= 0:
        raise PdfError(f"a page is rendered at a resolution above 0 dpi; got {dpi}")
    document = _open(path)
    scale: Any = dpi / POINTS  # annotated int there
    try:
        for page in document:
            yield page.render(scale=scale).to_pil().convert("RGB")
    finally:
        document.close()


def _open(path: Path) -> pdfium.PdfDocument:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        raise PdfError(
            f"{path} is no PDF file that can be read ({error}); is it damaged, or behind a password?"
        ) from error
    if not len(document):
        raise PdfError(f"{path} has no page")
    return document
