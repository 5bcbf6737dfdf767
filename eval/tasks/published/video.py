"""`video-mme`, `egoschema` and `streamingbench`: choices about videos, whose segments are the chunks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from eval.tasks.base import Question
from eval.tasks.published.base import Published, Source, given, lettered
from eval.tasks.published.files import DataError, DataFolder
from eval.tasks.published.score_letters import first_letter, leading_option, video_mme
from eval.tasks.published.videos import segments
from eval.tasks.settings import one_of, whole


@dataclass(frozen=True, kw_only=True)
class VideoTask(Published):
    """Questions with options about videos.

    Attributes:
        frames: so many of each video, evenly spread.
        segments: into which they are cut, each a chunk.
        form: ``video``: a segment is a video; ``images``: every frame is a chunk by itself.
    """

    frames: int = 32
    segments: int = 8
    form: str = "video"

    max_new_tokens = 16
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {
        **Published.settings,
        "frames": whole,
        "segments": whole,
        "form": one_of("video", "images"),
    }

    def cut(
        self, file: Callable[[], Path], begin: float | int = 0, end: float | int = float("inf")
    ) -> Callable[[], list[Any]]:
        """The segments of a file, read when they are asked for."""

        def media() -> list[Any]:
            return segments(file(), self.segments, self.frames, begin=begin, end=end, still=self.form == "images")

        return media

    def letters(self, folder: DataFolder, record: Mapping[str, Any], where: str) -> tuple[str, str]:
        """The options of a question, lettered, and the letter of the right one."""
        options = folder.texts(record, "options", where)
        answer = folder.field(record, "answer", where).strip()
        if answer not in [chr(65 + i) for i in range(len(options))]:
            raise DataError(f"{where}: the answer is {answer!r} of {len(options)} options; expected a letter of theirs")
        return lettered(options), answer

    def answered(self, samples: Sequence[Mapping[str, Any]], by: str) -> dict[str, float]:
        """Accuracy over what was answered at all, by a label and overall: what official scripts print."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for sample in samples:
            for name in (str(sample[by]), "overall"):
                groups.setdefault(name, []).append(sample)
        found = {}
        for name, own in sorted(groups.items()):
            counted = [each["accuracy"] for each in own if each["answered"]]
            found[name] = round(sum(counted) / len(counted), 6) if counted else 0.0
        return found


@dataclass(frozen=True, kw_only=True)
class VideoMME(VideoTask):
    """Video-MME (arXiv 2405.21075): three questions about each video, without subtitles."""

    name = "video-mme"
    LAYOUT = """
DIR/video-mme.json       (or any one .json file) [{video_id, duration, domain, questions [{question_id, question,
                         options, answer}]}], or a record for each question with its video's fields
DIR/videos/VIDEO_ID.mp4  as videoID, else video_id, names them (or DIR/data/…)
"""
    VARIANT = (
        "accuracy: every question counts; as reported: eval_your_results.py, unanswered ones left out; no subtitles"
    )
    SOURCE = "https://github.com/MME-Benchmarks/Video-MME"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The file of the questions: ``video-mme.json``, or the only JSON file there is."""
        others = sorted(path.name for path in folder.root.glob("*.json"))
        return [folder.first("video-mme.json", *(others if len(others) == 1 else ()))]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each video."""
        (path,) = self.annotations(folder)
        videos: dict[str, list[Question]] = {}
        named: dict[str, tuple[str, str]] = {}
        for where, record in folder.records(path):
            video = str(folder.field(record, "videoID" if "videoID" in record else "video_id", where, str, int))
            duration = folder.field(record, "duration" if "duration" in record else "duration_category", where)
            asked = folder.field(record, "questions", where, list) if "questions" in record else [record]
            for each in asked:
                if not isinstance(each, dict):
                    raise DataError(f"{where} has a question that is no object{self._but}")
                listed, answer = self.letters(folder, each, where)
                text = (
                    "Select the best answer to the following multiple-choice question based on the video. Respond with "
                    f"only the letter (A, B, C, or D) of the correct option.\n{folder.field(each, 'question', where)}\n"
                    f"{listed}\nThe best answer is:"
                )
                videos.setdefault(video, []).append(Question(text, (answer,), condition=duration))
                named.setdefault(video, (where, duration))
        for video, questions in videos.items():
            where, duration = named[video]
            file = partial(folder.media, f"{video}.mp4", where, "videos", "data", "")
            yield Source(video, duration, self.cut(file), given(questions), file)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the option is right, and whether there is one."""
        option = video_mme(said)
        return {"accuracy": float(option == question.answers[0]), "answered": float(option != "")}

    def summary(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """By duration and overall, as the official script prints it: unanswered questions are left out."""
        return self.answered(samples, "condition")


@dataclass(frozen=True, kw_only=True)
class EgoSchema(VideoTask):
    """EgoSchema (arXiv 2308.09126): one question with five options about each video of three minutes."""

    name = "egoschema"
    LAYOUT = """
