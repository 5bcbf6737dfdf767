"""`milebench-temporal`: frames in a row and a choice about what happens in them (MileBench, arXiv 2404.18532)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, choice, given
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_letters import milebench

PARTS = (
    *("ActionLocalization", "ActionPrediction", "ActionSequence", "CharacterOrder", "CounterfactualInference"),
    *("EgocentricNavigation", "MovingAttribute", "MovingDirection", "ObjectExistence", "ObjectInteraction"),
    *("ObjectShuffle", "SceneTransition", "StateChange"),
)
"""The data sets of the benchmark's temporal tasks, T-1 to T-4."""


@dataclass(frozen=True, kw_only=True)
class MileBenchTemporal(Published):
    """Frames, each a chunk, behind the instruction, with texts between; the context's last text is the question.

    Attributes:
        part: which data sets; all thirteen by default.
    """

    part: tuple[str, ...] = PARTS

    name = "milebench-temporal"
    max_new_tokens = 16
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {**Published.settings, "part": choice(*PARTS)}
    LAYOUT = """
DIR/ActionSequence/ActionSequence.json   meta_data {task_instructions}, data [{sample_id, task_instruction_id,
                                         task_instance {context, images_path, choice_list}, response}]
DIR/ActionSequence/images/…              what images_path names; likewise for the other temporal data sets
"""
    VARIANT = "accuracy of evaluate.py (multi-choice, match_choice without GPT); whole contexts, frames not combined"
    SOURCE = "https://github.com/MileBench/MileBench"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The files of the chosen data sets that are there."""
        names = [f"{part}/{part}.json" for part in self.part]
        return folder.some(names, f"{self.part[0]}/{self.part[0]}.json" + (" or others" if len(self.part) > 1 else ""))

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each sample."""
        for path in self.annotations(folder):
            content = folder.json(path)
            if not isinstance(content, dict) or "data" not in content:
                raise DataError(f'{path} has no "data"{self._but}')
            instructions = folder.field(folder.field(content, "meta_data", str(path), dict), "task_instructions",
                                        str(path), list, dict)  # fmt: skip
            for where, record in folder.records(path, content["data"]):
                yield self._source(folder, path.stem, instructions, where, record)

    def _source(self, folder: DataFolder, part: str, instructions: Any, where: str, record: Any) -> Source:
        instance = folder.field(record, "task_instance", where, dict)
        images = folder.texts(instance, "images_path", where)
        number = folder.field(record, "task_instruction_id", where, int, str)
        try:
            instruction = instructions[int(number)] if isinstance(instructions, list) else instructions[str(number)]
        except (LookupError, ValueError):
            raise DataError(f"{where}: there is no instruction {number!r} among task_instructions") from None
        options = folder.texts(instance, "choice_list", where)
        right = str(folder.field(record, "response", where, str, int, float))
        context = folder.field(instance, "context", where)
        parts = _interleaved(context, len(images), where)
        asked = parts.pop().strip() + "\nChoice list: \n"
        asked += "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(options)) + "\nYour answer is: "
        question = Question(asked, (right,), condition=part, choices=options, depth=1)
        try:
            milebench("", right, options)
        except ValueError:
            raise DataError(f"{where}: the response {right!r} is none of choice_list {options}") from None
        files = partial(_frames, folder, images, where, part)

        def media() -> list[Any]:
            items: list[Any] = [instruction.strip()] if str(instruction).strip() else []
            for text, path in zip(parts, files(), strict=True):
                items += [*([text.strip()] if text.strip() else []), path]
            return items

        return Source(f"{part}/{record.get('sample_id', where.split()[1])}", part, media, given((question,)), files)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """As ``judge_multi_choice``."""
        return {"accuracy": milebench(said, question.answers[0], question.choices)}

    def summary(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The accuracy of every data set, and their mean, as the paper reports it.

        Args:
            samples: the questions' lines, each with its ``accuracy`` of one method.
        """
        parts: dict[str, list[float]] = {}
        for sample in samples:
            parts.setdefault(sample["condition"], []).append(sample["accuracy"])
        found = {part: round(sum(own) / len(own), 6) for part, own in sorted(parts.items())}
        return {**found, "mean of data sets": round(sum(found.values()) / len(found), 6)}


def _frames(folder: DataFolder, images: Sequence[str], where: str, part: str) -> list[Path]:
    return [folder.media(each, where, f"{part}/images") for each in images]


def _interleaved(context: str, count: int, where: str) -> list[str]:
    """The texts around so many images, which stand as ``{image#1}`` or ``{table#1}``."""
    texts = [context]
    for number in range(1, count + 1):
        marks = [mark for mark in (f"{{image#{number}}}", f"{{table#{number}}}") if mark in texts[-1]]
        if not marks:
            raise DataError(f"{where}: the context has no {{image#{number}}}; expected one for each of {count} images")
        before, _, behind = texts[-1].partition(marks[0])
        texts[-1:] = [before, behind]
    return texts
