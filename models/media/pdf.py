"""Pages of PDF files as images, rendered by pypdfium2."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
from PIL import Image

from models.media.files import opened
from models.media.pictures import MAX_PIXELS

POINTS = 72
"""Points to the inch: a page of n points is n pixels at this resolution."""

DPI = 144

MAX_PAGE_PIXELS = 2**24
"""A page that would have more pixels is rendered at the resolution that gives it so many: models read no more."""

MAX_PAGE_SIDE = 2**16
"""As `MAX_PAGE_PIXELS`, of a page's longer side."""

_SCANNED = 2**24
"""Bytes that are looked through for a page where a file cannot be opened."""

_HEADER = 1024
"""Bytes within which a PDF file says what it is."""

MAX_FAILURES = 16
"""Pages in a row that cannot be rendered, after which the rest of a file is given up."""


class PdfError(ValueError):
    """A PDF file, or a page of it, that cannot be read."""


def page_count(path: Path) -> int:
    """How many pages a PDF file has.

    Raises:
        PdfError: it is none, is damaged, needs a password, or has no page.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    with _document(path) as document:
        return len(document)


def pdf_pages(path: Path, *, dpi: int = DPI) -> Iterator[Image.Image]:
    """The pages of a PDF file, one after another, rendered at ``dpi``, or at less where they are very large.

    Raises:
        PdfError: it is none, is damaged, needs a password, has no page, or has one that cannot be rendered; or dpi is
            not above 0.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    for page in rendered(path, dpi=dpi):
        if isinstance(page, PdfError):
            raise page
        yield page


def rendered(path: Path, *, dpi: int = DPI, first: int = 1) -> Iterator[Image.Image | PdfError]:
    """As `pdf_pages`, with the error in the place of a page that cannot be rendered.

    After `MAX_FAILURES` such pages in a row no more are tried. Pages before ``first`` are left out.

    Raises:
        PdfError, MediaFileError, FileNotFoundError: as `pdf_pages`, of the whole file.
    """
    if dpi <= 0:
        raise PdfError(f"a page is rendered at a resolution above 0 dpi; got {dpi}")
    with _document(path) as document:
        failures = 0
        for number in range(first - 1, len(document)):
            try:
                image = _rendered(document[number], dpi)
            except Exception as error:  # pdfium says nothing but that it failed; memory may be lacking too
                failures += 1
                reason = str(error) or type(error).__name__
                last = "" if failures < MAX_FAILURES else "; the pages behind it were not tried"
                yield PdfError(f"page {number + 1} of {path} cannot be rendered ({reason}){last}")
                if last:
                    return
            else:
                failures = 0
                yield image


def _rendered(page: pdfium.PdfPage, dpi: int) -> Image.Image:
    try:
        width, height = page.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise PdfError(f"it is {width:g} x {height:g} points large")
        images: Any = page.get_objects([pdfium.raw.FPDF_PAGEOBJ_IMAGE])
        for each in images:
            columns, rows = each.get_px_size()
            if columns * rows > MAX_PIXELS:
                raise PdfError(f"an image on it has {columns} x {rows} pixels, expected {MAX_PIXELS} at most")
        scale: Any = min(dpi / POINTS, math.sqrt(MAX_PAGE_PIXELS / width / height), MAX_PAGE_SIDE / max(width, height))
        return page.render(scale=scale).to_pil().convert("RGB")
    finally:
        page.close()


@contextmanager
def _document(path: Path) -> Iterator[pdfium.PdfDocument]:
    with opened(path) as file:
        start = file.read(_HEADER)
        file.seek(0)
        if not start:
            raise PdfError(f"{path} is empty: it has 0 bytes; was it written, or copied, to its end?")
        if b"%PDF" not in start:
            raise PdfError(f"{path} is no PDF file: it begins with {start[:16]!r}; PDF files begin with b'%PDF-'")
        try:
            document = pdfium.PdfDocument(file)
        except Exception as error:  # PdfiumError, or what the reading of a damaged file brings
            file.seek(0)
            raise PdfError(_unreadable(path, str(error), file.read(_SCANNED))) from error
        try:
            if not len(document):
                raise PdfError(f"{path} has no page: there is nothing to read in it")
            yield document
        finally:
            document.close()


def _unreadable(path: Path, reason: str, content: bytes) -> str:
    """A message that pdfium cannot open a file; of one without pages it says "Success", or that its format is wrong."""
    if "password" in reason.lower():
        return f"{path} is behind a password; save it without one"
    no_page = re.search(rb"/Type\s*/Pages", content) and not re.search(rb"/Type\s*/Page(?!s)|/ObjStm", content)
    if no_page and b"%%EOF" in content:
        return f"{path} has no page: there is nothing to read in it"
    if "success" in reason.lower():
        return f"{path} has no page that can be read; is it damaged, or empty?"
    return f"{path} is no PDF file that can be read ({reason}); is it damaged?"
