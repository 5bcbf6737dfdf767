"""LLaVA-1.5, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.media.still import ImageMedium
from models.ports.llava import images, vision
from models.ports.llava.config import config_from_hf
from models.ports.llava.weights import weight_table

IMAGES = ImageMedium(
    images.ImageConfig.from_hf, images.preprocess_image, vision.vision_declaration, vision.plan, vision.encode_image
)

ARCHITECTURE = Architecture("llava", config_from_hf, weight_table, (IMAGES,))
