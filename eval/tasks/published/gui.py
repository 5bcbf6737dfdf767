"""`screenspot` and `agentnetbench`: where to click on screenshots, and what to do next."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, choice, given
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_gui import agentnet, agentnet_best, screenspot
from eval.tasks.settings import whole
from models.media.files import opened

SCREENS = ("mobile", "desktop", "web")


@dataclass(frozen=True, kw_only=True)
class ScreenSpot(Published):
    """A screenshot behind others of its kind, each a chunk, and the element that a command is about.

    Attributes:
        part: which kinds of screens; all three by default.
        before: screenshots before the one that is asked about: those before it in the file, as a session shows them.
    """

    part: tuple[str, ...] = SCREENS
    before: int = 1

    name = "screenspot"
    max_new_tokens = 32
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "part": choice(*SCREENS),
        "before": whole,
    }
    LAYOUT = """
DIR/screenspot_mobile.json   (desktop, web) [{img_filename, bbox [left, top, width, height], instruction, data_type}]
DIR/screenspot_imgs/…        what img_filename names (or DIR/images)
"""
    VARIANT = (
        "ScreenSpot: the point of pred_2_point in the box, its edges included; other screenshots stand before the one "
        "that is asked about, by default one"
    )
    SOURCE = "https://github.com/njucckevin/SeeClick"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The files of the chosen kinds that are there."""
        return folder.some(
            [f"screenspot_{part}.json" for part in self.part], f"screenspot_{{{','.join(self.part)}}}.json"
        )

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each screenshot, with all its commands."""
        for path in self.annotations(folder):
            part = path.stem.removeprefix("screenspot_")
            asked: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
            for where, record in folder.records(path):
                asked.setdefault(folder.field(record, "img_filename", where), []).append((where, record))
            shown = list(asked)
            if len(shown) <= self.before:
                raise DataError(
                    f"{path} has {len(shown)} screenshots; expected more than {self.before}, as before=N asks"
                )
            for place, name in enumerate(shown):
                behind = [shown[place - back] for back in range(self.before, 0, -1)]
                files = partial(_screens, folder, [*behind, name], asked[name][0][0])
                questions = partial(_commands, folder, part, asked[name], files)
                yield Source(f"{part}/{name}", part, files, questions, files)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the point lies in the box."""
        return {"accuracy": screenspot(said, json.loads(question.answers[0]))}


def _screens(folder: DataFolder, names: Sequence[str], where: str) -> list[Path]:
    return [folder.media(name, where, "screenspot_imgs", "images") for name in names]


def _commands(
    folder: DataFolder, part: str, asked: Sequence[tuple[str, Mapping[str, Any]]], files: Callable[[], list[Path]]
) -> list[Question]:
    """The commands about a screenshot, each with its box in shares of the picture."""
    with opened(files()[-1]) as file, Image.open(file) as image:
        width, height = image.size
    questions = []
    for where, record in asked:
        box = folder.field(record, "bbox", where, list)
        if len(box) != 4 or any(not isinstance(each, (int, float)) for each in box):
            raise DataError(f"{where}: bbox is {box!r}; expected left, top, width and height in pixels")
        left, top, wide, high = box
        edges = [left / width, top / height, (left + wide) / width, (top + high) / height]
        command = folder.field(record, "instruction", where)
        text = (
            f'In the last UI screenshot, what is the position of the element corresponding to the command "{command}" '
            "(with point)?"
        )
        kind = f"{part} {folder.field(record, 'data_type', where)}"
        questions.append(Question(text, (json.dumps(edges),), condition=kind, depth=1))
    return questions


ASKED = (
    "What is the next action on the last screenshot? Answer with one line of Python, coordinates being shares of the "
    "screen: pyautogui.click(x=0.5, y=0.3), pyautogui.write(message='text'), pyautogui.press('enter'), "
    "pyautogui.hotkey(['ctrl', 'c']), pyautogui.scroll(-3) or computer.terminate(status='success')."
)


@dataclass(frozen=True, kw_only=True)
class AgentNetBench(Published):
    """A task on a computer: its screenshots, each a chunk, with what was done between them; what is done next.

    Attributes:
        before: screenshots of earlier steps that stand before the present one, at most.
    """

    before: int = 3

    name = "agentnetbench"
    max_new_tokens = 48
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {**Published.settings, "before": whole}
    LAYOUT = """
DIR/TASK.json   (any number; or DIR/test_data) {task_id, high_level_task_description, steps [{image,
                ground_truth_actions [{type, params, metadata}], alternative_options}]}
DIR/images/…    what image names (or DIR/test_data/images)
"""
    VARIANT = (
        "offline steps behind the true ones; evaluate_action of the whole answer, the best of the right actions and "
        "the alternatives; calls of pyautogui and computer are read from the answer"
    )
    SOURCE = "https://github.com/xlang-ai/OpenCUA (evaluation/agentnetbench)"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """All JSON files of the folder, or of test_data in it."""
        for below in ("", "test_data"):
            if found := sorted((folder.root / below).glob("*.json")):
                return [folder.inside(path.relative_to(folder.root).as_posix(), "the folder") for path in found]
        raise DataError(f"{folder.root} has no .json files: {folder.there()}{self._but}")

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each step."""
        for path in self.annotations(folder):
            record = folder.json(path)
            if not isinstance(record, dict):
                raise DataError(f"{path} is no object{self._but}")
            task = str(folder.field(record, "task_id", str(path), str, int))
            wanted = folder.field(record, "high_level_task_description", str(path))
            steps = folder.field(record, "steps", str(path), list)
            for number, step in enumerate(steps):
                where = f"step {number + 1} of {path}"
                if not isinstance(step, dict):
                    raise DataError(f"{where} is no object{self._but}")
                yield self._step(folder, f"{task}/{number + 1}", wanted, steps[: number + 1], where)

    def _step(self, folder: DataFolder, name: str, wanted: str, steps: Sequence[Any], where: str) -> Source:
        right = folder.field(steps[-1], "ground_truth_actions", where, list)
        options = [right, *[each for each in steps[-1].get("alternative_options") or [] if each]]
        try:
            for each in options:
                agentnet([("none", None), ("click", (0, 0))], each)
            kind = str(right[0]["type"]).lower()
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            raise DataError(f"{where}: ground_truth_actions or alternative_options are no actions{self._but}") from None
        shown = steps[-1 - self.before :]
        images = [folder.field(each, "image", where) for each in shown]

        def files() -> list[Path]:
            return [folder.media(each, where, "images", "test_data/images") for each in images]

        def media() -> list[Any]:
            paths = files()
            items: list[Any] = [f"Task: {wanted.strip()}"]
            for step, path in zip(shown[:-1], paths, strict=False):
                items += [path, f"Done then: {json.dumps(step.get('ground_truth_actions', []))}"]
            return [*items, paths[-1]]

        question = Question(ASKED, (json.dumps(options),), condition=kind, depth=1)
        return Source(name, kind, media, given((question,)), files)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """The total of what was done."""
        return {"score": agentnet_best(said, question.answers[0])}
