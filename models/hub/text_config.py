"""Language-model sections of config.json that several ports share: Llama, and DeepSeek-V3."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kamera_jax.rope import RopeSpec, SectionLayout, UnsupportedRopeError, magnitude, position_limit, spec_from_config
from models.blocks.attention import GroupedQuery, Latent
from models.blocks.decoder import DecoderConfig
from models.blocks.moe import Experts
from models.hub.fields import LAYERS, WIDTH, Fields, MissingConfigFieldError, UnsupportedConfigError

Vision = TypeVar("Vision")
"""A port's configuration of its tower."""

WRITER_FIELDS = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""What transformers notes beside the architecture, in any section."""

TRAINING_FIELDS = ("attention_dropout", "aux_loss_alpha", "ep_size", "initializer_range", "pretraining_tp", "seq_aux")

TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""The tokenizer and generation_config.json say these."""

GENERATION_FIELDS = tuple(
    """
    add_cross_attention bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
    typical_p use_bfloat16
    """.split()
)
"""What transformers 4 wrote of every configuration; none changes a forward."""

IGNORED = (*WRITER_FIELDS, *TRAINING_FIELDS, *TOKEN_FIELDS, *GENERATION_FIELDS)


def llama_config(mapping: Mapping[str, Any]) -> DecoderConfig:
    """A ``text_config`` of ``model_type`` llama; what it leaves out has the default of HF ``LlamaConfig``.

    Raises:
        UnknownConfigFieldError, UnsupportedConfigError: a field this does not know or serve, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    fields = Fields("text_config", mapping)
    fields.expect("model_type", "llama")
    fields.expect("hidden_act", "silu")
    fields.expect("attention_bias", False)
    fields.expect("mlp_bias", False)
    hidden = fields.size("hidden_size", 4096)
    attention = grouped_query(fields, mapping, hidden, heads=32)
    rope = read_rope(fields, 10000.0, attention.head_dim, 2048)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", 11008),
        num_hidden_layers=fields.size("num_hidden_layers", 32, most=LAYERS),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        attention=attention,
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
    )
    fields.ignore(*IGNORED)
    fields.close()
    return config


def grouped_query(
    fields: Fields,
    mapping: Mapping[str, Any],
    hidden: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
) -> GroupedQuery:
    """Takes the heads of a language model's section.

    Args:
        fields: the section.
        mapping: the section as it is; null, as the number of KV heads, is as many as there are query heads.
        hidden: width of the model.
        heads: transformers' default of the number of query heads.
        kv_heads: its default of the number of KV heads; None for as many.
        head_dim: its default of their width; None for the model's divided by the query heads.

    Raises:
        UnsupportedConfigError: the heads do not divide as they must.
    """
    count = fields.size("num_attention_heads", heads)
    default = count if kv_heads is None or "num_key_value_heads" in mapping else kv_heads
    groups = fields.size("num_key_value_heads", default)
    if count % groups or (head_dim is None and "head_dim" not in fields.rest and hidden % count):
        raise UnsupportedConfigError(
            f"{fields.section}: width {hidden}, {count} query heads, {groups} KV heads; each must divide the last"
        )
    return GroupedQuery(count, groups, fields.size("head_dim", head_dim or hidden // count, most=WIDTH))


def deepseek_v3_config(mapping: Mapping[str, Any]) -> DecoderConfig:
    """A ``text_config`` of ``model_type`` deepseek_v3: multi-head latent attention and experts.

    Its sizes must be given: the defaults of HF ``DeepseekV3Config`` are those of one checkpoint.

    Raises:
        UnknownConfigFieldError, MissingConfigFieldError, UnsupportedConfigError: a field that is unknown, missing or
            not served, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    fields = Fields("text_config", mapping)
    fields.expect("model_type", "deepseek_v3", "kimi_k2", "kimi_vl")
    fields.expect("hidden_act", "silu")
    fields.expect("attention_bias", False)
    fields.expect("scoring_func", "sigmoid")
    fields.expect("topk_method", "noaux_tc")
    fields.expect("moe_layer_freq", 1)
    fields.expect("num_nextn_predict_layers", 0)
    fields.expect("rope_interleave", True)
    heads = fields.size("num_attention_heads")
    fields.expect("num_key_value_heads", heads)
    rope_dim = fields.size("qk_rope_head_dim", most=WIDTH)
    nope_dim = fields.size("qk_nope_head_dim")
    fields.expect("head_dim", rope_dim, rope_dim + nope_dim)
    fields.expect("qk_head_dim", rope_dim + nope_dim)
    layers = fields.size("num_hidden_layers", most=LAYERS)
    dense_layers = fields.size("first_k_dense_replace", least=0)
    if dense_layers > layers:
        raise UnsupportedConfigError(
            f"text_config: first_k_dense_replace is {dense_layers}; expected 0 to {layers}, the number of layers"
        )
    rope = read_rope(fields, 10000.0, rope_dim, 4096)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=layers,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        attention=Latent(
            heads=heads,
            latent_dim=fields.size("kv_lora_rank"),
            nope_dim=nope_dim,
            rope_dim=rope_dim,
            value_dim=fields.size("v_head_dim"),
            query_latent_dim=fields.size("q_lora_rank") if "q_lora_rank" in fields.rest else None,
            score_factor=_score_factor(rope.parameters),
        ),
        rope=rope.spec,
        max_positions=rope.limit,
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
        experts=_experts(fields) if dense_layers < layers else None,
        dense_layers=dense_layers,
    )
    if dense_layers == layers:
        _experts(fields)
    fields.ignore(*IGNORED)
    fields.close()
    return config


