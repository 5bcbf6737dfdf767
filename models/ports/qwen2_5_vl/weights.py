"""The hub names of Qwen2.5-VL's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table, swiglu_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.qwen2_5_vl.config import VisionConfig

_IN_MEMORY = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
"""transformers 5 names its modules so; a state dict written as it is has these names."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.layers.*``, ``visual.*``, ``lm_head.*``)."""
    return port_table(
        config.text, tower_rows(config.vision, "visual"), renames=_IN_MEMORY, ignored=(r"visual\..*\.inv_freq",)
    )


def tower_rows(vision: VisionConfig, name: str, *, fused: bool = True) -> list[Row]:
    """The rows of the vision tower, whose hub names begin with ``name``; see `vision.vision_declaration` for fused."""
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    projections = ("qkv",) if fused else ("q", "k", "v")
    return [
        Row(f"{name}.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row(f"{name}.blocks.{{}}.norm1.weight", "vision/blocks/attn_norm"),
        Row(f"{name}.blocks.{{}}.norm2.weight", "vision/blocks/mlp_norm"),
        Row(f"{name}.merger.ln_q.weight", "vision/merger/norm"),
        *swiglu_rows(f"{name}.blocks.{{}}.mlp", "vision/blocks/mlp", bias=True),
        *(
            row
            for each in projections
            for row in dense_rows(f"{name}.blocks.{{}}.attn.{each}", f"vision/blocks/attn/{each}")
        ),
        *dense_rows(f"{name}.blocks.{{}}.attn.proj", "vision/blocks/attn/o"),
        *dense_rows(f"{name}.merger.mlp.0", "vision/merger/hidden"),
        *dense_rows(f"{name}.merger.mlp.2", "vision/merger/out"),
    ]
