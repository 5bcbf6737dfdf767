"""The hub names of DeepSeek-VL's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import encoder_rows, norm_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.deepseek_vl.vision import VisionConfig

VISION_RENAMES = ((r"^model\.vision_model\.vision_model\.", "model.vision_model."),)
"""Up to transformers 4 SigLIP had a module within the module; the published checkpoints have its names."""

VISION_IGNORED = (
    r"model\.vision_model\.embeddings\.position_ids",
    r"model\.vision_model\.head\.probe",
    r"model\.vision_model\.head\.attention\.(in_proj_|out_proj\.)(weight|bias)",
    r"model\.vision_model\.head\.(layernorm|mlp\.fc[12])\.(weight|bias)",
)
"""A buffer, and the pooling head, whose output is not used; checkpoints with ``vision_use_head`` have it."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling, ``model.language_model.*`` and the like."""
    return port_table(
        config.text,
        vision_rows(config.vision),
        model="model.language_model",
        renames=VISION_RENAMES,
        ignored=VISION_IGNORED,
    )


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower and its projector."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    tower = "model.vision_model"
    return [
        Row(f"{tower}.embeddings.patch_embedding.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row(f"{tower}.embeddings.patch_embedding.bias", "vision/patch_embed/b"),
        Row(f"{tower}.embeddings.position_embedding.weight", "vision/positions"),
        *encoder_rows(f"{tower}.encoder", "vision/blocks"),
        *norm_rows(f"{tower}.post_layernorm", "vision/norm"),
        *dense_rows("model.aligner.linear1", "vision/projector/hidden"),
        *dense_rows("model.aligner.linear2", "vision/projector/out"),
    ]
