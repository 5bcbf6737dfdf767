"""Configuration of Qwen2.5-VL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kamera_jax.rope import SectionLayout
from models.architecture import Config
from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig
from models.hub.fields import LAYERS, Fields, MissingConfigFieldError, UnsupportedConfigError
from models.hub.text_config import IGNORED, Rope, read_rope, top_fields


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: patches of ``patch_size`` pixels, windows of ``window_size`` pixels save in the full blocks."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise UnsupportedConfigError(
                f"vision_config: {self.num_heads} heads of width {self.hidden_size} in all; "
                "the 2-D RoPE needs a head width that is a multiple of 4"
            )
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise UnsupportedConfigError(
                f"vision_config: window_size is {self.window_size}; "
                f"expected at least one merged token, {self.patch_size * self.spatial_merge_size} pixels"
            )
        outside = [index for index in self.fullatt_block_indexes if not 0 <= index < self.depth]
        if outside:
            raise UnsupportedConfigError(f"vision_config: fullatt_block_indexes names blocks {outside} of {self.depth}")


_VISION_TOKENS = ("video_token_id", "vision_end_token_id", "vision_start_token_id", "vision_token_id")
"""The chat template says these."""

_TEXT_FIELDS = (
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
"""What the language model's section says, which older files spread over the top level."""

_ROPE_FIELDS = {"rope_parameters", "rope_scaling", "rope_theta"}


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``.

    Reads the flat files of the hub, the nested ones of transformers 5, and those of 4.5x that say everything twice.
    What a file leaves out has the default of HF ``Qwen2_5_VLConfig``: it may have been written without them.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no vision_config, or no mrope_section.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    top = top_fields(mapping, "qwen2_5_vl")
    vision = read_tower(top.take("vision_config", dict))
    text = read_text(
        top.take("text_config", dict, {}), {name: top.rest.pop(name) for name in _TEXT_FIELDS if name in top.rest}
    )
    if vision.out_hidden_size != text.hidden_size:
        raise UnsupportedConfigError(
            f"vision_config: out_hidden_size is {vision.out_hidden_size}; expected the text width, {text.hidden_size}"
        )
    top.ignore(*_VISION_TOKENS, "partial_rotary_factor")  # heads are rotated whole
    config = Config(text, vision, image_token_id=top.size("image_token_id", 151655, least=0))
    top.close()
    return config


def read_text(nested: Mapping[str, Any], flat: Mapping[str, Any]) -> DecoderConfig:
    """The language model, of a section of its own, ``nested``, and of what stands at the top level.

    Raises:
        ConfigError: a subclass, as `config_from_hf`.
    """
    nested = {name: value for name, value in nested.items() if value is not None}
    # Either section ties the head, as in HF.
    ties = [Fields("config.json", each).take("tie_word_embeddings", bool, False) for each in (flat, nested)]
    for name in flat.keys() & nested.keys() - {"sliding_window", "max_window_layers", "tie_word_embeddings"}:
        if _plain(flat[name]) != _plain(nested[name]):
            raise UnsupportedConfigError(
                f"config.json says {name} twice: {flat[name]!r:.200}, and {nested[name]!r:.200} in text_config; "
                "expected one"
            )
    if nested.keys() & _ROPE_FIELDS:
        flat = {
            name: value for name, value in flat.items() if name not in _ROPE_FIELDS
        }  # one does not add to the other
    fields = Fields("text_config" if nested else "config.json", {**flat, **nested})
    fields.expect("model_type", "qwen2_5_vl_text", "qwen2_5_vl")
    fields.expect("hidden_act", "silu")
    fields.expect("attention_bias", True)
    fields.expect("use_sliding_window", False)
    layers = fields.size("num_hidden_layers", 80, most=LAYERS)
    types = fields.take("layer_types", list, None)
    if types is not None and (len(types) != layers or any(each != "full_attention" for each in types)):
        raise UnsupportedConfigError(
            f"{fields.section}: layer_types is {types!r:.200}; only {layers} times 'full_attention' is supported"
        )
    hidden = fields.size("hidden_size", 8192)
    heads = fields.size("num_attention_heads", 64)
    kv_heads = fields.size("num_key_value_heads", 8 if "num_key_value_heads" not in {**flat, **nested} else heads)
    if hidden % heads or heads % kv_heads:
        raise UnsupportedConfigError(
            f"{fields.section}: width {hidden}, {heads} query heads, {kv_heads} KV heads; each must divide the last"
        )
    fields.expect("head_dim", hidden // heads)
    rope = read_mrope(fields, 1e6, hidden // heads, 32768)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", 152064),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", 29568),
        num_hidden_layers=layers,
        attention=GroupedQuery(heads, kv_heads, hidden // heads, bias=True),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-5),
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=any(ties),
    )
    fields.ignore("tie_word_embeddings", "sliding_window", "max_window_layers")  # windows are off
    fields.ignore("image_token_id")  # that of the top level counts
    fields.ignore(*IGNORED, *_VISION_TOKENS)
    fields.close()
    return config


def _plain(value: Any) -> Any:
    """One spelling of a RoPE type that has had three: ``type: mrope``, ``type: default``, ``rope_type: default``."""
    if not isinstance(value, Mapping):
        return value
    kind = value.get("rope_type") or value.get("type") or "default"
    return {**value, "type": None, "rope_type": "default" if kind == "mrope" else kind}


def read_mrope(
    fields: Fields, theta: float, head_dim: int, max_positions: int, layout: SectionLayout = "contiguous"
) -> Rope:
    """As `models.hub.text_config.read_rope`, of positions on three axes: time, rows and columns.

    Raises:
        MissingConfigFieldError: there is no mrope_section.
        UnsupportedConfigError, UnsupportedRopeError: a field is none that this serves, named.
    """
    rope = read_rope(fields, theta, head_dim, max_positions, sections=True, section_layout=layout)
    if rope.spec.sections is None:
        raise MissingConfigFieldError(
            f"{fields.section}: the rope parameters have no 'mrope_section'; expected 3 integers"
        )
    if rope.spec.axes != 3:
        raise UnsupportedConfigError(f"{fields.section}: mrope_section is {rope.spec.sections}; expected 3 integers")
    return rope


def read_tower(mapping: Mapping[str, Any]) -> VisionConfig:
    """A ``vision_config``.

    Raises:
        ConfigError: a subclass, as `config_from_hf`.
    """
    fields = Fields("vision_config", mapping)
    fields.expect("model_type", "qwen2_5_vl_vision", "qwen2_5_vl")
    fields.expect("hidden_act", "silu")
    channels = fields.size("in_channels", 3)
    patch = fields.size("patch_size", 14)
    fields.expect("in_chans", channels)
    fields.expect("spatial_patch_size", patch)
    fields.expect("rope_parameters", {"rope_theta": 10000.0, "rope_type": "axial"})
    config = VisionConfig(
        depth=fields.size("depth", 32, most=LAYERS),
        hidden_size=fields.size("hidden_size", 3584),
        intermediate_size=fields.size("intermediate_size", 3420),
        num_heads=fields.size("num_heads", 16),
        in_channels=channels,
        patch_size=patch,
        temporal_patch_size=fields.size("temporal_patch_size", 2),
        spatial_merge_size=fields.size("spatial_merge_size", 2),
        window_size=fields.size("window_size", 112),
        fullatt_block_indexes=fields.sizes("fullatt_block_indexes", [7, 15, 23, 31], least=0),
        out_hidden_size=fields.size("out_hidden_size", 3584),
    )
    fields.ignore("tokens_per_second", *IGNORED)  # a still image has no time
    fields.close()
    return config
