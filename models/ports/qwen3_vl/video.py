"""Videos of Qwen3-VL: frames in pairs through the tower of its images, each behind its time as text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kamera_jax.items import Video
from models.blocks.params import Params
from models.blocks.vit import pad_patches
from models.hub.chat import ChatTemplate
from models.media.images import check_aspect, resized
from models.media.sampling import EndToEndSampling
from models.media.spans import Features, Span
from models.ports.qwen2_5_vl.images import ImageConfig, cut_patches
from models.ports.qwen2_5_vl.port import image_positions
from models.ports.qwen2_5_vl.video import VideoMedium, stated_frames, video_config_from_hf
from models.ports.qwen3_vl.vision import encode_image, plan, vision_declaration

_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}
DEFAULTS = {"size": _SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
"""What a file of videos' own leaves out; the sizes bound the area of all frames together."""

MIN_FRAMES = 4
"""Frames that are taken of a file at least, where its preprocessing does not say."""

MAX_FRAMES = 768
"""Frames that are taken of a file at most, where its preprocessing does not say."""


def video_size(frames: int, height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """The size that so many frames are resized to (HF ``smart_resize`` of ``Qwen3VLVideoProcessor``).

    Whole merged tokens, with the area of all frames within bounds. One frame is taken twice.

    Raises:
        AspectRatioError: one side is more than 200 times the other.
    """
    factor = config.patch_size * config.merge_size
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height = int(height * scale)
        width = int(width * scale)
    check_aspect(width, height)
    frames = max(frames, config.temporal_patch_size)
    whole = round(frames / config.temporal_patch_size) * config.temporal_patch_size
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if whole * rows * columns > config.max_pixels:
        shrink = math.sqrt(frames * height * width / config.max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif whole * rows * columns < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (frames * height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def stamps(times: np.ndarray, frames: int) -> list[str]:
    """What is written before each temporal patch of so many frames: the mean of its first and its last frame's time.

    A time is f32, and means the shortest decimal number that it can be: 0.15 s, not 0.150000006.
    """
    seconds = [float(str(time)) for time in times]
    seconds += seconds[-1:] * (-len(seconds) % frames)
    firsts = range(0, len(seconds), frames)
    return [f"<{(seconds[first] + seconds[first + frames - 1]) / 2:.1f} seconds>" for first in firsts]


@dataclass(frozen=True)
class TimedVideoMedium(VideoMedium):
    """Videos: a temporal patch is two frames, sees no other in the tower, and is written as an image behind its time.

    Attributes:
        framed: whether the start and end tokens that the chat template writes around a video stay around all of its
            temporal patches, as in transformers 5; as published, in transformers 4, the patches take their place.
    """

    framed: bool = False

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> ImageConfig:
        """See `models.architecture.Medium`."""
        patch_size = config.towers[self.tower].patch_size
        return video_config_from_hf(preprocessing, patch_size, ("Qwen3VLVideoProcessor",), DEFAULTS)

    def sampling(self, preprocessing: Mapping[str, Any], config: Any) -> EndToEndSampling:
        """See `models.architecture.sampling_of`; from the first frame to the last one, of any number of frames."""
        return EndToEndSampling(**stated_frames(preprocessing, MIN_FRAMES, MAX_FRAMES))

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`; the tower is that of the images."""
        return vision_declaration(tower)

    def around(self, config: Any) -> tuple[int, int] | None:
        """See `models.architecture.Medium`."""
        return None if self.framed else config.media[self.kind]

    def spans(
        self,
        item: Video,
        settings: ImageConfig,
        config: Any,
        chat: ChatTemplate,
        encode: Callable[[Any, Any], Features],
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`: for each temporal patch its time, and a block between start and end."""
        tower = config.towers[self.tower]
        start, end = config.media[self.kind]
        count = settings.temporal_patch_size
        frames = _fitted(item, settings)
        spans = []
        for number, stamp in enumerate(stamps(item.times, count)):
            pair = frames[number * count : (number + 1) * count]
            cut = cut_patches(pair + pair[-1:] * (count - len(pair)), settings)
            _, rows, columns = cut.grid
            layout = plan(rows, columns, tower)
            features = encode(pad_patches(cut.patches, layout), layout)
            tokens = [config.placeholders[self.kind]] * int(layout.tokens)
            block = Span(tokens, features, *image_positions(rows, columns, tower))
            spans += [Span([*chat.ids(stamp), start]), block, Span([end])]
        return spans

    def cut(self, item: Video, settings: ImageConfig, config: Any, tokens: int) -> Sequence[Video]:
        """See `models.architecture.Medium`; parts are whole temporal patches, their frames resized as in the whole."""
        height, width = video_size(len(item.frames), item.frames.shape[1], item.frames.shape[2], settings)
        each = height * width // (settings.patch_size * settings.merge_size) ** 2
        frames = max(1, tokens // each) * settings.temporal_patch_size
        if frames >= len(item.frames):
            return [item]
        item = Video(np.stack([np.asarray(frame) for frame in _fitted(item, settings)]), item.times)
        return [item.between(first, first + frames) for first in range(0, len(item.frames), frames)]

    def encode(self, params: Params, tower: Any, inputs: Any, plan: Any) -> Features:
        """See `models.architecture.Medium`."""
        return encode_image(params, tower, inputs, plan)


def _fitted(item: Video, settings: ImageConfig) -> list[Image.Image]:
    """The frames, resized to whole merged tokens."""
    height, width = video_size(len(item.frames), item.frames.shape[1], item.frames.shape[2], settings)
    return [resized(Image.fromarray(frame), width, height) for frame in item.frames]
