"""A GGUF file's metadata as a hub ``config.json``: every key of the architecture is used, checked or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamera_jax.rope_kinds import inverse_frequencies, llama3_frequencies
from models.errors import ConfigError
from models.hub.fields import Fields
from models.hub.gguf.errors import GgufMetadataError, GgufTensorSizeError, UnknownGgufArchitectureError
from models.hub.gguf.file import GgufFile

FREQUENCIES = "rope_freqs.weight"
"""The tensor by whose values llama.cpp divides the inverse frequencies: how it writes Llama 3.1's RoPE."""

_LENGTHS = (8192, *(2**power for power in range(10, 21)))
"""Original lengths that are tried to read those factors; Llama 3.1's first."""

_COMMENTS = ("tensor_data_layout", "rope.scaling.finetuned")
"""Keys that note where the model came from."""


@dataclass(frozen=True)
class Family:
    """What an architecture of llama.cpp is in hub format.

    Attributes:
        name: the class in transformers.
        interleaved: whether the rows of queries and keys stand in interleaved pairs, and have to be put back.
        bias: whether q, k and v have biases; None where the tensors say it, of q, k, v and o.
        norms: whether queries and keys are normalised head by head.
    """

    name: str
    interleaved: bool = False
    bias: bool | None = False
    norms: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM", interleaved=True, bias=None),
    "qwen2": Family("Qwen2ForCausalLM", bias=True),
    "qwen3": Family("Qwen3ForCausalLM", norms=True),
}
"""By ``general.architecture``. Mistral models are of the architecture llama."""


def architecture(file: GgufFile) -> str:
    """The file's ``general.architecture``.

    Raises:
        UnknownGgufArchitectureError: it is not served.
    """
    kind = file.metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnknownGgufArchitectureError(
            f"{file.path} holds a model of the architecture {kind!r:.200}; of GGUF files this version serves "
            f"{', '.join(FAMILIES)} (and Mistral, as llama)"
        )
    return kind


def config_of(file: GgufFile) -> dict[str, Any]:
    """The hub ``config.json`` of a file's model, whose weights are float32.

    Raises:
        UnknownGgufArchitectureError: its architecture is not served.
        GgufMetadataError: a key is missing, unknown, or asks for a computation that is not served.
        GgufTensorSizeError: the embedding is none for the vocabulary.
    """
    kind = architecture(file)
    prefix = f"{kind}."
    given = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = Fields(f"{file.path}: {kind}", given)
    try:
        config = _config(file, kind, fields)
        fields.ignore(*_COMMENTS)
        fields.close()
    except GgufMetadataError:
        raise
    except ConfigError as error:
        raise GgufMetadataError(str(error)) from error
    return config


