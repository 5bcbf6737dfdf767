"""InternVL3, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.ports.internvl.config import config_from_hf
from models.ports.internvl.images import ImageConfig, preprocess_image
from models.ports.internvl.media import TileMedium, VideoMedium, video_config_from_hf
from models.ports.internvl.vision import encode_image, plan, vision_declaration
from models.ports.internvl.weights import weight_table

IMAGES = TileMedium(ImageConfig.from_hf, preprocess_image, vision_declaration, plan, encode_image)
VIDEOS = VideoMedium(video_config_from_hf, preprocess_image, vision_declaration, plan, encode_image)

ARCHITECTURE = Architecture("internvl", config_from_hf, weight_table, (IMAGES, VIDEOS))
