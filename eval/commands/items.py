"""Files and folders that the command line names, as items to encode: images, text files and PDF files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from models.media import pdf
from models.media.files import opened
from models.media.frames import frame_count, image_frames

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXTS = (".txt", ".md")


Frames = Literal["first", "all"]
"""Which frames of an animated image, or pages of an image file of several pages, are items."""


class NoItemsError(ValueError):
    """A folder without any file that can be encoded."""


@dataclass(frozen=True)
class Source:
    """A file with one item, or a file of several pages or frames with one item for each.

    Attributes:
        path: the file's path.
        count: how many items it gives.
        dpi: at which its pages are rendered.
        left_out: frames of an image file behind its first that are no items.
        error: why the file cannot be opened; it then counts as one item, which cannot be read.
    """

    path: Path
    count: int
    dpi: int
    left_out: int = 0
    error: ValueError | OSError | None = None

    @property
    def note(self) -> str | None:
        """A message that only the first frame is read; None if the whole file is."""
        if not self.left_out:
            return None
        return f"only the first of {self.left_out + 1} frames is read, with --frames all each: {self.path.name}"

    def items(self) -> Iterator[tuple[str, Any]]:
        """The file's items: their names for messages, and what `kamera_jax.encode` takes.

        Raises:
            ValueError, OSError: the file cannot be read, or a page of it.
        """
        for name, item in self.tried():
            if isinstance(item, ValueError | OSError):
                raise item
            yield name, item

    def tried(self) -> Iterator[tuple[str, Any]]:
        """As `items`, with the error in the place of an item that cannot be read."""
        name = self.path.name
        pages: Iterator[Any]
        if self.error is not None:
            yield name, self.error
            return
        if self.path.suffix.lower() == ".pdf":
            pages = pdf.rendered(self.path, dpi=self.dpi)
        elif self.count > 1 or self.left_out:
            pages = islice(image_frames(self.path), self.count)
        else:
            yield name, self.path
            return
        try:
            for number, page in enumerate(pages, start=1):
                name = self.path.name if self.left_out else f"{self.path.name}, page {number}"
                yield name, page
        except (ValueError, OSError) as error:
            yield name, error


def sources(paths: Sequence[Path], *, dpi: int = pdf.DPI, frames: Frames = "first") -> list[Source]:
    """The files behind paths: folders give what can be encoded in them, at any depth, in the order of their names.

    Args:
        paths: paths of files and folders.
        dpi: at which pages of PDF files are rendered.
        frames: whether animated images and image files of several pages give their first one or, named as the pages of
            a PDF file are, all of them.

    Raises:
        FileNotFoundError: there is no such path.
        NoItemsError: a folder has no file that can be encoded.
    """
    listed: list[Source] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(_below(path))
            if not files:
                raise NoItemsError(f"{path} has no image, .txt, .md or .pdf file")
        elif not os.path.lexists(path):
            raise FileNotFoundError(f"there is no file or folder {path}")
        listed += [_source(file, dpi, frames) for file in files]
    return listed


def _below(folder: Path) -> Iterator[Path]:
    """What can be encoded below a folder, by its name; links to folders are not followed.

    A folder that is named like a file, or that cannot be listed, is among it: that it cannot be read is then reported.
    """
    unlisted: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.suffix.lower() in (*IMAGES, *TEXTS, ".pdf"):
                yield path
    yield from unlisted


def _source(path: Path, dpi: int, frames: Frames) -> Source:
    try:
        with opened(path):
            pass
        if path.suffix.lower() == ".pdf":
            return Source(path, pdf.page_count(path), dpi)
    except (ValueError, OSError) as error:
        return Source(path, 1, dpi, error=error)
    count = 1 if path.suffix.lower() in TEXTS else frame_count(path)
    return Source(path, count, dpi) if frames == "all" else Source(path, 1, dpi, left_out=count - 1)
