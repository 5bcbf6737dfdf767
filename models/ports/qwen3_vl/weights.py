"""The hub names of Qwen3-VL's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.language_model.*``, ``model.visual.*``)."""
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    block = "model.visual.blocks.{}"
    rows = [
        Row("model.visual.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("model.visual.patch_embed.proj.bias", "vision/patch_embed/b"),
        Row("model.visual.pos_embed.weight", "vision/positions"),
        *norm_rows(f"{block}.norm1", "vision/blocks/attn_norm"),
        *norm_rows(f"{block}.norm2", "vision/blocks/mlp_norm"),
        *dense_rows(f"{block}.attn.qkv", "vision/blocks/attn/qkv"),
        *dense_rows(f"{block}.attn.proj", "vision/blocks/attn/o"),
        *dense_rows(f"{block}.mlp.linear_fc1", "vision/blocks/mlp/hidden"),
        *dense_rows(f"{block}.mlp.linear_fc2", "vision/blocks/mlp/out"),
        *_merger_rows("model.visual.merger", "vision/merger"),
    ]
    if vision.deepstack_visual_indexes:
        rows += _merger_rows("model.visual.deepstack_merger_list.{}", "vision/deep")
    return port_table(config.text, rows, model="model.language_model", ignored=(r"model\.visual\..*\.inv_freq",))


def _merger_rows(name: str, path: str) -> list[Row]:
    """Rows of what makes one token of several patches."""
    return [
        *norm_rows(f"{name}.norm", f"{path}/norm"),
        *dense_rows(f"{name}.linear_fc1", f"{path}/hidden"),
        *dense_rows(f"{name}.linear_fc2", f"{path}/out"),
    ]
