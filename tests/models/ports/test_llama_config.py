"""Configurations of text-only language models as the hub spells them, and what is refused."""

import pytest

from kamera_jax.rope import UnsupportedRopeError
from models.blocks.attention import GroupedQuery
from models.hub.fields import UnknownConfigFieldError, UnsupportedConfigError
from models.registry import ARCHITECTURES

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
MISTRAL_01 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = {
    **QWEN2_5,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
PUBLISHED = {each["model_type"]: each for each in (SMOLLM2, MISTRAL_01, QWEN2_5, QWEN3, SMOLLM3)}


def text_of(mapping, **fields):
    config = ARCHITECTURES[mapping["model_type"]].config_from_hf({**mapping, **fields})
    assert config.vision is None and not config.placeholders
    return config.text


def test_published_files():
    llama = text_of(SMOLLM2)
    assert llama.attention == GroupedQuery(9, 3, 64) and llama.tie_word_embeddings and not llama.mlp_bias
    assert (llama.num_hidden_layers, llama.max_positions, llama.rms_norm_eps) == (30, 8192, 1e-5)
    qwen2 = text_of(QWEN2_5)
    assert qwen2.attention == GroupedQuery(14, 2, 64, bias=True) and qwen2.max_positions == 32768
    assert text_of(QWEN3).attention == GroupedQuery(16, 8, 128, norm_eps=1e-6)
    smollm3 = text_of(SMOLLM3)
    assert smollm3.rope.unrotated == tuple(range(3, 36, 4)) and smollm3.tie_word_embeddings
    assert smollm3.attention == GroupedQuery(16, 4, 128)
    assert all(not text_of(each).rope.unrotated for name, each in PUBLISHED.items() if name != "smollm3")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_is_left_out_is_as_in_transformers(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind)
    text = text_of({"model_type": kind})
    assert text.attention.heads == config.num_attention_heads
    assert text.attention.kv_heads == config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert text.attention.head_dim == head_dim
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    assert [getattr(text, name) for name in names] == [getattr(config, name) for name in names]
    assert text.tie_word_embeddings == config.tie_word_embeddings
    window = config.sliding_window if kind == "mistral" else None
    assert text.max_positions == (window or config.max_position_embeddings)
    nope = [i for i, rotated in enumerate(getattr(config, "no_rope_layers", [])) if not rotated]
    assert list(text.rope.unrotated) == nope
    theta = config.rope_parameters["rope_theta"]
    assert text.rope.inv_freq[1] == pytest.approx(theta ** (-2 / head_dim), rel=1e-6)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_null_key_heads_are_as_many_as_query_heads(kind):
    text = text_of(PUBLISHED[kind], num_key_value_heads=None)
    assert text.attention.kv_heads == text.attention.heads


def test_biases():
    assert text_of(SMOLLM2, attention_bias=True).attention == GroupedQuery(9, 3, 64, bias=True, output_bias=True)
    assert text_of(QWEN3, attention_bias=True).attention.output_bias
    assert text_of(SMOLLM2, mlp_bias=True).mlp_bias and text_of(SMOLLM3, mlp_bias=True).mlp_bias
    for mapping, name, value in ((MISTRAL_01, "attention_bias", True), (QWEN2_5, "attention_bias", False)):
        with pytest.raises(UnsupportedConfigError, match=name):
            text_of(mapping, **{name: value})
    for mapping in (MISTRAL_01, QWEN2_5, QWEN3):
        assert not text_of(mapping, mlp_bias=False).mlp_bias
        with pytest.raises(UnsupportedConfigError, match="mlp_bias is True; only False"):
            text_of(mapping, mlp_bias=True)


def test_a_head_need_not_be_a_part_of_the_width():
    assert text_of(SMOLLM2, head_dim=96).attention == GroupedQuery(9, 3, 96)
    assert text_of(SMOLLM2, hidden_size=580, head_dim=64).attention.head_dim == 64
    with pytest.raises(UnsupportedConfigError, match="width 580, 9 query heads"):
        text_of(SMOLLM2, hidden_size=580)
    with pytest.raises(UnsupportedConfigError, match="9 query heads, 2 KV heads"):
        text_of(SMOLLM2, num_key_value_heads=2)


@pytest.mark.parametrize(
    "mapping, fields, limit",
    [
        (MISTRAL_01, {}, 4096),
        (MISTRAL_01, {"sliding_window": None}, 32768),
        (MISTRAL_01, {"sliding_window": 32768}, 32768),
        (MISTRAL_01, {"sliding_window": 65536}, 32768),
        (QWEN2_5, {"sliding_window": 4096}, 32768),
        (QWEN2_5, {"sliding_window": 4096, "use_sliding_window": True}, 4096),
        (QWEN2_5, {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 24}, 32768),
        (QWEN2_5, {"sliding_window": 4096, "use_sliding_window": True, "layer_types": ["full_attention"] * 24}, 32768),
        (QWEN3, {"use_sliding_window": True}, 32768),
        (QWEN3, {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 27}, 512),
        (SMOLLM3, {"use_sliding_window": True, "sliding_window": 512, "layer_types": None}, 512),
        (SMOLLM3, {"use_sliding_window": True, "sliding_window": 512}, 65536),
    ],
)
def test_a_window_is_served_as_far_as_it_hides_nothing(mapping, fields, limit):
    assert text_of(mapping, **fields).max_positions == limit


@pytest.mark.parametrize(
    "mapping, fields, message",
    [
        (QWEN2_5, {"layer_types": ["sliding_attention"] * 24}, "layer_types.*use_sliding_window is false"),
        (QWEN3, {"layer_types": ["full_attention"] * 27}, "expected 28 times 'full_attention'"),
        (QWEN3, {"layer_types": ["linear_attention"] * 28}, "layer_types"),
        (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers.*expected 36 numbers"),
        (SMOLLM3, {"no_rope_layers": [2] * 36}, "no_rope_layers.*1 with RoPE, 0 without"),
        (SMOLLM3, {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        (SMOLLM2, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (SMOLLM2, {"rope_interleaved": True}, "rope_interleaved is True"),
        (SMOLLM2, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (MISTRAL_01, {"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_what_is_not_served_is_named(mapping, fields, message):
    with pytest.raises(UnsupportedConfigError, match=message):
        text_of(mapping, **fields)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_unknown_fields_are_named(kind):
    with pytest.raises(UnknownConfigFieldError, match=r"\['logit_scale'\]"):
        text_of(PUBLISHED[kind], logit_scale=0.5)
    if kind != "smollm3":
        with pytest.raises(UnknownConfigFieldError, match="no_rope_layers"):
            text_of(PUBLISHED[kind], no_rope_layers=[1])
    with pytest.raises(UnsupportedRopeError, match="unknown rope_type"):
        text_of(PUBLISHED[kind], rope_scaling={"rope_type": "spiral"})


def test_a_layer_list_may_be_longer_than_the_model():
    assert text_of(SMOLLM3, num_hidden_layers=5, layer_types=None).rope.unrotated == (3,)
    assert text_of(SMOLLM3, no_rope_layers=None, no_rope_layer_interval=9).rope.unrotated == (8, 17, 26, 35)
