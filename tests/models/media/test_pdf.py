import numpy as np
import pytest
from PIL import Image

from models.media import pdf as module
from models.media.files import MediaFileError
from models.media.pdf import (
    MAX_LETTERS,
    NoTextError,
    Page,
    PageTextWarning,
    PdfError,
    cleaned,
    page_count,
    pdf_pages,
    rendered,
)
from tests.pictures import ENCRYPTED, PAGES, pdf, pdf_image, pdf_page, pdf_text


@pytest.fixture
def document(tmp_path):
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (3, 3))
    pages = [Image.new("RGB", (60 + 10 * i, 40), tuple(map(int, colour))) for i, colour in enumerate(colours)]
    pages[0].save(tmp_path / "a.pdf", save_all=True, append_images=pages[1:], resolution=72)
    return tmp_path / "a.pdf", colours


def test_pages_come_in_order_and_in_colour(document):
    path, colours = document
    pages = list(pdf_pages(path, dpi=72))
    assert page_count(path) == len(pages) == 3
    for i, (page, colour) in enumerate(zip(pages, colours, strict=True)):
        assert page.mode == "RGB" and page.size == (60 + 10 * i, 40)
        assert np.abs(np.asarray(page, int).mean((0, 1)) - colour).max() < 6  # the file holds a JPEG


def test_the_resolution_scales_them(document):
    assert next(iter(pdf_pages(document[0], dpi=144))).size == (120, 80)


@pytest.mark.parametrize("content", [b"", b"no pdf at all", b"%PDF-1.4\ncut short"])
def test_what_is_no_pdf_is_named(tmp_path, content):
    (tmp_path / "b.pdf").write_bytes(content)
    for read in (page_count, lambda path: list(pdf_pages(path))):
        with pytest.raises(PdfError, match=r"b\.pdf"):
            read(tmp_path / "b.pdf")


def test_a_file_that_is_not_there_and_a_resolution_of_nothing(document, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.pdf"):
        page_count(tmp_path / "c.pdf")
    with pytest.raises(PdfError, match="above 0"):
        list(pdf_pages(document[0], dpi=0))


@pytest.mark.parametrize(
    ("points", "pixels"),
    [((14_400, 14_400), (4096, 4096)), ((14_400, 900), (16_384, 1024)), ((100, 200), (200, 400))],
)
def test_a_page_is_rendered_no_larger_than_models_read(tmp_path, points, pixels):
    (tmp_path / "a.pdf").write_bytes(pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(*points)))
    (image,) = pdf_pages(tmp_path / "a.pdf", dpi=144)
    assert np.abs(np.subtract(image.size, pixels)).max() <= 1 and image.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("count", [1, 10**9])
def test_a_page_tree_that_bites_its_tail_ends(tmp_path, count):
    kids = b"<</Type/Pages/Kids[2 0 R 3 0 R]/Count %d>>" % count
    (tmp_path / "a.pdf").write_bytes(pdf(PAGES, kids, b"<</Type/Pages/Kids[2 0 R]/Count 5>>"))
    with pytest.raises(PdfError, match=r"page 1 of .*a\.pdf cannot be rendered"):
        list(pdf_pages(tmp_path / "a.pdf"))
    assert 1 <= len(list(rendered(tmp_path / "a.pdf"))) <= module.MAX_FAILURES


def test_pages_beside_a_damaged_one_are_rendered(tmp_path):
    kids = b"<</Type/Pages/Kids[3 0 R 4 0 R 5 0 R]/Count 3>>"
    (tmp_path / "a.pdf").write_bytes(pdf(PAGES, kids, pdf_page(10, 10), pdf_page(0, 0), pdf_page(30, 10)))
    first, second, third = rendered(tmp_path / "a.pdf", dpi=72)
    assert isinstance(second, PdfError) or second.size == (612, 792)  # letter, where pdfium mends it
    assert first.size == (10, 10) and third.size == (30, 10)


def test_no_page_and_a_password_are_named(tmp_path):
    (tmp_path / "none.pdf").write_bytes(pdf(PAGES, b"<</Type/Pages/Kids[]/Count 0>>"))
    locked = pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(10, 10))
    (tmp_path / "locked.pdf").write_bytes(locked.replace(b"/Root 1 0 R", b"/Root 1 0 R" + ENCRYPTED))
    for name in ("none", "locked"):
        with pytest.raises(PdfError, match=rf"{name}\.pdf"):
            page_count(tmp_path / f"{name}.pdf")
    (tmp_path / "folder.pdf").mkdir()
    with pytest.raises(MediaFileError, match=r"folder\.pdf is a folder"):
        page_count(tmp_path / "folder.pdf")


