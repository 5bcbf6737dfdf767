"""Qwen3-VL, dense and with experts, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.media.still import ImageMedium
from models.ports.qwen2_5_vl import images
from models.ports.qwen2_5_vl.port import image_positions
from models.ports.qwen3_vl import vision
from models.ports.qwen3_vl.config import FAMILIES, config_from_hf
from models.ports.qwen3_vl.video import TimedVideoMedium
from models.ports.qwen3_vl.weights import weight_table

IMAGES = ImageMedium(
    images.ImageConfig.from_hf,
    images.preprocess_image,
    vision.vision_declaration,
    vision.plan,
    vision.encode_image,
    image_positions,
)

ARCHITECTURES = tuple(
    Architecture(model_type, config_from_hf, weight_table, (IMAGES, TimedVideoMedium())) for model_type in FAMILIES
)
