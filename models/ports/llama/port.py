"""Text-only language models, as `models.vlm` serves them: one port for several model types."""

from models.architecture import Architecture
from models.ports.llama.config import FAMILIES, config_from_hf
from models.ports.llama.weights import weight_table

ARCHITECTURES = tuple(Architecture(model_type, config_from_hf, weight_table) for model_type in FAMILIES)
