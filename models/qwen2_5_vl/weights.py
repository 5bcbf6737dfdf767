"""The hub names of Qwen2.5-VL's tensors, and where they go."""

from models.qwen2_5_vl.config import Config
from models.weights import TRANSPOSED, Row, WeightTable, flattened_kernel

_IN_MEMORY = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
"""transformers 5 names its modules so; a state dict written as it is has these names."""

_BUFFERS = (r"(model|visual)\..*\.inv_freq",)


def weight_table(config: Config) -> WeightTable:
    """The table for `models.weights`, in the hub's spelling (``model.layers.*``, ``visual.*``, ``lm_head.weight``).

    A head tied to the embeddings may be stored again as ``lm_head.weight``, if it is equal to them.
    """
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    rows = [
        Row("model.embed_tokens.weight", "text/embed/w"),
        Row("model.norm.weight", "text/norm"),
        Row("model.layers.{}.input_layernorm.weight", "text/layers/attn_norm"),
        Row("model.layers.{}.post_attention_layernorm.weight", "text/layers/mlp_norm"),
        Row("visual.patch_embed.proj.weight", "vision/patch_embed/w", flattened_kernel(kernel)),
        Row("visual.blocks.{}.norm1.weight", "vision/blocks/attn_norm"),
        Row("visual.blocks.{}.norm2.weight", "vision/blocks/mlp_norm"),
        Row("visual.merger.ln_q.weight", "vision/merger/norm"),
        *_dense("visual.blocks.{}.attn.qkv", "vision/blocks/attn/qkv"),
        *_dense("visual.blocks.{}.attn.proj", "vision/blocks/attn/o"),
        *_dense("visual.merger.mlp.0", "vision/merger/hidden"),
        *_dense("visual.merger.mlp.2", "vision/merger/out"),
    ]
    for p in "qkvo":
        rows += _dense(f"model.layers.{{}}.self_attn.{p}_proj", f"text/layers/attn/{p}", bias=p != "o")
    for p in ("gate", "up", "down"):
        rows += _dense(f"model.layers.{{}}.mlp.{p}_proj", f"text/layers/mlp/{p}", bias=False)
        rows += _dense(f"visual.blocks.{{}}.mlp.{p}_proj", f"vision/blocks/mlp/{p}")
    tied = config.text.tie_word_embeddings
    if not tied:
        rows += _dense("lm_head", "text/head", bias=False)
    return WeightTable(
        rows=tuple(rows),
        renames=_IN_MEMORY,
        copies=(("lm_head.weight", "model.embed_tokens.weight"),) if tied else (),
        ignored=_BUFFERS,
    )


def _dense(name: str, path: str, *, bias: bool = True) -> list[Row]:
    weight = Row(f"{name}.weight", f"{path}/w", TRANSPOSED)
    return [weight, Row(f"{name}.bias", f"{path}/b")] if bias else [weight]
