"""`mm-niah`: needles in long documents of texts and images (MM-NIAH, arXiv 2406.07230)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, choice, given, passages
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_text import mm_niah
from eval.tasks.settings import one_of

PARTS = tuple(f"{task}-{needle}" for task in ("retrieval", "counting", "reasoning") for needle in ("text", "image"))

LENGTHS = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)
"""Where the bins of context lengths begin, in tokens as the benchmark counts them."""

DEPTHS = 5
"""Bins of the depth that the needle stands at."""

CHOOSE = "\nAnswer with the option's letter from the given choices directly."
BRIEFLY = "\nAnswer the question using a single word or phrase."
IMAGE = "<image>"


@dataclass(frozen=True, kw_only=True)
class MMNiah(Published):
    """A document of texts and images, and a question about needles in it.

    Every image is a chunk, and every text between two. Images among the choices stand behind the document.

    Attributes:
        part: which of the six tasks; all by default.
        split: ``val`` or ``test``.
    """

    part: tuple[str, ...] = PARTS
    split: str = "val"

    name = "mm-niah"
    max_new_tokens = 32
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "part": choice(*PARTS),
        "split": one_of("val", "test"),
    }
    LAYOUT = """
DIR/mm_niah_val/annotations/retrieval-image.jsonl   (or mm_niah_test; -text; counting, reasoning)
DIR/mm_niah_val/images/…                            what images_list and choices_image_path name
a line: id, images_list, context, question, answer, meta {placed_depth, context_length, choices, choices_image_path}
"""
    VARIANT = (
        "score: calculate_scores.py (counting: the share of the list's items, place by place); hard: val_mmniah.py and "
        "VLMEvalKit (counting: any item right is 1); 32 new tokens for every task; images among the choices "
        "stand before the question"
    )
    SOURCE = "https://github.com/OpenGVLab/MM-NIAH"

    def _base(self, folder: DataFolder) -> str:
        """The folder of the split, which may be the one that was named."""
        return f"mm_niah_{self.split}" if (folder.root / f"mm_niah_{self.split}").is_dir() else ""

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The files of the chosen tasks that are there."""
        base = self._base(folder)
        names = [f"{base}/annotations/{part}.jsonl".lstrip("/") for part in self.part]
        return folder.some(names, f"mm_niah_{self.split}/annotations/{{{','.join(self.part)}}}.jsonl")

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each line."""
        for path in self.annotations(folder):
            for where, record in folder.lines(path):
                yield self._source(folder, path.stem, where, record)

    def _source(self, folder: DataFolder, part: str, where: str, record: Mapping[str, Any]) -> Source:
        texts = folder.field(record, "context", where).split(IMAGE)
        images = folder.texts(record, "images_list", where)
        if len(texts) - 1 != len(images):
            raise DataError(
                f"{where} has {len(texts) - 1} {IMAGE} in its context and {len(images)} files in images_list; expected "
                "as many"
            )
        meta = folder.field(record, "meta", where, dict)
        choices = folder.texts(meta, "choices", where) if meta.get("choices") else []
        shown = folder.texts(meta, "choices_image_path", where) if meta.get("choices_image_path") else []
        asked = folder.field(record, "question", where)
        if choices:
            asked += "".join(f"\n{chr(65 + i)}. {each}" for i, each in enumerate(choices)) + CHOOSE
        elif shown:
            asked += CHOOSE
        else:
            asked += BRIEFLY
        answer = _answer(folder, part, record, where)
        depth = meta.get("placed_depth", 0)
        mean = sum(depth) / len(depth) if isinstance(depth, list) and depth else depth
        if not isinstance(mean, (int, float)) or not 0 <= mean <= 1:
            raise DataError(f"{where}: placed_depth is {depth!r}; expected numbers from 0 to 1")
        length = folder.field(meta, "context_length", where, int, float)
        question = Question(
            asked,
            (json.dumps(answer),),
            condition=part,
            depth=mean,
            labels={"length": length},
        )
        folders = [f"{self._base(folder)}/images".lstrip("/"), self._base(folder)]

        def files() -> list[Path]:
            return [folder.media(each, where, *folders) for each in [*images, *shown]]

        def media() -> list[Any]:
            paths = files()
            items: list[Any] = list(passages(texts[0]))
            for path, text in zip(paths[: len(images)], texts[1:], strict=True):
                items += [path, *passages(text)]
            for i, path in enumerate(paths[len(images) :]):
                items += [f"{chr(65 + i)}.", path]
            if len(items) < 2 and isinstance(items[0], str):  # a document of one text alone
                items = passages(items[0], max(1, -(-len(items[0]) // 2)))
            return items

        name = f"{part}/{record.get('id', where.split()[1])}"
        return Source(name, part, media, given((question,)), files)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """The soft score of the paper, and the hard one of other scripts."""
        soft = mm_niah(said, json.loads(question.answers[0]))
        return {"score": soft, "hard": float(soft > 0)}

    def summary(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """As ``calculate_scores.py`` reports it.

        Args:
            samples: the questions' lines, each with its ``score`` of one method.

        Returns:
            The mean over five depths by task and context length, empty ones counting 0; of each length the mean of the
            six tasks, where all are there.
        """
        cells: dict[tuple[str, int], list[list[float]]] = {}
        for sample in samples:
            length = sum(sample["length"] >= begin for begin in LENGTHS) - 1
            if length >= 0:
                depths = cells.setdefault((sample["condition"], length), [[] for _ in range(DEPTHS)])
                depth = 0.99 if sample["depth"] == 1 else sample["depth"]
                depths[int(depth / (1 / DEPTHS))].append(sample["score"])  # as there: 0.6 / 0.2 is below 3
        table = {
            key: sum(sum(own) / len(own) if own else 0.0 for own in depths) / DEPTHS for key, depths in cells.items()
        }
        found = {f"{part} {LENGTHS[at] // 1000}k": round(table[part, at], 6) for part, at in sorted(table)}
        if {part for part, _ in table} == set(PARTS):
            for at in range(len(LENGTHS)):
                own = [table.get((part, at), 0.0) for part in PARTS]
                found[f"overall {LENGTHS[at] // 1000}k"] = round(sum(own) / len(PARTS), 6)
        return found


def _answer(folder: DataFolder, part: str, record: Mapping[str, Any], where: str) -> Any:
    """The answer: a text, the number of a choice, or the items of a list, which may be written as JSON."""
    answer = folder.field(record, "answer", where, str, int, list)
    if part.startswith("counting") and not isinstance(answer, list):
        try:
            answer = json.loads(str(answer))
        except ValueError:
            answer = None
        if not isinstance(answer, list):
            raise DataError(f"{where}: the answer is {record['answer']!r}; expected a list, as counting has it")
    if answer == [] or answer == "":
        raise DataError(f"{where}: the answer is empty; expected a text, the number of a choice, or a list")
    return answer
