"""`two-page-docqa`: questions about two pages of a document, as MP-DocVQA and MMLongBench-Doc ask them."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, given
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.npy import NpyError, objects
from eval.tasks.published.score_text import docvqa_accuracy, docvqa_anls, mmlongbench
from eval.tasks.settings import one_of, whole
from models.media.pdf import PdfError, page_count, rendered

BRIEFLY = "\nAnswer the question using a single word or phrase."
FORMATS = ("Str", "Int", "Float", "List", "None")
PDF_DPI = 144
"""As MMLongBench-Doc renders its pages."""


@dataclass(frozen=True, kw_only=True)
class TwoPageDocQA(Published):
    """Two pages, each a chunk, and the questions about them.

    Attributes:
        of: ``mp-docvqa``: the page with the answer and the one before it, or behind it where it is the first;
            ``mmlongbench``: the questions of MMLongBench-Doc that have exactly two pages of evidence.
        dpi: at which PDF pages are rendered.
    """

    of: str = "mp-docvqa"
    dpi: int = PDF_DPI

    name = "two-page-docqa"
    max_new_tokens = 32
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "of": one_of("mp-docvqa", "mmlongbench"),
        "dpi": whole,
    }
    LAYOUT = """
of=mp-docvqa:    DIR/val.json            {"data": [{questionId, question, doc_id, page_ids, answers, answer_page_idx}]}
                 or DIR/imdb_val.npy     a header, then {question_id, question, answers, answer_page_idx, image_name}
                 DIR/images/PAGE_ID.jpg  (or .png), as page_ids or image_name name them
of=mmlongbench:  DIR/samples.json        [{doc_id, question, answer, evidence_pages, answer_format}]
                 DIR/documents/DOC_ID    the PDF files that doc_id names
"""
    VARIANT = (
        "mp-docvqa: answer page and a neighbour, ANLS kept from 0.5 on, and exact accuracy; mmlongbench: two evidence "
        "pages, eval_score on the answer itself (the official pipeline has GPT-4 extract it before)"
    )
    SOURCE = "https://rrc.cvc.uab.es/?ch=17&com=tasks; https://github.com/mayubo2333/MMLongBench-Doc"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The file of the questions."""
        if self.of == "mmlongbench":
            return [folder.first("samples.json", "data/samples.json")]
        return [folder.first("val.json", "qas/val.json", "imdb_val.npy", "imdb/imdb_val.npy")]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for every pair of pages that is asked about."""
        (path,) = self.annotations(folder)
        if self.of == "mmlongbench":
            return self._long(folder, path)
        return self._mp(folder, path)

    def _mp(self, folder: DataFolder, path: Path) -> Iterator[Source]:
        names, rows = ("image_name", self._rows(path)) if path.suffix == ".npy" else ("page_ids", self._listed(path))
        pairs: dict[tuple[str, str], list[Question]] = {}
        named: dict[tuple[str, str], str] = {}
        for where, record in folder.records(path, rows):
            pages = folder.texts(record, names, where)
            at = folder.field(record, "answer_page_idx", where, int)
            answers = folder.texts(record, "answers", where)
            if not 0 <= at < len(pages) or not answers:
                raise DataError(f"{where}: answer_page_idx is {at} of {len(pages)} pages, {len(answers)} answers")
            if len(pages) < 2:
                continue
            first = max(at - 1, 0)
            pair = (pages[first], pages[first + 1])
            asked = folder.field(record, "question", where) + BRIEFLY
            question = Question(asked, answers, condition="answer page and a neighbour", depth=at - first)
            pairs.setdefault(pair, []).append(question)
            named.setdefault(pair, where)
        for pair, questions in pairs.items():
            files = partial(_pages, folder, pair, named[pair])
            yield Source("+".join(pair), "mp-docvqa", files, given(questions), files)

    def _listed(self, path: Path) -> Any:
        """The questions of a JSON file."""
        content = self.folder.json(path)
        if not isinstance(content, dict) or "data" not in content:
            raise DataError(f'{path} has no "data"{self._but}')
        return content["data"]

    def _rows(self, path: Path) -> list[Any]:
        """The questions of a NumPy file, behind its header."""
        try:
            return objects(path)[1:]
        except NpyError as error:
            raise DataError(f"{error}{self._but}") from error

    def _long(self, folder: DataFolder, path: Path) -> Iterator[Source]:
        pairs: dict[tuple[str, int, int], list[Question]] = {}
        named: dict[tuple[str, int, int], str] = {}
        for where, record in folder.records(path):
            evidence = _numbers(folder.field(record, "evidence_pages", where, str, list), where)
            if len(set(evidence)) != 2:
                continue
            kind = folder.field(record, "answer_format", where)
            if kind not in FORMATS:
                raise DataError(f"{where}: answer_format is {kind!r}; expected one of {', '.join(FORMATS)}")
            answer = str(folder.field(record, "answer", where, str, int, float, list))
            first, second = sorted(set(evidence))
            pair = (folder.field(record, "doc_id", where), first, second)
            asked = folder.field(record, "question", where) + BRIEFLY
            labels = {"answer_format": kind}
            pairs.setdefault(pair, []).append(Question(asked, (answer,), kind, hops=2, depth=1, labels=labels))
            named.setdefault(pair, where)
        for (document, first, second), questions in pairs.items():
            where = named[document, first, second]

            def files(document: str = document, where: str = where) -> Path:
                return folder.media(document, where, "documents", "data/documents", "")

            media = partial(_rendered, files, (first, second), self.dpi, where)
            yield Source(f"{document}+{first}+{second}", "mmlongbench", media, given(questions), files)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """ANLS and accuracy, or MMLongBench-Doc's score."""
        if self.of == "mmlongbench":
            return {"score": mmlongbench(said, question.answers[0], str(question.labels["answer_format"]))}
        return {"anls": docvqa_anls(said, question.answers), "accuracy": docvqa_accuracy(said, question.answers)}


def _pages(folder: DataFolder, pair: Sequence[str], where: str) -> list[Path]:
    """The images of two pages."""
    found = []
    for page in pair:
        names = [f"images/{page}{suffix}" for suffix in (".jpg", ".png", "")]
        there = [name for name in names if (folder.root / name).is_file()]
        found.append(folder.media((there or names)[0], where))
    return found


def _numbers(pages: str | list[Any], where: str) -> list[int]:
    """Page numbers, from 1, of a list that may be written as text."""
    try:
        found = ast.literal_eval(pages) if isinstance(pages, str) else pages
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or any(not isinstance(each, int) or each < 1 for each in found):
        raise DataError(f"{where}: evidence_pages is {pages!r}; expected a list of page numbers, as in '[3, 5]'")
    return found


def _rendered(file: Callable[[], Path], pages: Sequence[int], dpi: int, where: str) -> list[Any]:
    """Two pages of a PDF file."""
    path = file()
    count = page_count(path)
    if pages[-1] > count:
        raise DataError(f"{where} names page {pages[-1]} of {path}, which has {count}")
    found = []
    for number in pages:
        page = next(rendered(path, dpi=dpi, first=number))
        if isinstance(page, PdfError):
            raise page
        found.append(page)
    return found
