"""Qwen3-Omni's thinker, as `models.vlm` serves it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kamera_jax.items import Video
from models.architecture import Architecture
from models.blocks.params import Params
from models.hub.thinkers import alone
from models.media.sampling import MAX_FRAMES, Sampling
from models.media.sound import AudioMedium, less_sound
from models.media.spans import Features
from models.ports.qwen2_5_omni.port import SilentVideoMedium, image_config_from_hf
from models.ports.qwen2_5_vl.images import ImageConfig
from models.ports.qwen2_5_vl.video import MIN_FRAMES, seconds_of, stated_frames, video_config_from_hf
from models.ports.qwen3_omni import audio
from models.ports.qwen3_omni.config import MODEL_TYPE, config_from_hf
from models.ports.qwen3_omni.weights import weight_table
from models.ports.qwen3_vl import port, vision

FPS = 1.0
"""Frames a second that are taken of a file where its preprocessing does not say (HF ``Qwen3OmniMoeProcessor``)."""

SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}
"""Bounds on the area of a frame, which the same class has, unless videos have a file of their own."""


@dataclass(frozen=True)
class FractionalVideoMedium(SilentVideoMedium):
    """Videos, without their sound, whose temporal patches stand at their times, fractions of a position included.

    What follows a video begins behind its largest position on any axis, so at a fraction too.
    """

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> ImageConfig:
        """See `models.architecture.Medium`."""
        given = less_sound(preprocessing)
        if "video_processor_type" not in given:
            given = {name: each for name, each in given.items() if name not in ("min_pixels", "max_pixels")}
            given["size"] = SIZE
        return video_config_from_hf(given, config.towers[self.tower].patch_size, defaults={"size": SIZE})

    def sampling(self, preprocessing: Mapping[str, Any], config: Any) -> Sampling:
        """See `models.architecture.sampling_of`."""
        frames = self.settings(preprocessing, config).temporal_patch_size
        return Sampling(**stated_frames(preprocessing, MIN_FRAMES, MAX_FRAMES, FPS), multiple=frames)

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`; the tower is that of the images."""
        return vision.vision_declaration(tower)

    def times(self, item: Video, frames: int, rate: float | int) -> np.ndarray:
        """Positions of its temporal patches on the time axis, from 0, f64: one every so many frames."""
        return seconds_of(item, frames) * rate

    def plan(self, rows: int, columns: int, tower: Any) -> vision.VisionPlan:
        """The layout of one temporal patch, of so many rows and columns of patches."""
        return vision.plan(rows, columns, tower)

    def encode(self, params: Params, tower: Any, inputs: Any, plan: Any) -> Features:
        """See `models.architecture.Medium`."""
        return vision.encode_image(params, tower, inputs, plan)


IMAGES = replace(port.IMAGES, settings_from_hf=image_config_from_hf)
SOUND = AudioMedium(audio.audio_declaration, audio.plan, audio.encode_audio, audio.unit, mirrored=True, least=1)

ARCHITECTURE = Architecture(MODEL_TYPE, config_from_hf, weight_table, (IMAGES, FractionalVideoMedium(), SOUND))

THINKER = replace(ARCHITECTURE, name=alone(MODEL_TYPE))
