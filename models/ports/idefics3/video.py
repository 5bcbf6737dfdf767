"""Videos of SmolVLM2: frames, each an image of one tile behind the time that it is shown at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from kamera_jax.items import Video
from models.architecture import Config, Encode
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields
from models.media.images import check_image_size
from models.media.moving import FrameByFrame
from models.media.sampling import TrimmedSampling
from models.media.spans import Span
from models.ports.idefics3.images import ImageConfig, tiles_of
from models.ports.idefics3.media import FENCE, WHOLE, TileMedium

FPS = 1.0
MAX_FRAMES = 64
"""Frames a second, and at most, that are taken of a file; as published, where its preprocessing does not say."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number below a million in English words, such as ``one hundred and twenty-one`` (package num2words)."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joined = " and " if rest < 100 else ", "
    return f"{in_words(thousands)} thousand" + (f"{joined}{in_words(rest)}" if rest else "")


@dataclass(frozen=True)
class FrameMedium(FrameByFrame, TileMedium):
    """Videos: what HF ``SmolVLMProcessor`` writes of them, frames in place of the placeholder of an image.

    A line says how many frames there are, in words, and how long they go on: to the last frame's time, which is what
    the processor takes where it knows no length. Frames do not see each other in the tower, so a long video is cut
    between them, and each part's times count from 0.
    """

    kind: str = "video"
    items: str = "videos (a file, or kamera_jax.Video)"
    written_as: str = "image"

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> ImageConfig:
        """See `models.architecture.Medium`."""
        settings = video_config_from_hf(preprocessing, config.vision.patch_size)
        check_image_size(settings.tile, config.vision.image_size)
        return settings

    def sampling(self, preprocessing: Mapping[str, Any], config: Config) -> TrimmedSampling:
        """See `models.architecture.sampling_of`."""
        stated = _stated(Fields("video_preprocessor_config.json", preprocessing))
        return TrimmedSampling(stated["fps"], most=stated["max_frames"])

    def spans(
        self, item: Video, settings: ImageConfig, config: Config, chat: ChatTemplate, encode: Encode
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`."""
        frames = [tiles_of(Image.fromarray(frame), settings)[0][0] for frame in item.frames]
        before = f"{introduction(item)}\n"
        spans = []
        for frame, seconds in zip(frames, item.times.tolist(), strict=True):
            minutes, rest = divmod(int(seconds), 60)
            before += f"Frame from {minutes:02d}:{rest:02d}:{FENCE}{WHOLE}"
            spans += self.tile(before, frame, settings, config, chat, encode)
            before = f"{FENCE}\n"
        return [*spans, Span(chat.ids(f"{FENCE}\n\n"))]


def introduction(item: Video) -> str:
    """The line before a video's frames."""
    minutes, seconds = divmod(int(item.times[-1]), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    long = f"{days} day{'s' * (days > 1)}, " * (days > 0) + f"{hours}:{minutes:02d}:{seconds:02d}"
    count = in_words(len(item.frames))
    return f"You are provided the following series of {count} frames from a {long} [H:MM:SS] video.\n"


def video_config_from_hf(mapping: Mapping[str, Any], patch_size: int = 14) -> ImageConfig:
    """As `ImageConfig.from_hf`, from a ``video_preprocessor_config.json``, or from the images' where there is none.

    Frames are not cut into tiles, and ``video_size`` in ``video_sampling`` is the size of their longer side.
    """
    fields = Fields("video_preprocessor_config.json", mapping)
    fields.expect("video_processor_type", "SmolVLMVideoProcessor")
    # Which frames to take of a file is for `FrameMedium.sampling`.
    fields.ignore("do_sample_frames", "fps", "num_frames", "return_metadata", "video_metadata", "device")
    size = _stated(fields)["video_size"] or fields.rest.get("size", {"longest_edge": ImageConfig.longest_edge})
    return ImageConfig.from_hf({**fields.rest, "size": size, "do_image_splitting": False}, patch_size)


def _stated(fields: Fields) -> dict[str, Any]:
    """Takes ``video_sampling``: a rate, the most frames, and their size, which may be None.

    Raises:
        ConfigError: it is no object, has something else in it, or a number that cannot be.
    """
    said = Fields(f"{fields.section}: video_sampling", fields.take("video_sampling", dict, {}))
    stated = {
        "fps": said.positive("fps", FPS),
        "max_frames": said.size("max_frames", MAX_FRAMES),
        "video_size": said.take("video_size", dict, None),
    }
    said.close()
    return stated
