"""Qwen2.5-Omni's thinker, as `models.vlm` serves it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.architecture import Architecture
from models.blocks.params import Params
from models.hub.thinkers import alone
from models.media.sampling import Sampling
from models.media.sound import AudioMedium, less_sound
from models.ports.qwen2_5_omni import audio
from models.ports.qwen2_5_omni.config import config_from_hf
from models.ports.qwen2_5_omni.weights import weight_table
from models.ports.qwen2_5_vl import port
from models.ports.qwen2_5_vl.images import ImageConfig
from models.ports.qwen2_5_vl.video import VideoMedium
from models.ports.qwen2_5_vl.vision import vision_declaration


def image_config_from_hf(mapping: Mapping[str, Any], patch_size: int = 14) -> ImageConfig:
    """As `ImageConfig.from_hf`, of a file that says how sound is preprocessed too.

    Raises:
        UnknownConfigFieldError, UnsupportedConfigError: see there.
    """
    return ImageConfig.from_hf(less_sound(mapping), patch_size)


def declared(config: Any) -> Params:
    """The vision tower, whose queries, keys and values are layers of their own."""
    return vision_declaration(config, fused=False)


@dataclass(frozen=True)
class SilentVideoMedium(VideoMedium):
    """Videos, without their sound: frames as in Qwen2.5-VL, with `position_id_per_seconds` between their times."""

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> ImageConfig:
        """See `models.architecture.Medium`."""
        return super().settings(less_sound(preprocessing), config)

    def sampling(self, preprocessing: Mapping[str, Any], config: Any) -> Sampling:
        """See `models.architecture.sampling_of`."""
        return super().sampling(less_sound(preprocessing), config)

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`; the tower is that of the images."""
        return declared(tower)


IMAGES = replace(port.IMAGES, settings_from_hf=image_config_from_hf, declared=declared)
SOUND = AudioMedium(audio.audio_declaration, audio.plan, audio.encode_audio, audio.unit)

ARCHITECTURE = Architecture("qwen2_5_omni", config_from_hf, weight_table, (IMAGES, SilentVideoMedium(), SOUND))

THINKER = replace(ARCHITECTURE, name=alone(ARCHITECTURE.name))
