"""Configuration of Qwen3-VL, dense and with experts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.architecture import Config
from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig
from models.blocks.moe import Experts
from models.hub.fields import LAYERS, WIDTH, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, one_head, top_fields
from models.ports.qwen2_5_vl.config import read_mrope
from models.ports.qwen3_vl.vision import vision_config_from_hf


@dataclass(frozen=True)
class Family:
    """What transformers' configuration class of one model type says where config.json says nothing.

    Attributes:
        hidden_size, intermediate_size, layers, heads, kv_heads: defaults.
        head_dim: default; None for the width divided by the query heads.
        experts: whether the layers have experts.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int | None
    experts: bool


FAMILIES = {
    "qwen3_vl": Family(4096, 22016, 32, 32, 32, 128, experts=False),
    "qwen3_vl_moe": Family(2048, 5632, 24, 16, 16, None, experts=True),
}
"""By ``model_type``."""


@dataclass(frozen=True)
class Framing:
    """Tokens that stand before and behind the tokens of an image or of a temporal patch of a video."""

    start: int
    end: int


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json`` of one of the `FAMILIES`.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no text_config or vision_config, or no mrope_section.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    kind = mapping.get("model_type")
    kind = kind if isinstance(kind, str) and kind in FAMILIES else "qwen3_vl"
    top = top_fields(mapping, kind)
    text = _text_config(one_head(top), kind)
    vision = vision_config_from_hf(top, text.hidden_size, kind)
    if len(vision.deepstack_visual_indexes) > text.num_hidden_layers:
        raise UnsupportedConfigError(
            f"vision_config: deepstack_visual_indexes names {len(vision.deepstack_visual_indexes)} blocks, whose "
            f"features are added behind as many layers; the language model has {text.num_hidden_layers}"
        )
    config = Config(
        text,
        vision,
        image_token_id=top.size("image_token_id", 151655, least=0),
        media={
            "video": Framing(
                top.size("vision_start_token_id", 151652, least=0), top.size("vision_end_token_id", 151653, least=0)
            )
        },
        placeholders={"video": top.size("video_token_id", 151656, least=0)},
    )
    top.close()
    return config


def _text_config(mapping: Mapping[str, Any], kind: str) -> DecoderConfig:
    family = FAMILIES[kind]
    fields = Fields("text_config", mapping)
    fields.expect("model_type", f"{kind}_text", kind)
    fields.expect("hidden_act", "silu")
    fields.expect("sliding_window", None)
    layers = fields.size("num_hidden_layers", family.layers, most=LAYERS)
    hidden = fields.size("hidden_size", family.hidden_size)
    heads = fields.size("num_attention_heads", family.heads)
    # null is a value of this field, and means as many as there are query heads.
    kv_heads = fields.size("num_key_value_heads", heads if "num_key_value_heads" in mapping else family.kv_heads)
    whole = family.head_dim is not None or "head_dim" in fields.rest or hidden % heads == 0
    if heads % kv_heads or not whole:
        raise UnsupportedConfigError(
            f"text_config: width {hidden}, {heads} query heads, {kv_heads} KV heads; each must divide the last"
        )
    head_dim = fields.size("head_dim", family.head_dim or hidden // heads, most=WIDTH)
    rope = read_mrope(fields, 5e5, head_dim, 128000, "interleaved")
    bias = fields.take("attention_bias", bool, False)
    eps = fields.positive("rms_norm_eps", 1e-6)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", 151936),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", family.intermediate_size),
        num_hidden_layers=layers,
        rms_norm_eps=eps,
        attention=GroupedQuery(heads, kv_heads, head_dim, bias=bias, output_bias=bias, norm_eps=eps),
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
    )
    if family.experts:
        config = _with_experts(config, fields)
    fields.ignore(*IGNORED)
    fields.close()
    return config


def _with_experts(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """The configuration with the experts of its layers behind the dense ones, which must come first.

    Raises:
        UnsupportedConfigError: dense layers stand among others, weights are not normalised, or more experts are used
            than there are.
    """
    fields.expect("norm_topk_prob", True)
    fields.ignore("output_router_logits", "router_aux_loss_coef")
    layers = config.num_hidden_layers
    step = fields.size("decoder_sparse_step", 1)
    only = fields.sizes("mlp_only_layers", [], least=0)
    dense = [layer for layer in range(layers) if layer in only or (layer + 1) % step]
    if dense != list(range(len(dense))):
        raise UnsupportedConfigError(
            f"text_config: mlp_only_layers is {list(only)!r:.200} and decoder_sparse_step {step}, which makes layers "
            f"{dense!r:.200} of {layers} dense; only dense layers that come first are supported"
        )
    count = fields.size("num_experts", fields.size("num_local_experts", 60, most=WIDTH), most=WIDTH)
    experts = Experts(
        count=count,
        per_token=fields.size("num_experts_per_tok", 4),
        intermediate_size=fields.size("moe_intermediate_size", 1408),
        scoring="softmax",
    )
    if experts.per_token > count:
        raise UnsupportedConfigError(
            f"text_config: num_experts_per_tok is {experts.per_token}; expected at most the {count} experts"
        )
    return replace(config, experts=experts if len(dense) < layers else None, dense_layers=len(dense))
