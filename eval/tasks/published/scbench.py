"""`scbench`: many questions about one long text (SCBench, arXiv 2412.10319)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, given, pieces
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_long import SCORERS
from eval.tasks.settings import one_of, whole

NEW_TOKENS = {"choice_eng": 40, "qa_eng": 40, "qa_chn": 40, "mf": 5, "passkey": 15, "summary": 200, "vt": 30}
NEW_TOKENS |= {"many_shot": 10} | dict.fromkeys(("kv", "kv_hard", "hashhop", "prefix_suffix", "kv_compressible"), 150)
"""As the benchmark allows for each task."""

KEYS = "Extract the value corresponding to the specified key in the JSON object below."
BOOK = "Read the book and answer the question."
OPENINGS = {
    "passkey": "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will "
    "quiz you about the important information.",
    "kv": KEYS,
    "kv_hard": KEYS,
    "kv_compressible": "Extract the value corresponding to the specified key in the following passage.",
    "choice_eng": BOOK,
    "qa_eng": f"{BOOK} Be very concise in your answer.",
    "qa_chn": "阅读以下书籍然后回答问题。",
}
"""What the benchmark's prompts say before the text."""


@dataclass(frozen=True, kw_only=True)
class SCBench(Published):
    """One long text in parts, each a chunk, and all its questions, each asked of the text alone.

    Attributes:
        part: the task.
        chunks: into how many parts about the text is cut, before paragraphs, lines or words.
    """

    part: str = "kv"
    chunks: int = 8

    name = "scbench"
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "part": one_of(*SCORERS),
        "chunks": whole,
    }
    LAYOUT = """
DIR/scbench_kv.jsonl   (or data/…; choice_eng, qa_eng, qa_chn, mf, passkey, vt, many_shot, summary, …: part=)
                       a line: id, context, multi_turns [{input, answer, options}]
"""
    VARIANT = "same context, different queries (scdq): every turn alone behind the text; scores of compute_scores.py"
    SOURCE = "https://github.com/microsoft/MInference/tree/main/scbench"

    @property
    def max_new_tokens(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the benchmark allows for the task."""
        return NEW_TOKENS[self.part]

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The file of the task."""
        return [folder.first(f"scbench_{self.part}.jsonl", f"data/scbench_{self.part}.jsonl")]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each line."""
        (path,) = self.annotations(folder)
        for where, record in folder.lines(path):
            text = folder.field(record, "context" if "context" in record else "input", where)
            turns = folder.field(record, "multi_turns", where, list)
            if len(text.split()) < 2 or not turns:
                raise DataError(f"{where} has {len(text)} letters of text and {len(turns)} turns; expected both")
            opening = OPENINGS.get(self.part, "")
            if self.part == "mf":
                opening = folder.field(turns[0], "input", where)
            questions = tuple(self._question(folder, where, turn) for turn in turns)
            name = str(record.get("id", where.split()[1]))
            yield Source(name, self.part, self._cut(text, opening), given(questions))

    def _cut(self, text: str, opening: str) -> Callable[[], list[str]]:
        def cut() -> list[str]:
            parts = pieces(text, self.chunks)
            return [f"{opening}\n\n{parts[0]}" if opening else parts[0], *parts[1:]]

        return cut

    def _question(self, folder: DataFolder, where: str, turn: Any) -> Question:
        if not isinstance(turn, dict):
            raise DataError(f"{where} has a turn that is no object{self._but}")
        asked = folder.field(turn, "input", where).strip()
        given = folder.field(turn, "answer", where, str, int, float, list)
        answers = [str(each) for each in given] if isinstance(given, list) else [str(given)]
        if self.part == "choice_eng":
            options = folder.texts(turn, "options", where)
            listed = "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(options))
            asked = f"Question: {asked}\n{listed}\n\nThe the correct answer is"  # as the benchmark has it
        elif self.part in ("qa_eng", "qa_chn"):
            asked = f"Question: {asked}\nAnswer:" if self.part == "qa_eng" else f"问题：{asked}\n答案："
        if not answers:
            raise DataError(f"{where} has a turn without an answer")
        return Question(asked, answers, condition=self.part)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """By the task's scorer."""
        return {"score": SCORERS[self.part](said, question.answers)}