def _config(file: GgufFile, kind: str, fields: Fields) -> dict[str, Any]:
    """What `config_of` gives, less what remains in ``fields``."""
    hidden = fields.size("embedding_length")
    heads = fields.size("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [FAMILIES[kind].name],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields.size("feed_forward_length"),
        "num_hidden_layers": fields.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": _head_dim(fields, hidden, heads),
        "rms_norm_eps": shortest(fields.positive("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": fields.size("context_length"),
        "rope_theta": shortest(fields.positive("rope.freq_base", 10000.0)),
        "vocab_size": _vocab_size(file, fields, hidden),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
    }
    if FAMILIES[kind].bias is None:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    window = fields.size("attention.sliding_window", 0, least=0)
    if window and kind == "llama":
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
        if config.pop("attention_bias"):
            raise GgufMetadataError(f"{fields.section}: a model with biases and a sliding window; expected only one")
    elif window:
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    if scaling := _rope_scaling(file, fields, config):
        config["rope_scaling"] = scaling
    for name in ("bos", "eos", "padding"):
        if (number := file.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[f"{'pad' if name == 'padding' else name}_token_id"] = number
    for name in ("expert_count", "expert_used_count", "pooling_type"):
        fields.expect(name, 0)
    fields.expect("attention.causal", True)
    for name in ("logit_scale", "residual_scale", "embedding_scale"):
        fields.expect(name, 1.0)
    return config


def shortest(value: float) -> float:
    """The number of fewest digits that is this one in float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    """Width of a head, of which every dimension is rotated."""
    rotated = fields.size("rope.dimension_count", 0, least=0)
    width = fields.size("attention.key_length", 0, least=0) or rotated
    if not width and hidden % heads:
        raise GgufMetadataError(
            f"{fields.section}: width {hidden} and {heads} heads, without attention.key_length; each must divide the "
            "one before"
        )
    width = width or hidden // heads
    fields.expect("attention.value_length", width)
    if rotated not in (0, width):
        raise GgufMetadataError(
            f"{fields.section}: rope.dimension_count is {rotated}, of heads of {width}; only models that rotate whole "
            "heads are served"
        )
    return width


def _vocab_size(file: GgufFile, fields: Fields, hidden: int) -> int:
    """Rows of the embedding; the vocabulary may have fewer tokens."""
    listed = file.metadata.get("tokenizer.ggml.tokens")
    tokens = len(listed) if isinstance(listed, list) else 0
    declared = fields.size("vocab_size", 0, least=0)
    embedding = file.tensors.get("token_embd.weight")
    size = embedding.shape[0] if embedding else declared or tokens
    if size < tokens or declared not in (0, size):
        raise GgufTensorSizeError(
            f"{file.path}: token_embd.weight has {size} rows, for {tokens} tokens and a vocab_size of "
            f"{declared or 'its own'}; expected one for each: fetch the file again, or convert the model anew"
        )
    return size


def _rope_scaling(file: GgufFile, fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's ``rope_scaling``; empty for plain RoPE.

    Raises:
        GgufMetadataError: it is of a type, or has factors, that are not known.
    """
    kind = fields.take("rope.scaling.type", str, "linear")
    factor = shortest(fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0)))
    original = fields.size("rope.scaling.original_context_length", config["max_position_embeddings"])
    betas = {name: fields.number(f"rope.scaling.yarn_{name}", 0.0) for name in ("beta_fast", "beta_slow")}
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        fields.expect(f"rope.scaling.{name}", 1.0)
    fields.expect("rope.scaling.yarn_log_multiplier", 0.0)
    scaling: dict[str, Any] = {}
    if kind == "yarn":
        scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
        scaling |= {name: shortest(value) for name, value in betas.items() if value}
    elif kind == "linear" and factor not in (0, 1):
        scaling = {"rope_type": kind, "factor": factor}
    elif kind not in ("linear", "none"):
        raise GgufMetadataError(
            f"{fields.section}: rope.scaling.type is {kind!r:.200}; only none, linear and yarn are served (and "
            f"Llama 3.1's factors, in {FREQUENCIES})"
        )
    if FREQUENCIES not in file.tensors:
        return scaling
    if scaling:
        raise GgufMetadataError(
            f"{fields.section}: {FREQUENCIES} beside rope.scaling of type {kind!r:.200}; expected one"
        )
    return _llama3(file, config)


def _llama3(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``rope_scaling`` of Llama 3.1 that gives the file's factors; empty where they are all 1.

    The file has the factors alone: their largest is the one that slow pairs are divided by, and of the original length
    it is tried which gives the rest.

    Raises:
        GgufMetadataError: none does.
    """
    head_dim = config["head_dim"]
    factors = file.dequantise(FREQUENCIES, file.rows(FREQUENCIES)).reshape(-1)
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or factors.min() < 1:
        raise GgufMetadataError(
            f"{file.path}: {FREQUENCIES} has {factors.size} factors of {factors.min()} to {factors.max()}; expected "
            f"{head_dim // 2}, one for each pair, of at least 1"
        )
    factor = shortest(float(factors.max()))
    if factor == 1:
        return {}
    plain = inverse_frequencies(head_dim, config["rope_theta"])
    for length in _LENGTHS:
        scaled = llama3_frequencies(
            head_dim, config["rope_theta"], factor=factor, low=1.0, high=4.0, original_length=length
        )
        if np.allclose(plain / factors, scaled, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }
    raise GgufMetadataError(
        f"{file.path}: the factors in {FREQUENCIES} (up to {factor}) are not those of Llama 3.1 for any original "
        "length that is a power of 2; load the model from a folder in hub format, whose config.json says how they came "
        "about"
    )
