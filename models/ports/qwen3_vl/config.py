"""Configuration of Qwen3-VL, dense and with experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.architecture import Config
from models.blocks.decoder import DecoderConfig
from models.blocks.moe import Experts
from models.hub.fields import LAYERS, WIDTH, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, grouped_query, one_head, top_fields
from models.ports.qwen2_5_vl.config import read_mrope
from models.ports.qwen3_vl.vision import vision_config_from_hf

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_vl": {"width": 4096, "inner": 22016, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128},
    "qwen3_vl_moe": {"width": 2048, "inner": 5632, "layers": 24, "heads": 16, "kv_heads": 16, "head_dim": None},
}
"""By ``model_type``: what transformers' configuration classes say where config.json says nothing."""


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
    vision = vision_config_from_hf(top, text, kind)
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


def _text_config(mapping: Mapping[str, Any], kind: str) -> DecoderConfig:
    family = FAMILIES[kind]
    fields = Fields("text_config", mapping)
    fields.expect("model_type", f"{kind}_text", kind)
    fields.expect("hidden_act", "silu")
    fields.expect("sliding_window", None)
    hidden = fields.size("hidden_size", family["width"])
    heads = {name: family[name] for name in ("heads", "kv_heads", "head_dim")}
    attention = grouped_query(fields, mapping, hidden, **heads)
    rope = read_mrope(fields, 5e5, attention.head_dim, 128000, "interleaved")
    eps = fields.positive("rms_norm_eps", 1e-6)
    bias = fields.take("attention_bias", bool, False)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", 151936),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", family["inner"]),
        num_hidden_layers=fields.size("num_hidden_layers", family["layers"], most=LAYERS),
        rms_norm_eps=eps,
        attention=replace(attention, bias=bias, output_bias=bias, norm_eps=eps),
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
    )
    if kind == "qwen3_vl_moe":
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
