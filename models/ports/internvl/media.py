"""Images and videos of InternVL3: tiles and frames, each a block of tokens of its own, with the texts around them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kamera_jax.items import Video
from models.architecture import Config, Encode
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError
from models.media.images import check_image_size
from models.media.moving import FrameByFrame
from models.media.sampling import FPS, UNBOUNDED, ShiftedSampling
from models.media.spans import Span
from models.media.still import ImageMedium
from models.ports.internvl.images import ImageConfig

NUM_FRAMES = 8
"""Frames that are taken of a file where its preprocessing says neither ``num_frames`` nor ``fps``; as published, with
an example that takes so many."""


@dataclass(frozen=True)
class TileMedium(ImageMedium):
    """Images: tiles, and the whole image behind them, side by side between two tokens."""

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> ImageConfig:
        """See `models.architecture.Medium`."""
        settings = super().settings(preprocessing, config)
        check_image_size(settings.tile, config.vision.image_size)
        return settings

    def pictures(self, item: Any) -> Iterator[tuple[str, Image.Image]]:
        """What is cut into tiles, and the text before each picture."""
        yield "", item

    def spans(
        self, item: Any, settings: ImageConfig, config: Config, chat: ChatTemplate, encode: Encode
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`."""
        for mark in ("<img>", "</img>"):
            chat.token(mark)  # refuses a tokenizer without it
        spans = []
        before = ""
        for text, picture in self.pictures(item):
            cut = self.preprocess(picture, settings)
            plan = self.plan(*cut.grid[1:], config.vision)
            ids = [config.placeholders["image"]] * int(plan.tokens)
            spans.append(Span(chat.ids(f"{before}{text}<img>")))
            spans += [Span(ids, encode(patches, plan)) for patches in np.split(cut.patches, cut.grid[0])]
            before = "</img>"
        return [*spans, Span(chat.ids(before))]


@dataclass(frozen=True)
class VideoMedium(FrameByFrame, TileMedium):
    """Videos: each frame is one tile behind its number, ``Frame1: `` first; when it is shown, the model does not read.

    Frames do not see each other in the tower, so a long video is cut between them, and each part counts from 1.
    """

    kind: str = "video"
    items: str = "videos (a file, or kamera_jax.Video)"
    placeholder: str = "<video>"

    def sampling(self, preprocessing: Mapping[str, Any], config: Config) -> ShiftedSampling:
        """See `models.architecture.sampling_of`."""
        return sampling_from_hf(preprocessing)

    def pictures(self, item: Video) -> Iterator[tuple[str, Image.Image]]:
        """The frames, with a line for each."""
        for index, frame in enumerate(item.frames):
            yield "\n" * (index > 0) + f"Frame{index + 1}: ", Image.fromarray(frame)


def video_config_from_hf(mapping: Mapping[str, Any], patch_size: int = 14) -> ImageConfig:
    """As `ImageConfig.from_hf`, from a ``video_preprocessor_config.json``, or from the images' where there is none."""
    fields = Fields("video_preprocessor_config.json", mapping)
    fields.expect("video_processor_type", "InternVLVideoProcessor")
    # Which frames to take of a file is for `sampling_from_hf`.
    fields.ignore("do_sample_frames", "fps", "num_frames", "initial_shift", "return_metadata", "video_metadata")
    return ImageConfig.from_hf({**fields.rest, "min_patches": 1, "max_patches": 1}, patch_size)


def sampling_from_hf(mapping: Mapping[str, Any]) -> ShiftedSampling:
    """Which frames are taken of a file, from the preprocessing of videos (HF ``InternVLVideoProcessor``).

    So many frames as ``num_frames`` states, else ``fps`` a second, else `NUM_FRAMES`; each in the middle of its part,
    or from the frame on that ``initial_shift`` states (false: the first).

    Raises:
        UnsupportedConfigError: a number that cannot be.
    """
    section = "video_preprocessor_config.json"
    names = ("num_frames", "fps")
    fields = Fields(section, {name: mapping.get(name) for name in names})
    frames = fields.size("num_frames") if "num_frames" in fields.rest else None
    fps = fields.positive("fps") if "fps" in fields.rest else None
    shift = mapping.get("initial_shift")
    if isinstance(shift, bool) or shift is None:
        shift = 0 if shift is False else None
    elif not isinstance(shift, int | float) or not 0 <= shift < float("inf"):
        raise UnsupportedConfigError(
            f"{section}: initial_shift is {shift!r:.200}; expected true, false, or a number of frames, 0 at least"
        )
    if frames is None and fps is None:
        frames = NUM_FRAMES
    return ShiftedSampling(fps=FPS if fps is None else fps, frames=frames, most=UNBOUNDED, shift=shift)
