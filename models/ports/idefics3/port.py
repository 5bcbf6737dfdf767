"""Idefics3 and SmolVLM2, as `models.vlm` serves them."""

from functools import partial

from models.architecture import Architecture
from models.media.images import cropped_patches
from models.ports.idefics3.config import config_from_hf
from models.ports.idefics3.images import ImageConfig
from models.ports.idefics3.media import TileMedium
from models.ports.idefics3.video import FrameMedium, video_config_from_hf
from models.ports.idefics3.vision import encode_image, plan, vision_declaration
from models.ports.idefics3.weights import weight_table

IMAGES = TileMedium(ImageConfig.from_hf, cropped_patches, vision_declaration, plan, encode_image)

VIDEOS = FrameMedium(video_config_from_hf, cropped_patches, vision_declaration, plan, encode_image)

ARCHITECTURES = tuple(
    Architecture(name, partial(config_from_hf, model_type=name), weight_table, media)
    for name, media in {"idefics3": (IMAGES,), "smolvlm": (IMAGES, VIDEOS)}.items()
)
