"""`scbench`: many questions about one long text (SCBench, arXiv 2412.10319)."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, given, pieces
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_code import function_found
from eval.tasks.published.score_long import SCORERS
from eval.tasks.settings import one_of, whole

NEW_TOKENS = {"choice_eng": 40, "qa_eng": 40, "qa_chn": 40, "mf": 5, "passkey": 15, "summary": 200, "vt": 30}
NEW_TOKENS |= {"many_shot": 10, "repoqa": 1024}
NEW_TOKENS |= dict.fromkeys(("kv", "kv_hard", "hashhop", "prefix_suffix", "kv_compressible"), 150)
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
    "repoqa": "Based on the function description and code context, please retrieve and repeat the exact described "
    "function from the code context in a code block wrapped by ```:",
}
"""What the benchmark's prompts say before the text."""


@dataclass(frozen=True, kw_only=True)
class SCBench(Published):
    """One long text in parts, each a chunk, and all its questions.

    Attributes:
        part: the task.
        mode: ``scdq``, every turn alone behind the text, or ``multi-turn``, behind those before it with their right
            answers too.
        chunks: into how many parts about the text is cut, before paragraphs, lines or words.
    """

    part: str = "kv"
    mode: str = "scdq"
    chunks: int = 8

    name = "scbench"
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "part": one_of(*SCORERS, "repoqa"),
        "mode": one_of("scdq", "multi-turn"),
        "chunks": whole,
    }
    LAYOUT = """
DIR/scbench_kv.jsonl   (or data/…; choice_eng, qa_eng, qa_chn, mf, passkey, vt, many_shot, summary, repoqa, …: part=)
                       a line: id, context, multi_turns [{input, answer, options}]
                       of repoqa: repo and lang too, and the name of each turn's function
"""
    VARIANT = (
        "mode=scdq: same context, different queries, every turn alone behind the text; mode=multi-turn: behind the "
        "turns before it and their right answers, as one text (the official prompt without a chat template); scores of "
        "compute_scores.py, all turns; repoqa: best match at 0.8, functions cut out of Python answers alone"
    )
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
        known = self._functions(folder, path) if self.part == "repoqa" else {}
        for where, record in folder.lines(path):
            text = folder.field(record, "context" if "context" in record else "input", where)
            turns = folder.field(record, "multi_turns", where, list)
            if len(text.split()) < 2 or not turns:
                raise DataError(f"{where} has {len(text)} letters of text and {len(turns)} turns; expected both")
            if not all(isinstance(turn, dict) for turn in turns):
                raise DataError(f"{where} has a turn that is no object{self._but}")
            opening = OPENINGS.get(self.part, "")
            if self.part == "mf":
                first = folder.field(turns[0], "input", where)
                opening = _sought(first) if self.mode == "multi-turn" else first
            questions = tuple(self._questions(folder, where, record, turns, known))
            name = str(record.get("id", where.split()[1]))
            yield Source(name, self.part, self._cut(text, opening), given(questions))

    def _functions(self, folder: DataFolder, path: Path) -> dict[str, list[tuple[str, str]]]:
        """By repository the functions that are asked about, each with its name."""
        found: dict[str, list[tuple[str, str]]] = {}
        for where, record in folder.lines(path):
            own = found.setdefault(folder.field(record, "repo", where), [])
            for turn in folder.field(record, "multi_turns", where, list):
                if isinstance(turn, dict):
                    own.append((folder.field(turn, "name", where), folder.field(turn, "answer", where)))
        return found

    def _cut(self, text: str, opening: str) -> Callable[[], list[str]]:
        def cut() -> list[str]:
            parts = pieces(text, self.chunks)
            return [f"{opening}\n\n{parts[0]}" if opening else parts[0], *parts[1:]]

        return cut

    def _questions(
        self,
        folder: DataFolder,
        where: str,
        record: Mapping[str, Any],
        turns: Sequence[dict[str, Any]],
        known: Mapping[str, Sequence[tuple[str, str]]],
    ) -> Iterator[Question]:
        """The turns' questions, behind those before them or alone."""
        before = ""
        for number, turn in enumerate(turns):
            asked = self._asked(folder, where, turn, first=not before)
            given = folder.field(turn, "answer", where, str, int, float, list)
            answers = [str(each) for each in given] if isinstance(given, list) else [str(given)]
            if not answers:
                raise DataError(f"{where} has a turn without an answer")
            more: dict[str, Any] = {}
            if self.part == "repoqa":
                functions = known[folder.field(record, "repo", where)]
                answers = [code for name, code in functions if name == turn["name"]]
                more = {"choices": [code for _, code in functions]}
                more["labels"] = {"lang": folder.field(record, "lang", where)}
            if self.mode == "multi-turn":
                more["labels"] = {**more.get("labels", {}), "turn": number + 1}
            yield Question((before + asked).strip(), answers, condition=self.part, **more)
            if self.mode == "multi-turn":
                before += f"{asked}{given}{'.' * (self.part == 'passkey')}\n\n"

    def _asked(self, folder: DataFolder, where: str, turn: Mapping[str, Any], *, first: bool) -> str:
        """A turn's question as the benchmark's prompts write it; white space at its ends stays."""
        asked = folder.field(turn, "input", where)
        if self.part == "choice_eng":
            options = folder.texts(turn, "options", where)
            listed = "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(options))
            ends = "The the correct answer is" if first else "The letter of the correct answer is"  # as they have it
            return f"Question: {asked}\n{listed}\n\n{ends}"
        if self.part == "mf" and not (first and self.mode == "multi-turn"):
            return f"{_sought(asked)}\n\n{asked}"
        if self.part == "qa_eng":
            return f"Question: {asked}\nAnswer:"
        return f"问题：{asked}\n答案：" if self.part == "qa_chn" else asked

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """By the task's scorer."""
        if self.part == "repoqa":
            language = str(question.labels["lang"])
            return {"score": function_found(said, question.answers, question.choices, language)}
        return {"score": SCORERS[self.part](said, question.answers)}


def _sought(asked: str) -> str:
    """Of a question for a number what the benchmark's prompts put before it: ``What is the largest number?``."""
    found = re.search("The .+ is", asked)
    return f"What is {found[0].lower()[:-3]}?" if found else asked
