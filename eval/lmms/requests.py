"""What lmms-eval asks for, as chunks, a question and how the answer is generated; nothing here needs lmms-eval."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.tasks.published.videos import Stretch
from kamera_jax.items import Audio, Video
from models.media.sampling import FPS
from models.media.video_files import SUFFIXES, VideoFile, read_video

IMAGE = "<image>"
"""Where lmms-eval's texts show an image."""


class RequestError(ValueError):
    """A request of lmms-eval that is not served."""


@dataclass(frozen=True)
class Visuals:
    """How visuals become items.

    Attributes:
        frames: so many frames of each video, evenly spread; None for what the model's preprocessing takes of a file.
        fps: frames a second of a file, or of frames that come without times; None as ``frames``, and 1.
    """

    frames: int | None = None
    fps: float | int | None = None

    def item(self, visual: Any) -> Any:
        """A visual as `VisionLanguageModel.prepare` takes it.

        Args:
            visual: a PIL image or uint8[H, W, 3], a path of an image, video or recording, frames (a list of images, or
                uint8[n, H, W, 3]), a record of ``datasets`` (bytes or path of an image, or samples and their rate), or
                a content part with a ``url``, which may say ``video_start`` and ``video_end`` (seconds).

        Raises:
            RequestError: it is none of these.
            ValueError: a file cannot be read.
        """
        if isinstance(visual, Mapping):
            return self._of_record(visual)
        if isinstance(visual, str | Path):
            return self._of_path(visual)
        if isinstance(visual, Image.Image):
            return visual
        if isinstance(visual, list | tuple) and visual and all(isinstance(each, Image.Image) for each in visual):
            return self._of_frames(np.stack([np.asarray(each.convert("RGB")) for each in visual]))
        if isinstance(visual, np.ndarray):
            return self._of_frames(visual) if visual.ndim == 4 else visual
        raise RequestError(
            f"a visual is of type {type(visual).__name__}; expected an image, a path, frames of a video, or a record "
            "with one of these"
        )

    def _of_path(self, path: str | Path) -> Any:
        if "://" in str(path):
            raise RequestError(f"a visual is the address {str(path)!r}; files on this machine are read: download it")
        path = Path(path)
        if not path.is_file():
            raise RequestError(f"a visual is the file {path}, which is not there")
        if path.suffix.lower() in SUFFIXES:
            return VideoFile(path, fps=None if self.frames else self.fps, frames=self.frames)
        return path

    def _of_frames(self, frames: np.ndarray) -> Video:
        if self.frames is not None and len(frames) > self.frames:
            frames = frames[np.arange(self.frames) * len(frames) // self.frames]
        return Video.at_rate(frames, self.fps or 1)

    def _of_record(self, record: Mapping[str, Any]) -> Any:
        if "array" in record and "sampling_rate" in record:
            return Audio(np.asarray(record["array"], np.float32), int(record["sampling_rate"]))
        if isinstance(record.get("bytes"), bytes):
            return Image.open(io.BytesIO(record["bytes"]))
        found = next((record[name] for name in ("url", "path", "video", "image") if record.get(name) is not None), None)
        if found is None:
            raise RequestError(f"a visual is a record of {', '.join(map(str, record)) or 'nothing'}; expected a url")
        if record.get("video_start") is None and record.get("video_end") is None:
            return self.item(found)
        item = self.item(found)
        if not isinstance(item, VideoFile):
            raise RequestError(f"a visual has video_start or video_end, and {found!r} is no video file")
        begin = float(record.get("video_start") or 0)
        end = float("inf") if record.get("video_end") is None else float(record["video_end"])
        if self.frames is None and end == float("inf"):
            raise RequestError("a visual is the rest of a video from video_start on; give frames= of the model")
        count = self.frames or max(1, round((end - begin) * (self.fps or FPS)))
        return read_video(item.path, Stretch(frames=count, begin=begin, end=end))


def asked_in_text(text: str, visuals: Sequence[Any], item: Callable[[Any], Any]) -> tuple[list[Any], str]:
    """Items and question of a text with visuals beside it.

    Where the text has an `IMAGE` for each visual, and goes on behind the last, visuals stand there; else before it,
    without these marks. White space at the ends of texts is left out.
    """
    parts = text.split(IMAGE)
    if visuals and len(parts) == len(visuals) + 1 and parts[-1].strip():
        items: list[Any] = []
        for before, visual in zip(parts, visuals, strict=False):
            items += [before.strip(), item(visual)] if before.strip() else [item(visual)]
        return items, parts[-1].strip()
    return [item(visual) for visual in visuals], "".join(parts).strip()


def asked_in_messages(messages: Any, item: Callable[[Any], Any], system: str | None = None) -> tuple[list[Any], str]:
    """Items and question of one message of the user's: what stands behind its last medium is the question.

    A message that ends with a medium has its texts, joined, as the question. A system message has to be the model's.

    Raises:
        RequestError: there are several messages, or none of the user's.
    """
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise RequestError(f"messages are of type {type(messages).__name__}; expected a list of objects with a role")
    said = [each for each in messages if each.get("role") == "system"]
    if said and [_text(each) for each in said] != [(system or "").strip()]:
        raise RequestError(
            f"the task has the system text {_text(said[0])!r}, and the model was loaded with {system!r}: the preamble "
            "is a part of every chunk; give it as system= among the model's arguments"
        )
    rest = [each for each in messages if each.get("role") != "system"]
    if len(rest) != 1 or rest[0].get("role") != "user":
        roles = ", ".join(str(each.get("role")) for each in rest)
        raise RequestError(
            f"the task has messages of {roles or 'nobody'}; expected one of the user's: examples as turns of their own "
            "are not served (--force_simple has them as text)"
        )
    parts: list[tuple[str, Any]] = []
    for part in _parts(rest[0]):
        kind = part.get("type")
        if kind == "text" and parts and parts[-1][0] == "text":
            parts[-1] = ("text", parts[-1][1] + str(part.get("text", "")))
        elif kind == "text":
            parts.append(("text", str(part.get("text", ""))))
        else:
            parts.append(("medium", part))
    parts = [(kind, part.strip() if kind == "text" else part) for kind, part in parts]
    parts = [(kind, part) for kind, part in parts if part]
    if parts and parts[-1][0] == "text":
        *before, (_, question) = parts
        return [part if kind == "text" else item(part) for kind, part in before], question
    texts = [part for kind, part in parts if kind == "text"]
    return [item(part) for kind, part in parts if kind != "text"], "\n".join(texts)


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise RequestError(
            f"a message has a {type(content).__name__} as its content; expected a text or a list of parts"
        )
    return content


def _text(message: Mapping[str, Any]) -> str:
    return "".join(str(part.get("text", "")) for part in _parts(message)).strip()


def decoding(given: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """What `eval.run.serving.Server.answers` takes, of a task's ``generation_kwargs``; other names there are left.

    A temperature above 0 draws, whatever ``do_sample`` says, as lmms-eval's own models have it.

    Args:
        given: ``until``, ``max_new_tokens``, ``temperature``, ``top_k``, ``top_p``.
        longest: tokens of an answer where the task does not say.

    Raises:
        RequestError: beam search or a penalty is asked for, or a value cannot be.
    """
    for name in ("num_beams", "repetition_penalty"):
        if given.get(name) not in (None, 1):
            raise RequestError(f"{name} is {given[name]!r}; answers are greedy or drawn: leave it out")
    until = given.get("until") or []
    stop = [until] if isinstance(until, str) else until
    if not isinstance(stop, list | tuple) or not all(isinstance(each, str) for each in stop):
        raise RequestError(f"until is {until!r}; expected a text, or a list of texts")
    try:
        temperature = float(given.get("temperature") or 0)
        most = int(longest if given.get("max_new_tokens") is None else given["max_new_tokens"])
        top_k = int(given["top_k"]) if temperature and given.get("top_k") else None
        top_p = float(given["top_p"]) if temperature and given.get("top_p") else None
    except (TypeError, ValueError) as error:
        raise RequestError(f"generation_kwargs are {dict(given)}; expected numbers ({error})") from error
    found = {"max_new_tokens": most, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {**found, "stop": tuple(each for each in stop if each)}
