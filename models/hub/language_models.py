"""Language models of several families, from their section of config.json: Llama, Mistral, Qwen2, Qwen3, SmolLM3."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig
from models.hub.fields import LAYERS, WIDTH, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, read_rope


@dataclass(frozen=True)
class Family:
    """What one model type has, and what its configuration class in transformers says where config.json says nothing.

    Attributes:
        vocab_size, hidden_size, intermediate_size, layers, heads, max_positions, theta, tied: defaults.
        kv_heads: default; None for as many as there are query heads.
        head_dim: default; None for the width divided by the query heads.
        bias: whether q, k and v have biases; None where ``attention_bias`` says it, of q, k, v and o.
        mlp_bias: whether ``mlp_bias`` is a field; where it is none, there are no such biases.
        qk_norm: whether queries and keys are normalised head by head.
        window: default of ``sliding_window``; None for no window.
        switched: whether ``use_sliding_window`` and ``layer_types`` say if, and where, there is a window. Where they do
            not, a ``sliding_window`` is in every layer; and without a default it is no field.
        nope: whether ``no_rope_layers`` names layers without RoPE.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    layers: int = 32
    heads: int = 32
    max_positions: int = 32768
    theta: float = 10000.0
    tied: bool = False
    kv_heads: int | None = 32
    head_dim: int | None = None
    bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = 4096
    switched: bool = True
    nope: bool = False


FAMILIES = {
    "llama": Family(32000, 4096, 11008, max_positions=2048, kv_heads=None, mlp_bias=True, window=None, switched=False),
    "mistral": Family(32000, 4096, 14336, max_positions=131072, kv_heads=8, bias=False, switched=False),
    "qwen2": Family(bias=True),
    "qwen3": Family(head_dim=128, qk_norm=True),
    "smollm3": Family(
        128256, 2048, 11008, 36, 16, theta=2e6, tied=True, kv_heads=4, mlp_bias=True, window=None, nope=True
    ),
}
"""By ``model_type``."""

_WRITTEN_BESIDE = ("is_llama_config", "transformers.js_config")
"""What SmolLM2's files say for other programs."""


def language_model(fields: Fields, family: Family, mapping: Mapping[str, Any]) -> DecoderConfig:
    """A language model of one of the `FAMILIES`, from its section of config.json; closes the section.

    What the section leaves out has the default of transformers' configuration class of its model type.

    A model with sliding windows is served as far as no window hides anything: `DecoderConfig.max_positions` is then the
    width of the window, and so tokens that would leave it are refused.

    Args:
        fields: the section, less what is not about the language model.
        family: of its model type.
        mapping: the section as it is, null fields included.

    Raises:
        UnknownConfigFieldError, MissingConfigFieldError, UnsupportedConfigError: a field that is unknown, missing or
            not served, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    fields.expect("hidden_act", "silu")
    fields.expect("rope_interleaved", False)
    attention = _attention(fields, family, mapping)
    layers = fields.size("num_hidden_layers", family.layers, most=LAYERS)
    unrotated = _unrotated(fields, layers) if family.nope else ()
    rope = read_rope(fields, family.theta, attention.head_dim, family.max_positions)
    window = _window(fields, family, mapping, layers, unrotated)
    text = DecoderConfig(
        vocab_size=fields.size("vocab_size", family.vocab_size),
        hidden_size=fields.size("hidden_size", family.hidden_size),
        intermediate_size=fields.size("intermediate_size", family.intermediate_size),
        num_hidden_layers=layers,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        attention=attention,
        rope=replace(rope.spec, unrotated=unrotated),
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, family.tied),
        max_positions=rope.limit if window is None else min(rope.limit, window),
        mlp_bias=fields.take("mlp_bias", bool, False) if family.mlp_bias else False,
    )
    if family.qk_norm:
        text = replace(text, attention=replace(attention, norm_eps=text.rms_norm_eps))
    fields.expect("mlp_bias", False)
    fields.ignore(*IGNORED, *_WRITTEN_BESIDE)
    fields.close()
    return text


def _attention(fields: Fields, family: Family, mapping: Mapping[str, Any]) -> GroupedQuery:
    """Heads and biases.

    Raises:
        UnsupportedConfigError: the heads do not divide as they must, or there are biases that the model type has not.
    """
    hidden = Fields(fields.section, mapping).size("hidden_size", family.hidden_size)
    heads = fields.size("num_attention_heads", family.heads)
    # null is a value of this field, and means as many as there are query heads.
    grouped = family.kv_heads is not None and "num_key_value_heads" not in mapping
    kv_heads = fields.size("num_key_value_heads", family.kv_heads if grouped else heads)
    whole = family.head_dim is not None or "head_dim" in fields.rest or hidden % heads == 0
    if heads % kv_heads or not whole:
        raise UnsupportedConfigError(
            f"{fields.section}: width {hidden}, {heads} query heads, {kv_heads} KV heads; each must divide the last"
        )
    head_dim = fields.size("head_dim", family.head_dim or hidden // heads, most=WIDTH)
    if family.bias is None:
        bias = fields.take("attention_bias", bool, False)
        return GroupedQuery(heads, kv_heads, head_dim, bias=bias, output_bias=bias)
    fields.expect("attention_bias", family.bias)
    return GroupedQuery(heads, kv_heads, head_dim, bias=family.bias)


def _unrotated(fields: Fields, layers: int) -> tuple[int, ...]:
    """Layers without RoPE (NoPE).

    Raises:
        UnsupportedConfigError: the fields do not say of every layer whether it has it.
    """
    interval = fields.size("no_rope_layer_interval", 4)
    rotated = fields.sizes("no_rope_layers", [int((i + 1) % interval != 0) for i in range(layers)], least=0)
    if len(rotated) < layers or not set(rotated) <= {0, 1}:
        raise UnsupportedConfigError(
            f"{fields.section}: no_rope_layers is {list(rotated)!r:.200}; expected {layers} numbers, one a layer: 1 "
            "with RoPE, 0 without"
        )
    return tuple(i for i in range(layers) if not rotated[i])


def _window(
    fields: Fields, family: Family, mapping: Mapping[str, Any], layers: int, unrotated: tuple[int, ...]
) -> int | None:
    """How far the tokens of some layer see; None where all see everything.

    Raises:
        UnsupportedConfigError: layers are of a type that is not known, or have windows of no width.
    """
    if family.window is None and not family.switched:
        return None
    default = None if "sliding_window" in mapping else family.window
    window = fields.size("sliding_window") if default is None and "sliding_window" in fields.rest else default
    if not family.switched:
        return window
    used = fields.take("use_sliding_window", bool, False)
    first = fields.size("max_window_layers", 28, least=0)
    if not used:
        window = None
    windowed = [i in unrotated if family.nope else i >= first for i in range(layers)]
    types = ["sliding_attention" if window is not None and each else "full_attention" for each in windowed]
    types = fields.take("layer_types", list, types)
    accepted = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
    if len(types) != layers or any(each not in accepted for each in types):
        raise UnsupportedConfigError(
            f"{fields.section}: layer_types is {types!r:.200}; expected {layers} times "
            + " or ".join(map(repr, accepted))
            + ("" if window is not None else " (use_sliding_window is false, or there is no sliding_window)")
        )
    return window if "sliding_attention" in types else None
