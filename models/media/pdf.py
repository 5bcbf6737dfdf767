"""Pages of PDF files as images, rendered by pypdfium2."""

import math
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


MAX_LETTERS = 2**14
"""Letters of a page's text that are read at most; a page that is full of small print has some thousands."""

_LOOKED_AT = 4 * MAX_LETTERS
"""Letters that are taken out of a page, before white space and control characters go."""

_BROKEN_WORD = "\x02\ufffe"
"""What pdfium writes in place of a hyphen at the end of a line, behind which it goes on without a break."""


class PdfError(ValueError):
    """A PDF file, or a page of it, that cannot be read."""


class NoTextError(PdfError):
    """A PDF file none of whose pages has a text, where the text of its pages is asked for."""


class PageTextWarning(UserWarning):
    """A page of a PDF file without a text, whose image alone is given, or with more text than is read."""


@dataclass(frozen=True)
class Page:
    """A page of a PDF file with its text.

    Attributes:
        image: the page, rendered.
        text: its text as `cleaned`, of `MAX_LETTERS` letters at most; empty where it has none.
        is_cut: whether it has more text than that.
    """

    image: Image.Image
    text: str
    is_cut: bool = False

    @property
    def item(self) -> Any:
        """What `kamera_jax.encode` takes: a list of the image and the text, or the image alone."""
        return [self.image, self.text] if self.text else self.image

    @property
    def note(self) -> str | None:
        """What is left out, in words; None if nothing is."""
        if self.is_cut:
            return f"its text is cut to {len(self.text)} letters"
        return None if self.text else "it has no text; its image alone is read"


def page_count(path: Path) -> int:
    """How many pages a PDF file has.

    Raises:
        PdfError: it is none, is damaged, needs a password, or has no page.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    with _document(path) as document:
        return len(document)


def pdf_pages(path: Path, *, dpi: int = DPI, with_text: bool = False) -> Iterator[Any]:
    """The pages of a PDF file, one after another, rendered at ``dpi``, or at less where they are very large.

    Each is what `kamera_jax.encode` makes one chunk of: an image, or with its text a list of the image and the text.

    Args:
        path: the file.
        dpi: points of the image to the inch.
        with_text: whether the text of a page, as the file has it, stands behind its image. It is cleaned, see
            `cleaned`, and cut to `MAX_LETTERS`. Where a page has none its image comes alone, with a `PageTextWarning`.

    Raises:
        NoTextError: no page of the file has a text, where it is asked for.
        PdfError: it is none, is damaged, needs a password, has no page, or has one that cannot be rendered; or dpi is
            not above 0.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    if with_text:
        check_text(path)
    for number, page in enumerate(rendered(path, dpi=dpi, with_text=with_text), start=1):
        if isinstance(page, PdfError):
            raise page
        if isinstance(page, Page):
            if page.note is not None:
                warnings.warn(f"{path}, page {number}: {page.note}", PageTextWarning, stacklevel=2)
            page = page.item
        yield page


def check_text(path: Path) -> None:
    """Check that some page of a PDF file has a text; pages whose text cannot be read count as without.

    Raises:
        NoTextError: none has: they are pictures of pages, as a scanner makes them.
        PdfError, MediaFileError, FileNotFoundError: as `page_count`.
    """
    with _document(path) as document:
        for number in range(len(document)):
            try:
                if _text(document[number])[0]:
                    return
            except Exception:  # that the page cannot be read is said when it is rendered
                continue
        pages = "its page has none" if len(document) == 1 else f"none of its {len(document)} pages has one"
        raise NoTextError(
            f"{path} has no text: {pages}, as in a file that was scanned; read the images of its pages alone, without "
            "their text, or recognise it first (OCR)"
        )


def rendered(
    path: Path, *, dpi: int = DPI, first: int = 1, with_text: bool = False
) -> Iterator[Image.Image | Page | PdfError]:
    """As `pdf_pages`, with the error in the place of a page that cannot be rendered, and a `Page` of one with its text.

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
                page = Page(image, *_text(document[number])) if with_text else image
            except Exception as error:  # pdfium says nothing but that it failed; memory may be lacking too
                failures += 1
                reason = str(error) or type(error).__name__
                last = "" if failures < MAX_FAILURES else "; the pages behind it were not tried"
                yield PdfError(f"page {number + 1} of {path} cannot be rendered ({reason}){last}")
                if last:
                    return
            else:
                failures = 0
                yield page


def cleaned(text: str) -> str:
    """A page's text without what is not to be read: control characters, white space at the ends of lines, empty lines.

    Of several empty lines one stays. A word that is broken at the end of a line keeps its hyphen.
    """
    text = re.sub(f"[{_BROKEN_WORD}]", "-", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r"[\t\f\v\u2028\u2029]", lambda found: " " if found.group() == "\t" else "\n", text)
    # Cc, Cf, Cs and Cn: controls, marks without a glyph (of direction, of width 0), halves of letters, and no letters.
    text = "".join(each for each in text if each == "\n" or unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Cn"))
    text = re.sub(r"[^\S\n]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _text(page: pdfium.PdfPage) -> tuple[str, bool]:
    """The text of a page, and whether it is cut."""
    try:
        textpage = page.get_textpage()
        try:
            letters = textpage.count_chars()
            whole = letters <= _LOOKED_AT
            text = cleaned(textpage.get_text_bounded() if whole else textpage.get_text_range(0, _LOOKED_AT))
        finally:
            textpage.close()
    finally:
        page.close()
    if len(text) <= MAX_LETTERS:
        return text, not whole
    border = max(text.rfind(space, 0, MAX_LETTERS + 1) for space in " \n")
    return text[: border if border > MAX_LETTERS // 2 else MAX_LETTERS].rstrip(), True


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
