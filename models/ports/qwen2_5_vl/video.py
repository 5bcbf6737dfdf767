"""Videos of Qwen2.5-VL: frames in pairs through the tower of its images, each at its time (HF ``get_rope_index``)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from PIL import Image

from kamera_jax.items import Video
from models.blocks.params import Params
from models.blocks.vit import pad_patches
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError
from models.media.moving import VideoItems
from models.media.sampling import FPS, MAX_FRAMES, Sampling
from models.media.spans import Features, Span
from models.ports.qwen2_5_vl.images import ImageConfig, cut_patches, fitted, smart_resize
from models.ports.qwen2_5_vl.vision import encode_image, plan, vision_declaration

_SAMPLING = (
    *("do_sample_frames", "fps", "num_frames", "min_frames", "max_frames", "max_video_tokens"),
    *("return_metadata", "video_metadata"),
)
"""Fields about which frames to take of a file, which `sampling_from_hf` reads, and what to return."""

MIN_FRAMES = 4
"""Frames that are taken of a file at least, where its preprocessing does not say."""

_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
"""Bounds on the area of a resized frame, where a file of videos' own leaves them out."""

ROUNDING = 1e-3
"""Of a position: a time in f32 may lie this far below the whole position that it stands for."""


def video_config_from_hf(
    mapping: Mapping[str, Any],
    patch_size: int = 14,
    processors: Sequence[str] = ("Qwen2VLVideoProcessor", "Qwen2_5_VLVideoProcessor"),
    defaults: Mapping[str, Any] = MappingProxyType({"size": _SIZE}),
) -> ImageConfig:
    """How frames become patches, from a ``video_preprocessor_config.json``, or from the images' where there is none.

    Args:
        mapping: the file.
        patch_size: of the tower.
        processors: video processors of transformers that compute what the port does.
        defaults: what a file of videos' own leaves out.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        UnsupportedConfigError: a value that asks for other preprocessing, named.
    """
    if "video_processor_type" not in mapping:
        return ImageConfig.from_hf(mapping, patch_size)
    fields = Fields("video_preprocessor_config.json", mapping)
    fields.expect("video_processor_type", *processors)
    fields.expect("cap_pixels_per_frame", False)
    fields.ignore(*_SAMPLING)
    rest = {**defaults, **{name: value for name, value in fields.rest.items() if value is not None}}
    rest.pop("image_processor_type", None)  # of the images, in a file that both were written to
    return ImageConfig.from_hf(rest, patch_size)


def stated_frames(mapping: Mapping[str, Any], least: int, most: int, fps: float = FPS) -> dict[str, Any]:
    """Which frames are taken of a file, from the preprocessing of videos, as arguments of a `Sampling`.

    Where it states neither ``fps`` nor ``num_frames``, as the published files do, two frames a second are taken, as the
    models' own utilities do, or ``fps``. ``do_sample_frames`` is about frames that were read before: of a file some are
    always taken.

    Args:
        mapping: the preprocessing of videos.
        least: frames at least, where it does not state ``min_frames``.
        most: frames at most, where it does not state ``max_frames``.
        fps: frames a second, where it states no number of frames either.

    Raises:
        UnsupportedConfigError: a number that cannot be, or both of the two.
    """
    names = ("fps", "num_frames", "min_frames", "max_frames")
    stated = {name: mapping[name] for name in names if mapping.get(name) is not None}
    if "fps" in stated and "num_frames" in stated:
        raise UnsupportedConfigError(
            "video_preprocessor_config.json says fps and num_frames; expected one of them: the other is null"
        )
    fields = Fields("video_preprocessor_config.json", stated)
    return {
        "fps": fields.positive("fps", fps),
        "frames": fields.size("num_frames", 1) if "num_frames" in stated else None,
        "least": fields.size("min_frames", least),
        "most": fields.size("max_frames", most),
    }


