"""The hub names of InternVL3's tensors, and where they go."""

from models.architecture import Config
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Row, Transform, WeightTable, flattened_kernel
from models.ports.internvl.vision import VisionConfig

RENAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
)
"""A state dict of transformers written as it is."""


def weight_table(config: Config) -> WeightTable:
    """The table for `models.hub.weights`, in the hub's spelling (``language_model.model.*``, ``vision_tower.*``)."""
    names = {"model": "language_model.model", "head": "language_model.lm_head"}
    ignored = vision_ignored(config.vision)
    return port_table(config.text, vision_rows(config.vision), **names, renames=RENAMES, ignored=ignored)


def vision_ignored(config: VisionConfig) -> tuple[str, ...]:
    """Names of what does not run: the blocks after the feature, and the norm that then does not follow."""
    unused = "|".join(map(str, range(config.depth, config.stored_depth)))
    blocks = (rf"vision_tower\.encoder\.layer\.({unused})\.(attention|mlp|layernorm|lambda)[\w.]*",) if unused else ()
    return blocks if config.final_norm else (r"vision_tower\.layernorm\.(weight|bias)", *blocks)


def vision_rows(config: VisionConfig) -> list[Row]:
    """Rows of the vision tower, as far as it runs, and its projector."""
    kernel = (config.in_channels, config.patch_size, config.patch_size)
    embeddings = "vision_tower.embeddings"
    layer = "vision_tower.encoder.layer.{}"
    blocks = "vision/blocks"
    rows = [
        Row(f"{embeddings}.cls_token", "vision/class", Transform(lambda x: x[0, 0], lambda x: x[None, None])),
        Row(f"{embeddings}.position_embeddings", "vision/positions", Transform(lambda x: x[0], lambda x: x[None])),
        Row(f"{embeddings}.patch_embeddings.projection.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row(f"{embeddings}.patch_embeddings.projection.bias", "vision/patch_embed/b"),
        Row(f"{layer}.lambda_1", f"{blocks}/attn_scale"),
        Row(f"{layer}.lambda_2", f"{blocks}/mlp_scale"),
        *dense_rows(f"{layer}.attention.projection_layer", f"{blocks}/attn/o"),
        *dense_rows(f"{layer}.mlp.fc1", f"{blocks}/mlp/hidden"),
        *dense_rows(f"{layer}.mlp.fc2", f"{blocks}/mlp/out"),
        *norm_rows("multi_modal_projector.layer_norm", "vision/projector/norm"),
        *dense_rows("multi_modal_projector.linear_1", "vision/projector/hidden"),
        *dense_rows("multi_modal_projector.linear_2", "vision/projector/out"),
    ]
    for name, path in (("before", "attn_norm"), ("after", "mlp_norm")):
        rows += norm_rows(f"{layer}.layernorm_{name}", f"{blocks}/{path}")[: 1 if config.rms else 2]
    for p in "qkv":
        rows += dense_rows(f"{layer}.attention.{p}_proj", f"{blocks}/attn/{p}", bias=config.qkv_bias)
    for p in "qk" if config.qk_norm else "":
        rows.append(Row(f"{layer}.attention.{p}_norm.weight", f"{blocks}/attn/{p}_norm"))
    return rows + (norm_rows("vision_tower.layernorm", "vision/norm") if config.final_norm else [])
