"""The hub names of LLaVA-1.5's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import encoder_rows, norm_rows
from models.hub.weight_table import Row, WeightTable, flattened_kernel
from models.ports.llava.vision import VisionConfig

_TEXT_RENAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)

VISION_RENAMES = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)
RENAMES = (*_TEXT_RENAMES, *VISION_RENAMES)
"""A state dict of transformers 5 written as it is, and the published checkpoints, written by transformers 4."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``language_model.model.*``, ``vision_tower.*``)."""
    return port_table(
        config.text,
        vision_rows(config.vision),
        model="language_model.model",
        head="language_model.lm_head",
        renames=RENAMES,
        ignored=vision_ignored(config.vision),
    )


def vision_ignored(config: VisionConfig) -> tuple[str, ...]:
    """As `tower_ignored`, of a tower."""
    return tower_ignored(config.depth, config.stored_depth)


def tower_ignored(depth: int, stored_depth: int) -> tuple[str, ...]:
    """Names of what does not run: the blocks after the feature, the norm that pools, and a buffer."""
    unused = "|".join(map(str, range(depth, stored_depth)))
    names = r"(layer_norm[12]|mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)\.(weight|bias)"
    blocks = (rf"vision_tower\.encoder\.layers\.({unused})\.{names}",) if unused else ()
    return (
        r"vision_tower\.embeddings\.position_ids",
        r"vision_tower\.post_layernorm\.(weight|bias)",
        *blocks,
    )


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower, as far as it runs, and its projector."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    bias = config.projector_bias
    return [
        Row("vision_tower.embeddings.class_embedding", "vision/class"),
        Row("vision_tower.embeddings.patch_embedding.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("vision_tower.embeddings.position_embedding.weight", "vision/positions"),
        *norm_rows("vision_tower.pre_layrnorm", "vision/pre_norm"),
        *encoder_rows("vision_tower.encoder", "vision/blocks"),
        *dense_rows("multi_modal_projector.linear_1", "vision/projector/hidden", bias=bias),
        *dense_rows("multi_modal_projector.linear_2", "vision/projector/out", bias=bias),
    ]
