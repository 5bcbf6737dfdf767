"""The hub names of Kimi-VL's tensors, and where they go."""

import numpy as np

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Row, Transform, WeightTable, flattened_kernel
from models.ports.kimi_vl.vision import VisionConfig


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``language_model.model.*``, ``vision_tower.*``)."""
    return port_table(
        config.text, vision_rows(config.vision), model="language_model.model", head="language_model.lm_head"
    )


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower and its projector."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    block = "vision_tower.encoder.blocks.{}"
    blocks = "vision/blocks"
    return [
        Row("vision_tower.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("vision_tower.patch_embed.proj.bias", "vision/patch_embed/b"),
        Row("vision_tower.patch_embed.pos_emb.weight", "vision/positions"),
        Row(f"{block}.wqkv.weight", f"{blocks}/attn/qkv/w", half_split(config, transposed=True)),
        Row(f"{block}.wqkv.bias", f"{blocks}/attn/qkv/b", half_split(config, transposed=False)),
        *dense_rows(f"{block}.wo", f"{blocks}/attn/o"),
        *norm_rows(f"{block}.norm0", f"{blocks}/attn_norm"),
        *norm_rows(f"{block}.norm1", f"{blocks}/mlp_norm"),
        *dense_rows(f"{block}.mlp.fc0", f"{blocks}/mlp/hidden"),
        *dense_rows(f"{block}.mlp.fc1", f"{blocks}/mlp/out"),
        *norm_rows("vision_tower.encoder.final_layernorm", "vision/norm"),
        *norm_rows("multi_modal_projector.pre_norm", "vision/projector/norm"),
        *dense_rows("multi_modal_projector.linear_1", "vision/projector/hidden"),
        *dense_rows("multi_modal_projector.linear_2", "vision/projector/out"),
    ]


def half_split(config: VisionConfig, *, transposed: bool) -> Transform:
    """The outputs of ``wqkv``, with the pairs of q and k as `models.blocks.vit.axial_rotation` turns them.

    On the hub the two members of a pair are neighbours, and columns turn the even pairs, rows the odd ones. Here the
    members are half a head apart, and the rows' pairs come first.

    Args:
        config: the tower's configuration.
        transposed: for the weight, which is [in, out] here.
    """
    pairs = np.arange(config.head_dim // 2)
    pairs = np.concatenate([pairs[1::2], pairs[::2]])
    head = np.concatenate([2 * pairs, 2 * pairs + 1])
    heads = (np.arange(2 * config.num_heads)[:, None] * config.head_dim + head).reshape(-1)
    outputs = np.concatenate([heads, np.arange(2 * config.hidden_size, 3 * config.hidden_size)])
    back = np.argsort(outputs)
    if transposed:
        return Transform(lambda x: x[outputs].T, lambda x: x.T[back])
    return Transform(lambda x: x[outputs], lambda x: x[back])
