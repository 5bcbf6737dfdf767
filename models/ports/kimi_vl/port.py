"""Kimi-VL, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.media.still import ImageMedium
from models.ports.kimi_vl import images, vision
from models.ports.kimi_vl.config import config_from_hf
from models.ports.kimi_vl.weights import weight_table

IMAGES = ImageMedium(
    images.ImageConfig.from_hf, images.preprocess_image, vision.vision_declaration, vision.plan, vision.encode_image
)

ARCHITECTURE = Architecture("kimi_vl", config_from_hf, weight_table, (IMAGES,), frames_as_images=True)