def test_an_image_of_too_many_pixels_on_a_page_is_not_decoded(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(pdf_image(300, 200))
    monkeypatch.setattr(module, "MAX_PIXELS", 60_000)
    assert next(pdf_pages(tmp_path / "a.pdf", dpi=72)).getpixel((50, 50)) == (0, 0, 0)
    monkeypatch.setattr(module, "MAX_PIXELS", 59_999)
    with pytest.raises(PdfError, match="an image on it has 300 x 200 pixels, expected 59999 at most"):
        next(pdf_pages(tmp_path / "a.pdf"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has 0 bytes"),
        (b"no pdf at all", "begins with b'no pdf at all'; PDF files begin with b'%PDF-'"),
        (b"%PDF-1.4\ncut short", "is it damaged"),
        (pdf(PAGES, b"<</Type/Pages/Kids[]/Count 0>>"), "has no page"),
        (
            pdf(PAGES, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", pdf_page(10, 10)).replace(
                b"/Root 1 0 R", b"/Root 1 0 R" + ENCRYPTED
            ),
            "is behind a password",
        ),
    ],
)
def test_each_pdf_file_that_cannot_be_read_says_why(tmp_path, content, message):
    (tmp_path / "b.pdf").write_bytes(content)
    with pytest.raises(PdfError) as caught:
        page_count(tmp_path / "b.pdf")
    assert message in str(caught.value) and "b.pdf" in str(caught.value)
    assert "Success" not in str(caught.value)


def test_a_document_that_pdfium_refuses_with_success_has_no_page(tmp_path, monkeypatch):
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\n")

    def refuse(_):
        raise module.pdfium.PdfiumError("Failed to load document (PDFium: Success).")

    monkeypatch.setattr(module.pdfium, "PdfDocument", refuse)
    with pytest.raises(PdfError, match=r"b\.pdf has no page that can be read"):
        page_count(tmp_path / "b.pdf")


def test_the_text_of_a_page_stands_behind_its_image(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_text([b"the star", b"\\001is red.\\007"], [b"the moon"]))
    images = list(pdf_pages(path, dpi=72))
    pages = list(pdf_pages(path, dpi=72, with_text=True))
    assert [text for _, text in pages] == ["the star\nis red.", "the moon"]
    for (given, _), image in zip(pages, images, strict=True):
        np.testing.assert_array_equal(np.asarray(given), np.asarray(image))
    (second,) = rendered(path, dpi=72, first=2, with_text=True)
    assert isinstance(second, Page) and second.text == "the moon" and second.note is None


def test_a_page_without_a_text_is_its_image_and_this_is_said(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_text([b"the star"], [], [b"  ", b"\\001"]))
    with pytest.warns(PageTextWarning, match=r"page [23]: it has no text") as said:
        pages = list(pdf_pages(path, with_text=True))
    assert [isinstance(page, Image.Image) for page in pages] == [False, True, True] and len(said) == 2
    for lines, pages in (([[]], "its page has none"), ([[], [b" "]], "none of its 2 pages has one")):
        path.write_bytes(pdf_text(*lines))
        with pytest.raises(NoTextError, match=rf"a.pdf has no text: {pages}"):
            next(pdf_pages(path, with_text=True))
        assert len(list(pdf_pages(path))) == len(lines)


def test_a_long_text_is_cut_at_a_space(tmp_path):
    path = tmp_path / "a.pdf"
    text = b"words " * (MAX_LETTERS // 6 + 90)
    lines = [text[start : start + 12] for start in range(0, len(text), 12)]
    path.write_bytes(pdf_text(lines).replace(b"[0 0 84 56]", b"[0 -99000 84 56]"))
    (page,) = rendered(path, dpi=1, with_text=True)
    assert MAX_LETTERS - 6 <= len(page.text) <= MAX_LETTERS and page.is_cut
    assert page.text.split()[-1] == "words" and f"cut to {len(page.text)} letters" in page.note


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a \r\nb\rc", "a\nb\nc"),
        ("a\n\n \n\nb\n", "a\n\nb"),
        ("exam\x02ple, well\ufffeknown", "exam-ple, well-known"),
        ("a\x00\x07\x1b[1m\x7f\x9fb\tc", "a[1mb c"),
        ("\u200b\u202ea\xadb\ufeff\ud800", "ab"),
        ("a\x0cb\u2028c", "a\nb\nc"),
        ("  é 日本 \U0001f600 \xa0 ", "é 日本 \U0001f600"),
        ("", ""),
    ],
)
def test_a_text_is_cleaned(text, clean):
    assert cleaned(text) == clean
