"""The hub names of Qwen3-VL's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.qwen3_vl.vision import VisionConfig


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``model.language_model.*``, ``model.visual.*``)."""
    rows = tower_rows(config.vision, "model.visual")
    return port_table(config.text, rows, model="model.language_model", ignored=(r"model\.visual\..*\.inv_freq",))


def tower_rows(
    vision: VisionConfig,
    name: str,
    *,
    deep: str = "deepstack_merger_list",
    merger: tuple[str, str, str] = ("norm", "linear_fc1", "linear_fc2"),
) -> list[Row]:
    """The rows of the vision tower, whose hub names begin with ``name``.

    Args:
        vision: its configuration.
        name: see above.
        deep: what the hub calls the mergers of DeepStack.
        merger: what it calls a merger's norm and its two layers.
    """
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    block = f"{name}.blocks.{{}}"
    rows = [
        Row(f"{name}.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row(f"{name}.patch_embed.proj.bias", "vision/patch_embed/b"),
        Row(f"{name}.pos_embed.weight", "vision/positions"),
        *norm_rows(f"{block}.norm1", "vision/blocks/attn_norm"),
        *norm_rows(f"{block}.norm2", "vision/blocks/mlp_norm"),
        *dense_rows(f"{block}.attn.qkv", "vision/blocks/attn/qkv"),
        *dense_rows(f"{block}.attn.proj", "vision/blocks/attn/o"),
        *dense_rows(f"{block}.mlp.linear_fc1", "vision/blocks/mlp/hidden"),
        *dense_rows(f"{block}.mlp.linear_fc2", "vision/blocks/mlp/out"),
        *_merger_rows(f"{name}.merger", merger, "vision/merger"),
    ]
    return rows + (
        _merger_rows(f"{name}.{deep}.{{}}", merger, "vision/deep") if vision.deepstack_visual_indexes else []
    )


def _merger_rows(name: str, parts: tuple[str, str, str], path: str) -> list[Row]:
    """Rows of what makes one token of several patches."""
    norm, hidden, out = parts
    return [
        *norm_rows(f"{name}.{norm}", f"{path}/norm"),
        *dense_rows(f"{name}.{hidden}", f"{path}/hidden"),
        *dense_rows(f"{name}.{out}", f"{path}/out"),
    ]
