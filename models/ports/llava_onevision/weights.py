"""The hub names of LLaVA-OneVision's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import encoder_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.llava.weights import RENAMES as LLAVA_RENAMES
from models.ports.llava.weights import tower_ignored
from models.ports.llava_onevision.vision import VisionConfig

RENAMES = (*LLAVA_RENAMES, (r"^model\.image_newline$", "image_newline"))
"""A state dict of transformers 5 written as it is, and the published checkpoints, written by transformers 4."""

HEAD = (
    r"vision_tower\.head\.probe",
    r"vision_tower\.head\.attention\.(in_proj_|out_proj\.)(weight|bias)",
    r"vision_tower\.head\.(layernorm|mlp\.fc[12])\.(weight|bias)",
)
"""The pooling head, whose output is not used; checkpoints with ``vision_use_head`` have it."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``language_model.model.*``, ``vision_tower.*``)."""
    names = {"model": "language_model.model", "head": "language_model.lm_head"}
    ignored = (*tower_ignored(config.vision.depth, config.vision.stored_depth), *HEAD)
    return port_table(config.text, vision_rows(config.vision), **names, renames=RENAMES, ignored=ignored)


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower, as far as it runs, its projector, and the end of a row."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    bias = config.projector_bias
    return [
        Row("vision_tower.embeddings.patch_embedding.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("vision_tower.embeddings.patch_embedding.bias", "vision/patch_embed/b"),
        Row("vision_tower.embeddings.position_embedding.weight", "vision/positions"),
        *encoder_rows("vision_tower.encoder", "vision/blocks"),
        *dense_rows("multi_modal_projector.linear_1", "vision/projector/hidden", bias=bias),
        *dense_rows("multi_modal_projector.linear_2", "vision/projector/out", bias=bias),
        Row("image_newline", "vision/newline"),
    ]
