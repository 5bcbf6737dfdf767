"""The hub names of Idefics3's and SmolVLM2's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import encoder_rows, norm_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.idefics3.vision import VisionConfig


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.text_model.*``, ``model.vision_model.*``)."""
    return port_table(config.text, vision_rows(config.vision), model="model.text_model")


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower and its connector."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    tower = "model.vision_model"
    return [
        Row(f"{tower}.embeddings.patch_embedding.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row(f"{tower}.embeddings.patch_embedding.bias", "vision/patch_embed/b"),
        Row(f"{tower}.embeddings.position_embedding.weight", "vision/positions"),
        *encoder_rows(f"{tower}.encoder", "vision/blocks"),
        *norm_rows(f"{tower}.post_layernorm", "vision/norm"),
        *dense_rows("model.connector.modality_projection.proj", "vision/connector", bias=False),
    ]
