"""What a user names on the command line: images, text files, PDF files and folders of them, as items to encode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import pdf

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXTS = (".txt", ".md")


class NoItemsError(ValueError):
    """A path with nothing in it that can be encoded."""


@dataclass(frozen=True)
class Source:
    """A file that holds one item or, a PDF, one for each page.

    Attributes:
        path: of the file.
        count: how many items it holds.
        dpi: at which its pages are rendered.
    """

    path: Path
    count: int
    dpi: int

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names for people, and what `kamera_jax.encode` takes.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.path.suffix.lower() != ".pdf":
            yield self.path.name, self.path
            return
        for number, page in enumerate(pdf.pdf_pages(self.path, dpi=self.dpi), start=1):
            yield f"{self.path.name}, page {number}", page


def sources(paths: Sequence[Path], *, dpi: int = pdf.DPI) -> list[Source]:
    """The files behind paths: folders give what can be encoded in them, at any depth, in the order of their names.

    Raises:
        FileNotFoundError: there is no such path.
        NoItemsError: a folder holds nothing that can be encoded.
        ValueError: a PDF file that is named cannot be read.
    """
    found: list[Source] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (*IMAGES, *TEXTS, ".pdf"))
            if not files:
                raise NoItemsError(f"{path} holds no image, .txt, .md or .pdf file")
        elif not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        found += [Source(file, pdf.page_count(file) if file.suffix.lower() == ".pdf" else 1, dpi) for file in files]
    return found
