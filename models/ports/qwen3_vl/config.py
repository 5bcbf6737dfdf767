"""Configuration of Qwen3-VL, dense and with experts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.architecture import Config
from models.blocks.decoder import DecoderConfig
from models.blocks.moe import Experts
from models.hub.fields import LAYERS, WIDTH, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, grouped_query, one_head, top_fields
from models.ports.qwen2_5_vl.config import read_mrope
from models.ports.qwen3_vl.vision import read_tower


@dataclass(frozen=True)
class Family:
    """What transformers' configuration class of a language model says where config.json says nothing.

    Attributes:
        width, inner, layers, heads, kv_heads: sizes.
        head_dim: None for the width divided by the query heads.
        vocab_size, max_positions, theta: see `models.blocks.decoder.DecoderConfig`, and the base of its RoPE.
        experts: of its layers, where it has such layers.
        normalised: whether the weights of a token's experts always sum to 1; else ``norm_topk_prob`` says it.
    """

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int | None = None
    vocab_size: int = 151936
    max_positions: int = 128000
    theta: float = 5e5
    experts: Experts | None = None
    normalised: bool = True


FAMILIES = {
    "qwen3_vl": Family(4096, 22016, 32, 32, 32, head_dim=128),
    "qwen3_vl_moe": Family(2048, 5632, 24, 16, 16, experts=Experts(60, 4, 1408, scoring="softmax")),
}
"""By ``model_type``."""


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
    text = read_text(one_head(top), FAMILIES[kind], f"{kind}_text", kind)
    tower = Fields("vision_config", top.take("vision_config", dict))
    tower.expect("model_type", f"{kind}_vision", kind, "qwen3_vl_vision", "qwen3_vl")
    vision = read_tower(tower, text)
    # What stands before and behind the tokens of an image, and of each temporal patch of a video.
    start = top.size("vision_start_token_id", 151652, least=0)
    end = top.size("vision_end_token_id", 151653, least=0)
    config = Config(
        text,
        vision,
        image_token_id=top.size("image_token_id", 151655, least=0),
        media={"video": (start, end)},
        placeholders={"video": top.size("video_token_id", 151656, least=0)},
    )
    top.close()
    return config


def read_text(mapping: Mapping[str, Any], family: Family, *model_types: str) -> DecoderConfig:
    """The language model's section.

    Args:
        mapping: the section.
        family: what it leaves out.
        model_types: that it may have.

    Raises:
        ConfigError: a subclass, as `config_from_hf`.
        UnsupportedRopeError: as there.
    """
    fields = Fields("text_config", mapping)
    fields.expect("model_type", *model_types)
    fields.expect("hidden_act", "silu")
    fields.expect("sliding_window", None)
    hidden = fields.size("hidden_size", family.width)
    heads = {"heads": family.heads, "kv_heads": family.kv_heads, "head_dim": family.head_dim}
    attention = grouped_query(fields, mapping, hidden, **heads)
    rope = read_mrope(fields, family.theta, attention.head_dim, family.max_positions, "interleaved")
    eps = fields.positive("rms_norm_eps", 1e-6)
    bias = fields.take("attention_bias", bool, False)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", family.vocab_size),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", family.inner),
        num_hidden_layers=fields.size("num_hidden_layers", family.layers, most=LAYERS),
        rms_norm_eps=eps,
        attention=replace(attention, bias=bias, output_bias=bias, norm_eps=eps),
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
    )
    if family.experts is not None:
        config = _with_experts(config, fields, family.experts, family.normalised)
    fields.ignore(*IGNORED)
    fields.close()
    return config


def _with_experts(config: DecoderConfig, fields: Fields, usual: Experts, normalised: bool) -> DecoderConfig:
    """The configuration with the experts of its layers behind the dense ones, which must come first.

    Raises:
        UnsupportedConfigError: dense layers stand among others, weights are not ``normalised`` that always are, or more
            experts are used than there are.
    """
    normalise = fields.take("norm_topk_prob", bool, True)
    if normalised and not normalise:
        raise UnsupportedConfigError(f"{fields.section}: norm_topk_prob is False; only True is supported")
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
    count = fields.size("num_experts", fields.size("num_local_experts", usual.count, most=WIDTH), most=WIDTH)
    experts = replace(
        usual,
        count=count,
        per_token=fields.size("num_experts_per_tok", usual.per_token),
        intermediate_size=fields.size("moe_intermediate_size", usual.intermediate_size),
        normalise=normalise,
    )
    if experts.per_token > count:
        raise UnsupportedConfigError(
            f"text_config: num_experts_per_tok is {experts.per_token}; expected at most the {count} experts"
        )
    return replace(config, experts=experts if len(dense) < layers else None, dense_layers=len(dense))