def sampling_from_hf(mapping: Mapping[str, Any], multiple: int) -> Sampling:
    """As `stated_frames`, for HF ``Qwen2VLVideoProcessor``; ``multiple`` frames are a temporal patch."""
    return Sampling(**stated_frames(mapping, MIN_FRAMES, MAX_FRAMES), multiple=multiple)


@dataclass(frozen=True)
class VideoMedium(VideoItems):
    """Videos: a temporal patch is two frames, and sees no other in the tower; an odd last frame is repeated.

    Between two temporal patches the time axis moves by the seconds between them times ``tokens_per_second`` of the
    configuration, in whole positions; what follows the video begins behind its largest position on any axis, as the
    model was trained. (transformers 5 begins it at max(rows, columns), within the video where that is longer.)
    """

    kind: str = "video"
    tower: str = "vision"
    items: str = "videos (a file, or kamera_jax.Video)"

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> ImageConfig:
        """See `models.architecture.Medium`."""
        return video_config_from_hf(preprocessing, config.towers[self.tower].patch_size)

    def sampling(self, preprocessing: Mapping[str, Any], config: Any) -> Sampling:
        """See `models.architecture.sampling_of`."""
        return sampling_from_hf(preprocessing, self.settings(preprocessing, config).temporal_patch_size)

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`; the tower is that of the images."""
        return vision_declaration(tower)

    def spans(
        self,
        item: Video,
        settings: ImageConfig,
        config: Any,
        chat: ChatTemplate,
        encode: Callable[[Any, Any], Features],
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`: a span for each temporal patch."""
        tower = config.towers[self.tower]
        frames = settings.temporal_patch_size
        begins = range(0, len(item.frames), frames)
        spans = []
        for begin, time in zip(begins, self.times(item, frames, config.media[self.kind]), strict=True):
            pair = [fitted(Image.fromarray(frame), settings) for frame in item.frames[begin : begin + frames]]
            cut = cut_patches(pair + pair[-1:] * (frames - len(pair)), settings)
            _, rows, columns = cut.grid
            layout = self.plan(rows, columns, tower)
            features = encode(pad_patches(cut.patches, layout), layout)
            merged = (rows // tower.spatial_merge_size, columns // tower.spatial_merge_size)
            row, column = np.divmod(np.arange(int(layout.tokens)), merged[1])
            positions = np.stack([np.full(len(row), time), row, column]).astype(np.float32)
            last = begin == begins[-1]
            advance = float(max(time + 1, *merged)) if last else 0.0
            spans.append(Span([config.placeholders[self.kind]] * len(row), features, positions, advance))
        return spans

    def times(self, item: Video, frames: int, rate: float | int) -> np.ndarray:
        """Positions of its temporal patches on the time axis, from 0, f64: one every so many frames."""
        # Hours from the first frame of a file, an f32 is some thousandths of a second away from the time it stands for.
        rounding = ROUNDING + rate * float(np.spacing(np.abs(item.times).max()))
        return np.floor(seconds_of(item, frames) * rate + rounding)

    def plan(self, rows: int, columns: int, tower: Any) -> Any:
        """The layout of one temporal patch, of so many rows and columns of patches."""
        return plan(rows, columns, tower)

    def cut(self, item: Video, settings: ImageConfig, config: Any, tokens: int) -> Sequence[Video]:
        """See `models.architecture.Medium`; each part is whole temporal patches, one at least."""
        height, width = smart_resize(item.frames.shape[1], item.frames.shape[2], settings)
        each = height * width // (settings.patch_size * settings.merge_size) ** 2
        frames = max(1, tokens // each) * settings.temporal_patch_size
        return [item.between(first, first + frames) for first in range(0, len(item.frames), frames)]

    def encode(self, params: Params, tower: Any, inputs: jax.Array, plan: Any) -> Features:
        """See `models.architecture.Medium`."""
        return Features(encode_image(params, tower, inputs, plan))


def seconds_of(item: Video, frames: int) -> np.ndarray:
    """Seconds from its first frame to each temporal patch of so many frames, f64."""
    return item.times.astype(np.float64)[::frames] - float(item.times[0])
