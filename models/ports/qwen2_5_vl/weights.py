"""The hub names of Qwen2.5-VL's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table, swiglu_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel

_IN_MEMORY = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
"""transformers 5 names its modules so; a state dict written as it is has these names."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.layers.*``, ``visual.*``, ``lm_head.*``)."""
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    rows = [
        Row("visual.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("visual.blocks.{}.norm1.weight", "vision/blocks/attn_norm"),
        Row("visual.blocks.{}.norm2.weight", "vision/blocks/mlp_norm"),
        Row("visual.merger.ln_q.weight", "vision/merger/norm"),
        *swiglu_rows("visual.blocks.{}.mlp", "vision/blocks/mlp", bias=True),
        *dense_rows("visual.blocks.{}.attn.qkv", "vision/blocks/attn/qkv"),
        *dense_rows("visual.blocks.{}.attn.proj", "vision/blocks/attn/o"),
        *dense_rows("visual.merger.mlp.0", "vision/merger/hidden"),
        *dense_rows("visual.merger.mlp.2", "vision/merger/out"),
    ]
    return port_table(config.text, rows, renames=_IN_MEMORY, ignored=(r"visual\..*\.inv_freq",))