DIR/questions.json        [{q_uid, question, "option 0", …, "option 4"}]
DIR/subset_answers.json   {q_uid: 0 to 4}: the 500 questions whose answers are public; others are left out
DIR/videos/Q_UID.mp4
"""
    VARIANT = "the public subset; accuracy; an answer's option is the letter that it begins with"
    SOURCE = "https://github.com/egoschema/EgoSchema"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """Questions and answers."""
        return [folder.first("questions.json"), folder.first("subset_answers.json")]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each question whose answer is known."""
        asked, known = self.annotations(folder)
        answers = folder.json(known)
        if not isinstance(answers, dict):
            raise DataError(f"{known} is no object of answers by q_uid{self._but}")
        for where, record in folder.records(asked):
            name = folder.field(record, "q_uid", where)
            if name not in answers:
                continue
            options = [folder.field(record, f"option {i}", where) for i in range(5)]
            right = answers[name]
            if isinstance(right, bool) or right not in range(5):
                raise DataError(f"{known}: the answer of {name} is {right!r}; expected 0 to 4")
            text = f"{folder.field(record, 'question', where)}\n{lettered(options)}\nAnswer with the option's letter."
            file = partial(folder.media, f"{name}.mp4", where, "videos", "good_clips_git", "")
            question = Question(text, (chr(65 + right),), choices=options)
            yield Source(name, "all", self.cut(file), given((question,)), file)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the letter is right."""
        return {"accuracy": float(leading_option(said, 5) == question.answers[0])}


@dataclass(frozen=True, kw_only=True)
class StreamingBench(VideoTask):
    """StreamingBench (arXiv 2411.03628): questions at moments of a video, about the minute before.

    Attributes:
        seconds: of the video before the question.
    """

    seconds: int = 60

    name = "streamingbench"
    settings: ClassVar[Mapping[str, Callable[[str, str], Any]]] = {**VideoTask.settings, "seconds": whole}
    LAYOUT = """
DIR/questions_real.json   (or any one .json file) [{video_path, questions [{task_type, question, time_stamp, answer,
                          options}]}]
DIR/VIDEO_PATH            the videos, as video_path names them below DIR (or DIR/videos)
"""
    VARIANT = (
        "multiple choice, the last 60 s before the question; accuracy: every question counts; as reported: empty "
        "answers left out, as the official script does"
    )
    SOURCE = "https://github.com/THUNLP-MT/StreamingBench"

    def annotations(self, folder: DataFolder) -> Sequence[Path]:
        """The file of the questions: ``questions_real.json``, or the only JSON file there is."""
        others = sorted(path.name for path in folder.root.glob("*.json"))
        return [folder.first("questions_real.json", *(others if len(others) == 1 else ()))]

    def read(self, folder: DataFolder) -> Iterator[Source]:
        """A context for each moment of a video that is asked about."""
        (path,) = self.annotations(folder)
        moments: dict[tuple[str, int], list[Question]] = {}
        named: dict[tuple[str, int], tuple[str, str]] = {}
        for where, record in folder.records(path):
            video = folder.field(record, "video_path", where).removeprefix("./")
            for each in folder.field(record, "questions", where, list):
                if not isinstance(each, dict):
                    raise DataError(f"{where} has a question that is no object{self._but}")
                at = _seconds(folder.field(each, "time_stamp", where), where)
                kind = folder.field(each, "task_type", where)
                listed, answer = self.letters(folder, each, where)
                text = (
                    "Answer the multiple-choice question about the video. Respond with only the letter of the correct "
                    f"option.\n\nQuestion: {folder.field(each, 'question', where)}\n\nOptions:\n{listed}\n\n"
                    "The best option is:"
                )
                moments.setdefault((video, at), []).append(Question(text, (answer,), condition=kind))
                named.setdefault((video, at), (where, kind))
        for (video, at), questions in moments.items():
            where, kind = named[video, at]
            file = partial(folder.media, video, where, "", "videos")
            media = self.cut(file, max(0, at - self.seconds), at)
            yield Source(f"{video}@{at}", kind, media, given(questions), file)

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the first character is the letter, and whether there is one."""
        letter = first_letter(said)
        return {"accuracy": float(letter == question.answers[0]), "answered": float(letter != "")}

    def summary(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """By task type and overall, as the official script prints it: empty answers are left out."""
        return self.answered(samples, "condition")


def _seconds(text: str, where: str) -> int:
    """Seconds of a time written as 1:23 or 00:01:23."""
    parts = text.strip().split(":")
    if not all(part.isdecimal() for part in parts) or not 1 <= len(parts) <= 3:
        raise DataError(f"{where}: time_stamp is {text!r}; expected a time such as 00:01:23")
    return sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
