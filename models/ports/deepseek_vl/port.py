"""DeepSeek-VL, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.ports.deepseek_vl import images, vision
from models.ports.deepseek_vl.config import config_from_hf
from models.ports.deepseek_vl.weights import weight_table

ARCHITECTURE = Architecture("deepseek_vl", config_from_hf, weight_table, images, vision)
