"""LLaVA-1.5, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.ports.llava import images, vision
from models.ports.llava.config import config_from_hf
from models.ports.llava.weights import weight_table

ARCHITECTURE = Architecture("llava", config_from_hf, weight_table, images, vision)
