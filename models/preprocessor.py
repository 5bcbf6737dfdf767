"""What the host does with an item before the model sees it: numpy in, numpy out, in any process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from kamera_jax.errors import ModelLengthError
from kamera_jax.handle import traced
from kamera_jax.items import Audio, Video
from models.architecture import Architecture, Config, Medium, around_of, less_around, placeholder_of, written_as
from models.errors import ItemError, PreprocessedError
from models.hub.borders import Piece, warn_of_trailing_space
from models.hub.chat import Block, ChatTemplate
from models.items import Part, Preprocessed, digest
from models.media.files import MAX_TEXT_BYTES, MediaFileError
from models.media.mistaken import instead_of, warn_of_path
from models.media.pictures import ImageError, open_item
from models.media.recordings import AudioFile, RecordedSegment, audio_file, read_audio
from models.media.sampling import Sampling
from models.media.sound import AudioMedium
from models.media.spans import Pending, Span, advance_of
from models.media.video_files import FileSegment, VideoFile, file_segments, read_video, video_file

_SLICE = 2**15
"""Letters of a long text whose tokens are counted together, to see whether it is longer than the model."""

_LETTERS = 256
"""Letters of a token, at most: of a text with more of them for each position nothing is tokenized."""

_MARGIN = 32
"""Tokens that cutting a text into such slices adds at most, for each slice."""


class Preprocessor:
    """A model's reading of items, without its parameters: what a loader's workers call.

    It pickles, runs nothing on a device and starts no JAX backend, so that it works in forked processes too.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: Config,
        chat: ChatTemplate,
        settings: Mapping[str, Any],
        identity: str,
        sampling: Mapping[str, Sampling] | None = None,
    ) -> None:
        """Put together what `VisionLanguageModel` has; ``identity`` is a digest of what decides the result."""
        self.architecture = architecture
        self.config = config
        self.identity = identity
        self._chat = chat
        self._settings = settings
        self._sampling = sampling or {}

    def __repr__(self) -> str:
        return f"<Preprocessor of {self.architecture.name}, for {self.identity[:12]}: reads {self._readable()}>"

    def __call__(self, item: Any) -> Preprocessed:
        """The item, preprocessed; see `VisionLanguageModel.prepare` for what it may be.

        Raises:
            ValueError: it cannot be read, is empty, or has another type.
        """
        if isinstance(item, Preprocessed):
            return self.checked(item)
        spans, content = self.read(item, lambda medium: partial(Pending, medium.kind))
        return Preprocessed(tuple(spans), content, self.identity)

    def checked(self, item: Preprocessed) -> Preprocessed:
        """The preprocessed item, if it was made for this model.

        Raises:
            PreprocessedError: it was made for another one.
        """
        if item.made_for != self.identity:
            raise PreprocessedError(
                f"the item was preprocessed for {item.made_for[:12]}, another configuration or preprocessing than this "
                f"model's {self.identity[:12]}; preprocess it with this model's preprocess"
            )
        return item

    def read(self, item: Any, encoder: Callable[[Medium], Any]) -> tuple[list[Span], str]:
        """The spans of an item, and the digest of its content.

        Args:
            item: see `VisionLanguageModel.prepare`.
            encoder: what makes features of each medium's inputs.

        Raises:
            ModelLengthError: it is longer than the model.
            ValueError: it cannot be read, is empty, or has another type.
        """
        parts = self._parts(item)
        self._check_texts(parts)
        self._check_end(parts[-1])
        spans = self._spans(parts, encoder)
        ids = [number for span in spans for number in span.ids]
        # What the chat template writes around media is a part of the chunk.
        if len(parts) == 1:
            content = parts[0].digest(ids)
        else:
            content = digest(f"parts:{ids}:{[part.digest([]) for part in parts]}")
        return spans, content

    def answered(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a question with the assistant header, and of a text as its answer, without what ends a turn."""
        return self._chat.tail(question), self._chat.answer(question, answer)

    def cut(self, item: Any, *, tokens: int) -> tuple[Any, ...]:
        """A long item in parts that `prepare` takes one by one, each of at most so many tokens.

        A text is cut before a paragraph break, else before white space, so that the parts' token ids in a row are those
        of the whole; see `models.hub.borders.pieces`. Its parts are `Preprocessed`, whose ``text`` in a row is the
        text, less the white space that the chat template takes from its ends. A video is cut between temporal patches,
        of which each part has one at least, or between frames that are read as images, and a recording where the audio
        tower sees no further, each part normalised with the whole; media tokens are counted.
        Images and lists stay whole, and what needs no cut. Each part's positions count from its own start.

        Raises:
            ValueError: the item cannot be read, or ``tokens`` is below 1.
        """
        if tokens < 1:
            raise ValueError(f"parts have at least 1 token; got tokens={tokens}")
        if isinstance(item, Preprocessed):
            return (self.checked(item),)
        if (file := audio_file(_only(item))) is not None:
            medium = self._sound(file)
            return medium.cut_file(file, self._settings[medium.kind], self.config, tokens)
        read = self._read(_only(item))
        parts = self._parts(item if read is _only(item) else read)
        medium = parts[0].medium
        if isinstance(read, Video) and self.architecture.frames_as_images:
            return self._cut_frames(read, parts[0], tokens)
        if len(parts) > 1:
            return (item,)
        if medium is None:
            pieces = self._chat.cut(parts[0].item, tokens)
            if len(pieces) == 1:
                return (item,)
            self._check_end(parts[0])
            return tuple(map(self._piece, pieces))
        return tuple(medium.cut(parts[0].item, self._settings[medium.kind], self.config, tokens))

    def _cut_frames(self, video: Video, first: Part, tokens: int) -> tuple[Video, ...]:
        """A video whose frames are read as images, in parts of at most so many tokens, or one frame."""
        each = sum(len(span.ids) for span in self._block(first, lambda medium: partial(Pending, medium.kind)))
        frames = max(1, tokens // each)
        return tuple(video.between(begin, begin + frames) for begin in range(0, len(video.frames), frames))

    def segments(self, item: Any, *, seconds: float | int) -> Iterator[Any]:
        """The segments of a video or recording, or a file of one, each read when it is asked for; any other item alone.

        Args:
            item: see `VisionLanguageModel.prepare`; a file is a path, a `models.VideoFile` or a `models.AudioFile`.
            seconds: the length of a segment; of a recording at most, in whole pieces of the audio tower.

        Raises:
            ValueError: ``seconds`` is not above 0, or the file cannot be read, where the segment in work cannot be.
        """
        item = _only(item)
        if isinstance(item, Video):
            yield from item.segments(seconds)
        elif (file := video_file(item)) is not None:
            for segment in self.file_segments(file, seconds=seconds):
                yield segment.item
        elif (recording := item if isinstance(item, Audio) else audio_file(item)) is not None:
            for segment in self.recorded(recording, seconds=seconds):
                yield segment.item
        else:
            yield item

    def file_segments(
        self, item: Path | VideoFile | AudioFile, *, seconds: float | int
    ) -> Iterator[FileSegment | RecordedSegment]:
        """As `segments`, of a file, each with its times and a name for messages; another path is a video's."""
        if (recording := audio_file(item)) is not None:
            return self.recorded(recording, seconds=seconds)
        assert not isinstance(item, AudioFile)
        file = VideoFile(item) if isinstance(item, Path) else item
        return file_segments(file.path, seconds, self._sampling_for(file))

    def recorded(self, item: Audio | AudioFile, *, seconds: float | int) -> Iterator[RecordedSegment]:
        """As `segments`, of a recording."""
        medium = self._sound(item)
        return medium.segments(item, self._settings[medium.kind], self.config, seconds=seconds)

    def _sound(self, item: Any) -> AudioMedium:
        """What reads recordings.

        Raises:
            ItemError: the model reads none.
        """
        for medium in self.architecture.media:
            if isinstance(medium, AudioMedium):
                return medium
        name = item.path if isinstance(item, AudioFile) else "the item"
        raise ItemError(f"{name} is a recording; this model reads {self._readable()}")

    def _sampling_for(self, file: VideoFile) -> Sampling:
        """The frames that are taken of a file.

        Raises:
            ItemError: the model reads no videos.
        """
        kind = "image" if self.architecture.frames_as_images else "video"
        if kind not in [medium.kind for medium in self.architecture.media]:
            raise ItemError(f"{file.path} is a video; this model reads {self._readable()}")
        return self._sampling.get(kind, Sampling()).wanting(file.fps, file.frames)

    def _read(self, item: Any) -> Any:
        """A video file's frames and times, and the sound of a recording; any other item as it is."""
        if (recording := audio_file(item)) is not None:
            return read_audio(recording.path, self._settings[self._sound(recording).kind].seconds)
        file = video_file(item)
        return item if file is None else read_video(file.path, self._sampling_for(file))

    def _piece(self, piece: Piece) -> Preprocessed:
        """A piece of a text, as the text of its own that has these token ids."""
        part = _text_part(piece.text)
        return Preprocessed((Span(piece.ids),), part.digest(piece.ids), self.identity, piece.text)

    def _check_texts(self, parts: Sequence[Part]) -> None:
        """Raise ModelLengthError if the texts alone are longer than the model; not all of them is tokenized for that.

        Texts of a few letters more than fit are left to `_check_length`, which counts exactly.
        """
        limit = self.config.text.max_positions
        texts = [part.item for part in parts if part.medium is None]
        letters = sum(map(len, texts))
        if limit is None or letters <= limit:
            return
        if letters > limit * _LETTERS:
            raise ModelLengthError(
                f"a text of {letters} letters is longer than a model for {limit} positions reads: cut it up, as "
                "kamera_jax.encode_all does"
            )
        count = 0
        for text in texts:
            for start in range(0, len(text), _SLICE):
                count += max(0, len(self._chat.ids(text[start : start + _SLICE])) - _MARGIN)
                if count > limit:
                    raise ModelLengthError(
                        f"a text of {letters} letters has more than {count} tokens; the model is for {limit} positions:"
                        " cut it up, as kamera_jax.encode_all does"
                    )

    def _check_length(self, spans: Sequence[Span]) -> None:
        """Raise ModelLengthError if these spans, which may be the first of an item, are longer than the model."""
        limit = self.config.text.max_positions
        advance = advance_of(spans)
        if limit is not None and advance > limit:
            raise ModelLengthError(
                f"the item takes {advance:g} positions or more; the model is for {limit}: cut it up, as "
                "kamera_jax.encode_all does, or shrink its images"
            )

    def _check_end(self, part: Part) -> None:
        """Warn where a chunk's last part is a text whose last token depends on what follows."""
        if part.medium is None and self._chat.ends_open(part.item):
            warn_of_trailing_space()

    def _parts(self, item: Any) -> list[Part]:
        """The opened parts of an item; one that is no list has one.

        Raises:
            ValueError: a part cannot be read; of several, the message says which.
        """
        if not isinstance(item, list | tuple):
            return self._of(item)
        if not item:
            raise ItemError(f"the list of a chunk's parts is empty; expected {self._readable()}")
        if len(item) == 1:
            return self._of(_only(item))
        parts = []
        for number, each in enumerate(item, start=1):
            place = f"part {number} of {len(item)}: "
            with named(place):
                parts += [replace(part, place=place) for part in self._of(each)]
        return parts

    def _of(self, item: Any) -> list[Part]:
        """An item that is no list, opened: one part, or the frames of a video that are read as images."""
        item = self._read(item)
        if isinstance(item, Video) and self.architecture.frames_as_images:
            return [self._opened(frame) for frame in item.frames]
        return [self._opened(item)]

    def _opened(self, item: Any) -> Part:
        """One part, read.

        Raises:
            ValueError: it cannot be read, is empty, or has another type.
        """
        if isinstance(item, jax.Array) and not traced(item):
            item = np.asarray(item)
        if isinstance(item, list | tuple):
            raise ItemError(
                f"a {type(item).__name__} stands among the parts of a chunk; expected {self._readable()}: put all "
                "parts in one list, or encode it as a chunk of its own"
            )
        file = f"{item}: " if isinstance(item, Path) else ""
        if isinstance(item, str):
            warn_of_path(item)
        if isinstance(item, str | Path | Image.Image | np.ndarray):
            item = open_item(item)
        if isinstance(item, str):
            if len(item) > MAX_TEXT_BYTES:
                raise ItemError(
                    f"the text has {len(item)} letters, expected {MAX_TEXT_BYTES} at most; hand it in in several parts"
                )
            if not self._chat.encode(item.lstrip()[:_SLICE]) and not self._chat.encode(item):
                raise ItemError(f"{file}the text is empty; a chunk needs at least one token")
            return _text_part(item)
        for medium in self.architecture.media:
            if medium.reads(item):
                item = medium.normal(item)
                return Part(medium, item, medium.digested(item, self._settings[medium.kind]))
        given = "an image" if isinstance(item, Image.Image | np.ndarray) else f"of type {type(item).__name__}"
        raise ItemError(f"the item is {given}; this model reads {self._readable()}{instead_of(item)}")

    def _readable(self) -> str:
        """What the model reads, in words."""
        media = [medium.items for medium in self.architecture.media]
        media += ["videos (a file, or kamera_jax.Video), their frames as images"] * self.architecture.frames_as_images
        return ", ".join([f"text {'' if media else 'alone '}(str, or a .txt or .md file)", *media])

    def _spans(self, parts: Sequence[Part], encoder: Callable[[Medium], Any]) -> list[Span]:
        """Text and media blocks of a chunk, in the order of its tokens."""
        media = [part.medium for part in parts if part.medium is not None]
        placeholders = {written_as(medium): placeholder_of(medium, self.config, self._chat) for medium in media}
        around = {placeholders[written_as(medium)]: around_of(medium, self.config) for medium in media}
        blocks: dict[int, list[Part]] = {}
        for part in parts:
            if part.medium is not None:
                blocks.setdefault(placeholders[written_as(part.medium)], []).append(part)
        content = [part.item if part.medium is None else Block(written_as(part.medium)) for part in parts]
        spans = []
        text: list[int] = []
        for number in less_around(self._chat.content(content, placeholders), around):
            if number not in blocks:
                text.append(number)
                continue
            spans += [Span(text)] if text else []
            text = []
            part = blocks[number].pop(0)
            with named(part.place):
                spans += self._block(part, encoder)
            self._check_length(spans)  # before the next block's tower is run
        spans += [Span(text)] if text else []
        self._check_length(spans)
        return spans

    def _block(self, part: Part, encoder: Callable[[Medium], Any]) -> Sequence[Span]:
        """The spans of a medium's part."""
        medium: Any = part.medium
        return medium.spans(part.item, self._settings[medium.kind], self.config, self._chat, encoder(medium))


def _only(item: Any) -> Any:
    """The item of a list of one, which is that item."""
    return item[0] if isinstance(item, list | tuple) and len(item) == 1 else item


def _text_part(text: str) -> Part:
    return Part(None, text, ("text", text, b""))


@contextmanager
def named(place: str) -> Iterator[None]:
    """Puts ``place`` before the message of what is raised about an item."""
    try:
        yield
    except (ImageError, ItemError, MediaFileError) as error:
        raise type(error)(f"{place}{error}") from error