def _experts(fields: Fields) -> Experts:
    count = fields.size("n_routed_experts", most=WIDTH)
    groups = fields.size("n_group", 1)
    inner = fields.size("moe_intermediate_size")
    experts = Experts(
        count=count,
        per_token=fields.size("num_experts_per_tok"),
        intermediate_size=inner,
        shared_size=inner * fields.size("n_shared_experts", 0, least=0),
        groups=groups,
        groups_per_token=fields.size("topk_group", 1),
        normalise=fields.take("norm_topk_prob", bool, True),
        scale=fields.positive("routed_scaling_factor", 1.0),
    )
    if count % groups or experts.groups_per_token > groups:
        raise UnsupportedConfigError(
            f"text_config: {count} experts in {groups} groups, {experts.groups_per_token} used; expected equal groups, "
            "and no more used than there are"
        )
    if groups > 1 and count // groups < 2:
        raise UnsupportedConfigError(f"text_config: {groups} groups of one expert; groups are rated by their best two")
    if experts.per_token > experts.groups_per_token * (count // groups):
        raise UnsupportedConfigError(
            f"text_config: num_experts_per_tok is {experts.per_token}; the groups in use have only "
            f"{experts.groups_per_token * (count // groups)} experts"
        )
    return experts


def top_fields(mapping: Mapping[str, Any], model_type: str) -> Fields:
    """A hub ``config.json`` of that architecture, less what does not change a forward.

    Raises:
        MissingConfigFieldError: it does not say its architecture.
        UnsupportedConfigError: it says another, or that its weights are quantised.
    """
    top = Fields("config.json", mapping)
    if "model_type" not in top.rest:
        raise MissingConfigFieldError(f"config.json has no 'model_type'; expected {model_type!r:.200}")
    top.expect("model_type", model_type)
    top.expect("quantization_config", None)
    top.ignore("ignore_index", *IGNORED)
    return top


def read_sections(
    mapping: Mapping[str, Any],
    model_type: str,
    read_text: Callable[[Mapping[str, Any]], DecoderConfig],
    read_vision: Callable[[Fields, int], Vision],
) -> tuple[Fields, DecoderConfig, Vision]:
    """A hub ``config.json`` whose language model and tower have a section each.

    Args:
        mapping: the file.
        model_type: the architecture that it must be of.
        read_text: reads the language model's section, such as `llama_config`.
        read_vision: takes the image side from the file, given the width of the language model.

    Returns:
        What is left of the file, for the port to take what is its own and close it; the language model; the tower.

    Raises:
        UnknownConfigFieldError: a field that is not known, named.
        MissingConfigFieldError: no model_type, text_config or vision_config, or a size that has no default.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    top = top_fields(mapping, model_type)
    text = read_text(one_head(top))
    return top, text, read_vision(top, text.hidden_size)


def one_head(top: Fields) -> dict[str, Any]:
    """Takes ``text_config`` from config.json, and ``tie_word_embeddings`` from wherever it stands.

    The outer one counts, as in transformers 5; older files may have only the inner one.
    """
    text = top.take("text_config", dict)
    tied = top.take("tie_word_embeddings", bool, text.get("tie_word_embeddings") or False)
    return {**text, "tie_word_embeddings": tied}


@dataclass(frozen=True)
class Rope:
    """What a language model's section says of its positions.

    Attributes:
        spec: their rotation.
        limit: positions that the model is for.
        parameters: what both were read from.
    """

    spec: RopeSpec
    limit: int
    parameters: Mapping[str, Any]


def read_rope(
    fields: Fields,
    theta: float,
    head_dim: int,
    max_positions: int,
    *,
    sections: bool = False,
    section_layout: SectionLayout = "contiguous",
) -> Rope:
    """Takes what a language model's section says of its positions, as transformers 5 reads it.

    Args:
        fields: the section.
        theta: transformers' default of ``rope_theta`` in this architecture.
        head_dim: width of the rotated features.
        max_positions: its default of ``max_position_embeddings``.
        sections: whether the architecture has M-RoPE; ``mrope_section`` means nothing to others.
        section_layout: how the architecture lays these sections out.

    Raises:
        UnsupportedConfigError, UnsupportedRopeError: a field is none that this serves, named.
    """
    if head_dim > WIDTH:
        raise UnsupportedConfigError(f"{fields.section}: heads of width {head_dim}; expected at most {WIDTH}")
    parameters = _rope_parameters(fields, theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not sections:
        parameters.pop("mrope_section", None)
        if kind == "mrope":
            raise UnsupportedRopeError(f"{fields.section}: rope_type is 'mrope', which this architecture has not")
    outside = fields.positive("partial_rotary_factor", 1.0)
    partial = Fields(f"{fields.section}: RoPE", parameters).positive("partial_rotary_factor", outside)
    parameters.pop("partial_rotary_factor", None)
    if kind not in ("default", "mrope") and int(head_dim * min(partial, 2.0)) != head_dim:
        # Where the type is the default, transformers rotates every dim of these architectures whatever the factor is.
        raise UnsupportedRopeError(
            f"{fields.section}: partial_rotary_factor is {partial} with rope_type {kind!r:.200}; these architectures "
            "rotate whole heads, and transformers cannot run this either: set it to 1"
        )
    declared = fields.size("max_position_embeddings", max_positions)
    spec = spec_from_config(parameters, head_dim=head_dim, max_positions=declared, section_layout=section_layout)
    return Rope(spec, position_limit(parameters, declared), parameters)


def _rope_parameters(fields: Fields, theta: float) -> dict[str, Any]:
    """``rope_scaling`` (before transformers 5) if it says anything, or else ``rope_parameters``; they do not add up.

    ``rope_theta`` beside them counts where they have none, and the original length beside them before theirs.
    """
    scaling = fields.take("rope_scaling", dict, {})
    parameters = fields.take("rope_parameters", dict, {})
    chosen = {name: value for name, value in (scaling or parameters).items() if value is not None}
    chosen = {"rope_theta": fields.positive("rope_theta", theta), **chosen}
    if "original_max_position_embeddings" in fields.rest:
        original = fields.size("original_max_position_embeddings")
        if (chosen.get("rope_type") or chosen.get("type")) in ("llama3", "yarn", "longrope", "su"):
            chosen["original_max_position_embeddings"] = original
    return chosen


def _score_factor(parameters: Mapping[str, Any]) -> float:
    """YaRN's mscale squared (HF ``DeepseekV3Attention``)."""
    factor = parameters.get("factor")
    weight = parameters.get("mscale_all_dim")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    return magnitude(float(factor), float(weight)) ** 2 if kind != "default" and factor and weight else 1.0
