"""LLaVA-OneVision, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.ports.llava_onevision.config import config_from_hf
from models.ports.llava_onevision.media import TileMedium, VideoMedium
from models.ports.llava_onevision.weights import weight_table

ARCHITECTURE = Architecture("llava_onevision", config_from_hf, weight_table, (TileMedium(), VideoMedium()))
