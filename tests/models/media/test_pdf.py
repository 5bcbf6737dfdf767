import numpy as np
import pytest
from PIL import Image

from models.media.pdf import PdfError, page_count, pdf_pages


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
