"""Kimi-VL, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.ports.kimi_vl import images, vision
from models.ports.kimi_vl.config import config_from_hf
from models.ports.kimi_vl.weights import weight_table

ARCHITECTURE = Architecture("kimi_vl", config_from_hf, weight_table, images, vision)
