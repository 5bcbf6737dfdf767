"""`musique`: questions over several paragraphs of dense text (MuSiQue, arXiv 2108.00573)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, given
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_text import squad_exact, squad_f1

BRIEFLY = "\nAnswer with a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class Musique(Published):
    """Paragraphs, each a chunk with its title, and a question that two to four of them answer together."""

    name = "musique"
    max_new_tokens = 32
    LAYOUT = """
DIR/musique_ans_v1.0_dev.jsonl   a line: id, paragraphs [{idx, title, paragraph_text, is_supporting}], question,
                                 answer, answer_aliases, question_decomposition
"""
    VARIANT = "MuSiQue-Ans, all paragraphs in the file's order; F1 and exact match of metrics/answer.py"
    SOURCE = "https://github.com/StonyBrookNLP/musique"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The file of the questions."""
        return [folder.first("musique_ans_v1.0_dev.jsonl", "data/musique_ans_v1.0_dev.jsonl")]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each line."""
        (path,) = self.annotations(folder)
        for where, record in folder.lines(path):
            texts = []
            last = 0
            for place, each in enumerate(folder.field(record, "paragraphs", where, list)):
                if not isinstance(each, dict):
                    raise DataError(f"{where}: paragraph {place} is no object{self._but}")
                title = folder.field(each, "title", where).strip()
                texts.append(f"{title}\n{folder.field(each, 'paragraph_text', where).strip()}")
                last = place if each.get("is_supporting") else last
            if len(texts) < 2:
                raise DataError(f"{where} has {len(texts)} paragraphs; expected several")
            aliases = folder.texts(record, "answer_aliases", where) if record.get("answer_aliases") else []
            answers = (folder.field(record, "answer", where), *aliases)
            hops = max(1, len(record.get("question_decomposition") or [None]))
            question = Question(
                folder.field(record, "question", where).strip() + BRIEFLY,
                answers,
                condition=f"{hops} hops",
                hops=hops,
                depth=last / (len(texts) - 1),
            )
            yield Source(folder.field(record, "id", where), f"{hops} hops", given(texts), given((question,)))

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """F1 and exact match."""
        return {"f1": squad_f1(said, question.answers), "exact match": squad_exact(said, question.answers)}
