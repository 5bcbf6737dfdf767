"""Files and folders that the command line names, as items to encode: images, text, PDF, video and sound files."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import kamera_jax as kj
from models.media import pdf
from models.media.files import opened
from models.media.frames import frame_count, image_frames
from models.media.recordings import SUFFIXES as SOUNDS
from models.media.recordings import audio_file
from models.media.video_files import SUFFIXES as VIDEOS
from models.media.video_files import video_file
from models.vlm import VisionLanguageModel

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXTS = (".txt", ".md")


WITH_TEXT = "with its text"
"""What the origin of a page notes that is one chunk with its text."""

TURNS = 4
LONGEST_RUN = 16
"""Pages of a file come in runs to the processes that share them: so long at most, about so many for each process."""

Frames = Literal["first", "all"]
"""Which frames of an animated image, or pages of an image file of several pages, are items."""


class NoItemsError(ValueError):
    """A folder without any file that can be encoded, or pages, or a text of pages, that a file does not have."""


@dataclass(frozen=True)
class Part:
    """An item of a file.

    Attributes:
        name: for messages, as ``report.pdf, page 12``.
        origin: where it is, as a library stores it.
        item: what `kamera_jax.encode` takes, or the error where it cannot be read.
        note: what of it is not read, in words; None where all is.
    """

    name: str
    origin: kj.Origin
    item: Any
    note: str | None = None


@dataclass(frozen=True)
class Source:
    """A file with one item, or a file of several pages, frames or segments with one item for each.

    Attributes:
        path: the file's path.
        count: how many items it gives; 1 of a video or recording, the segments of which are counted as they come.
        dpi: at which its pages are rendered.
        left_out: frames of an image file behind its first that are no items.
        first: the first of the pages that are items; None where no pages are chosen.
        error: why the file cannot be opened; it then counts as one item, which cannot be read.
        seconds: length of the segments that a video or recording is cut into, an item each; None for one item.
        with_text: whether the text of a PDF file's page is read with its image.
    """

    path: Path
    count: int
    dpi: int
    left_out: int = 0
    first: int | None = None
    error: ValueError | OSError | None = None
    seconds: float | None = None
    with_text: bool = False

    @property
    def note(self) -> str | None:
        """A message that only the first frame is read; None if the whole file is."""
        if not self.left_out:
            return None
        return f"only the first of {self.left_out + 1} frames is read, with --frames all each: {self.path.name}"

    @property
    def segmented(self) -> bool:
        """Whether it is a video or recording that is cut into segments, the number of which is not known before."""
        timed = video_file(self.path) or audio_file(self.path)
        return self.error is None and self.seconds is not None and timed is not None

    def origins(self) -> list[kj.Origin]:
        """Where its items are, by what is known without reading them; of a video the whole."""
        paged = is_pdf(self.path) or self.count > 1 or self.first is not None
        if self.error is not None or self.left_out or not paged:
            return [kj.Origin(str(self.path))]
        first = self.first or 1
        return [kj.Origin(str(self.path), page) for page in range(first, first + self.count)]

    def items(
        self, vlm: VisionLanguageModel | None = None, report: Callable[[str], None] = lambda _: None
    ) -> Iterator[tuple[str, Any]]:
        """The file's items: their names for messages, and what `kamera_jax.encode` takes.

        Args:
            vlm: see `parts`.
            report: called with what of an item is not read.

        Raises:
            ValueError, OSError: the file cannot be read, or a page of it.
        """
        for part in self.parts(vlm):
            if isinstance(part.item, ValueError | OSError):
                raise part.item
            if part.note is not None:
                report(f"{part.name}: {part.note}")
            yield part.name, part.item

    def parts(self, vlm: VisionLanguageModel | None = None) -> Iterator[Part]:
        """The file's items with where they are, with the error in the place of an item that cannot be read.

        Args:
            vlm: the model, whose preprocessing says which frames of a video are taken, and where sound is cut; needed
                for segments alone.
        """
        pages: Iterator[Any]
        first = self.first or 1
        if self.error is not None:
            yield self._part(self.error)
            return
        if self.segmented and self.seconds is not None:
            assert vlm is not None
            yield from self._segments(vlm, self.seconds)
            return
        if is_pdf(self.path):
            pages = pdf.rendered(self.path, dpi=self.dpi, first=first, with_text=self.with_text)
        elif self.count > 1 or self.left_out or self.first is not None:
            pages = islice(image_frames(self.path), first - 1, None)
        else:
            yield self._part(self.path)
            return
        number = None if self.left_out else first
        try:
            for page in islice(pages, self.count):
                yield self._part(page, number)
                number = None if number is None else number + 1
        except (ValueError, OSError) as error:
            yield self._part(error, number)

    def _segments(self, vlm: VisionLanguageModel, seconds: float) -> Iterator[Part]:
        """The segments of a video or recording, each read when it is asked for."""
        begin = 0.0
        try:
            for each in vlm.preprocess.file_segments(self.path, seconds=seconds):
                begin = float(each.begin)
                yield Part(each.name, kj.Origin(str(self.path), time=begin), each.item)
        except (ValueError, OSError) as error:
            yield Part(self.path.name, kj.Origin(str(self.path), time=begin), error)

    def _part(self, item: Any, page: int | None = None) -> Part:
        if isinstance(item, pdf.Page):
            origin = kj.Origin(str(self.path), page, note=WITH_TEXT if item.text else None)
            return Part(origin.name, origin, item.item, item.note)
        origin = kj.Origin(str(self.path), page)
        return Part(origin.name, origin, item)


_PAGES = re.compile(r"(?P<path>.+):(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?", re.DOTALL)
"""A file and pages of it: ``report.pdf:3`` or ``report.pdf:3-5``."""


def is_path(text: str) -> bool:
    """Whether a text names something on the disk, or pages of it: what is no path may be a key."""
    named = _PAGES.fullmatch(text)
    return os.path.lexists(text) or (named is not None and os.path.lexists(named["path"]))


def natural(name: str) -> tuple[Any, ...]:
    """What names are sorted by: numbers in them by their value, so that page-2 comes before page-10."""
    parts: list[Any] = re.split(r"([0-9]+)", name.casefold())
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        parts[place] = (len(digits), digits)  # a number may have more digits than Python turns into one
    return tuple(parts), name


def _natural_path(path: Path) -> tuple[Any, ...]:
    return tuple(natural(part) for part in path.parts)


def sources(
    paths: Sequence[Path],
    *,
    dpi: int = pdf.DPI,
    frames: Frames = "first",
    segment: float | None = None,
    with_text: bool = False,
) -> list[Source]:
    """The files behind paths: folders give what can be encoded in them, at any depth, in the order of their names.

    Numbers in names count by their value: page-2.png comes before page-10.png.

    Args:
        paths: paths of files and folders; behind a file's may stand a colon and its pages, as ``report.pdf:3-5``.
        dpi: at which pages of PDF files are rendered.
        frames: whether animated images and image files of several pages give their first one or, named as the pages of
            a PDF file are, all of them.
        segment: seconds of the segments that a video or recording is cut into, an item each; None for one item.
        with_text: whether the text of a PDF file's page is read with its image. A file none of whose pages has a text
            then cannot be read.

    Raises:
        FileNotFoundError: there is no such path.
        NoItemsError: a folder has no file that can be encoded, or a file has no such pages.
    """
    listed: list[Source] = []
    for path in paths:
        named = None if os.path.lexists(path) else _PAGES.fullmatch(str(path))
        if named is not None and os.path.lexists(named["path"]):
            paged = _paged(Path(named["path"]), int(named["first"]), int(named["last"] or named["first"]), dpi)
            listed.append(_texted(paged) if with_text else paged)
            continue
        files = [path]
        if path.is_dir():
            files = sorted(_below(path), key=_natural_path)
            if not files:
                raise NoItemsError(f"{path} has no image, video, sound, .txt, .md or .pdf file")
        elif not os.path.lexists(path):
            raise FileNotFoundError(f"there is no file or folder {path}")
        given = [replace(_source(file, dpi, frames), seconds=segment) for file in files]
        listed += map(_texted, given) if with_text else given
    return listed


def pieces(files: Sequence[Source], most: int) -> list[Source]:
    """The same items in the same order, no more than so many pages or frames of a file together.

    A video stays whole: its segments are counted as they come.
    """
    cut: list[Source] = []
    for source in files:
        if source.count == 1 or source.error is not None:
            cut.append(source)
            continue
        first = source.first or 1
        cut += [
            replace(source, first=first + begin, count=min(most, source.count - begin))
            for begin in range(0, source.count, most)
        ]
    return cut


def run_length(files: Sequence[Source], processes: int) -> int:
    """Pages of a file that one process takes together, so that all of them have several turns."""
    total = sum(source.count for source in files)
    return min(max(total // (TURNS * processes), 1), LONGEST_RUN)


def part_of(files: Sequence[Source], index: int, count: int) -> list[Source]:
    """The share of one of several processes, which all see the same files: of ``count`` the one of ``index``, from 0.

    Raises:
        NoItemsError: there are fewer files, or runs of pages, than processes.
    """
    cut = pieces(files, run_length(files, count))
    if len(cut) < count:
        raise NoItemsError(f"{len(cut)} items or runs of pages cannot be shared by {count} processes; give fewer")
    return cut[index::count]


def check_with_text(files: Sequence[Source], *, with_text: bool) -> None:
    """Check that there is a PDF file where the text of pages is asked for.

    Raises:
        NoItemsError: there is none.
    """
    if with_text and not any(is_pdf(each.path) for each in files):
        names = ", ".join(each.path.name for each in files[:3]) + (", …" if len(files) > 3 else "")
        raise NoItemsError(
            f"--with-text is about pages of PDF files; among the items ({names or 'keys of chunks'}) is none: leave it "
            "out"
        )


def is_pdf(path: Path) -> bool:
    """Whether a file is read as a PDF file, by its name."""
    return path.suffix.lower() == ".pdf"


def _texted(source: Source) -> Source:
    """A source whose pages come with their texts; of anything but a PDF file as it is."""
    if not is_pdf(source.path) or source.error is not None:
        return source
    try:
        pdf.check_text(source.path)
    except (ValueError, OSError) as error:
        return Source(source.path, 1, source.dpi, error=error)
    return replace(source, with_text=True)


def _below(folder: Path) -> Iterator[Path]:
    """What can be encoded below a folder, by its name; links to folders are not followed.

    A folder that is named like a file, or that cannot be listed, is among it: that it cannot be read is then reported.
    """
    unlisted: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.suffix.lower() in (*IMAGES, *TEXTS, *VIDEOS, *SOUNDS, ".pdf"):
                yield path
    yield from unlisted


def _paged(path: Path, first: int, last: int, dpi: int) -> Source:
    """Some pages of a file.

    Raises:
        NoItemsError: it has no such pages.
    """
    if path.is_dir():
        raise NoItemsError(f"{path} is a folder, which has no pages; name a file of it")
    whole = _source(path, dpi, "all")
    if whole.error is not None:
        return whole
    if not 1 <= first <= last <= whole.count:
        asked = f"page {first}" if first == last else f"pages {first} to {last}"
        has = "1 page" if whole.count == 1 else f"{whole.count} pages"
        raise NoItemsError(f"{path} has no {asked}: it has {has}")
    if not is_pdf(path) and whole.count == 1:
        return whole
    return replace(whole, first=first, count=last - first + 1)


def _source(path: Path, dpi: int, frames: Frames) -> Source:
    try:
        with opened(path):
            pass
        if is_pdf(path):
            return Source(path, pdf.page_count(path), dpi)
    except (ValueError, OSError) as error:
        return Source(path, 1, dpi, error=error)
    count = 1 if path.suffix.lower() in (*TEXTS, *VIDEOS, *SOUNDS) else frame_count(path)
    return Source(path, count, dpi) if frames == "all" else Source(path, 1, dpi, left_out=count - 1)
