"""Configuration of Qwen2.5-Omni's thinker, its weights, and the layout of its audio tower."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.attention import GroupedQuery
from models.hub.fields import MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.hub.weights import load_params
from models.media.sound import MelConfig
from models.ports.qwen2_5_omni.audio import AudioConfig, encode_audio, plan, sinusoids, unit
from models.ports.qwen2_5_omni.config import config_from_hf
from models.ports.qwen2_5_omni.port import ARCHITECTURE, image_config_from_hf
from tests.models import tiny_omni

PUBLISHED = {  # of the 7B checkpoint
    "architectures": ["Qwen2_5OmniModel"],
    "enable_audio_output": True,
    "enable_talker": True,
    "model_type": "qwen2_5_omni",
    "talker_config": {"model_type": "qwen2_5_omni_talker", "anything": 1},
    "thinker_config": {
        "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "audio_config": {
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "attention_dropout": 0.0,
            "d_model": 1280,
            "dropout": 0.0,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "encoder_layerdrop": 0.0,
            "encoder_layers": 32,
            "init_std": 0.02,
            "max_source_positions": 1500,
            "model_type": "qwen2_5_omni_audio_encoder",
            "n_window": 100,
            "num_hidden_layers": 32,
            "num_mel_bins": 128,
            "output_dim": 3584,
            "scale_embedding": False,
        },
        "audio_end_token_id": 151648,
        "audio_start_token_id": 151647,
        "audio_token_index": 151646,
        "bos_token_id": 151644,
        "eos_token_id": 151645,
        "ignore_index": -100,
        "image_token_index": 151655,
        "init_std": 0.02,
        "model_type": "qwen2_5_omni_thinker",
        "pad_token_id": 151643,
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "text_config": {
            "hidden_act": "silu",
            "hidden_size": 3584,
            "init_std": 0.02,
            "intermediate_size": 18944,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "model_type": "qwen2_5_omni_text",
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 152064,
        },
        "torch_dtype": "bfloat16",
        "user_token_id": 872,
        "video_token_index": 151656,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_channels": 3,
            "in_chans": 3,
            "init_std": 0.02,
            "intermediate_size": 3420,
            "model_type": "qwen2_5_omni_vision_encoder",
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 25,
            "window_size": 112,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
        "vision_token_id": 151654,
    },
    "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}
PREPROCESSING = {
    "chunk_length": 300,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "n_fft": 400,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_side": "right",
    "padding_value": 0.0,
    "patch_size": 14,
    "processor_class": "Qwen2_5OmniProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "temporal_patch_size": 2,
}


def thinker(section=None, **fields):
    mapping = copy.deepcopy(PUBLISHED)
    within = mapping["thinker_config"] if section is None else mapping["thinker_config"][section]
    within.update(fields)
    return mapping


def test_the_published_configuration():
    config = config_from_hf(PUBLISHED)
    assert config.text.attention == GroupedQuery(28, 4, 128, bias=True)
    assert (config.text.num_hidden_layers, config.text.hidden_size, config.text.max_positions) == (28, 3584, 32768)
    assert config.text.rope.sections == (16, 24, 24) and not config.text.tie_word_embeddings
    assert config.towers["audio"] == AudioConfig(32, 1280, 5120, 20, "gelu", 128, 100, 3584)
    assert config.towers["vision"] is config.vision and config.vision.hidden_size == 1280
    assert config.placeholders == {"audio": 151646, "image": 151655, "video": 151656}
    assert config.media == {"video": 25.0}
    settings = {medium.kind: medium.settings(PREPROCESSING, config) for medium in ARCHITECTURE.media}
    assert settings["audio"] == MelConfig(128, 300)
    assert settings["image"].max_pixels == 12845056 == image_config_from_hf(PREPROCESSING).max_pixels
    whole = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(ARCHITECTURE.declaration(config)))
    assert 8.9e9 < whole < 9e9


def test_defaults_are_those_of_transformers():
    small = thinker("text_config")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"):
        del small["thinker_config"]["text_config"][name]
    for name in ("encoder_layers", "num_hidden_layers", "d_model", "n_window", "output_dim", "num_mel_bins"):
        del small["thinker_config"]["audio_config"][name]
    assert config_from_hf(small) == config_from_hf(PUBLISHED)
    assert config_from_hf(thinker(tie_word_embeddings=True)).text.tie_word_embeddings


@pytest.mark.parametrize(
    "section, fields, error, named",
    [
        (None, {"model_type": "qwen3_omni_moe_thinker"}, UnsupportedConfigError, "model_type"),
        (None, {"audio_config": None}, MissingConfigFieldError, "audio_config"),
        (None, {"surprise": 1}, UnknownConfigFieldError, "thinker_config has unknown fields .'surprise'"),
        (None, {"position_id_per_seconds": 0}, UnsupportedConfigError, "position_id_per_seconds"),
        ("audio_config", {"surprise": 1}, UnknownConfigFieldError, "audio_config has unknown fields"),
        ("audio_config", {"encoder_attention_heads": 7}, UnsupportedConfigError, "7 heads of width 1280"),
        ("audio_config", {"output_dim": 2048}, UnsupportedConfigError, "output_dim is 2048; expected the text width"),
        ("audio_config", {"max_source_positions": 99}, UnsupportedConfigError, "max_source_positions is 99"),
        ("audio_config", {"activation_function": "relu"}, UnsupportedConfigError, "activation_function"),
        ("audio_config", {"num_hidden_layers": 3}, UnsupportedConfigError, "num_hidden_layers is 3"),
        ("vision_config", {"out_hidden_size": 5120}, UnsupportedConfigError, "vision_config: out_hidden_size is 5120"),
        ("vision_config", {"embed_dim": 640}, UnsupportedConfigError, "embed_dim is 640"),
        ("text_config", {"rope_scaling": {"type": "default"}}, MissingConfigFieldError, "mrope_section"),
        ("text_config", {"surprise": 1}, UnknownConfigFieldError, "surprise"),
    ],
)
def test_what_is_not_served_is_named(section, fields, error, named):
    with pytest.raises(error, match=named):
        config_from_hf(thinker(section, **fields))


def test_what_speaks_is_left_out_and_other_tensors_are_not():
    config = ARCHITECTURE.config_from_hf(tiny_omni.CONFIG)
    table = ARCHITECTURE.weight_table(config)
    for name in ("talker.model.layers.0.mlp.up_proj.weight", "token2wav.code2wav_bigvgan_model.conv_post.weight"):
        assert table.skips(table.canonical(name))
    for name in (
        "thinker.audio_tower.audio_bos_eos_token.weight",
        "model.audio_tower.positional_embedding.positional_embedding",
    ):
        assert table.skips(table.canonical(name))
    for name in ("thinker.model.layers.0.mlp.up_proj.weight", "audio_tower.conv1.weight", "talkers.weight"):
        assert not table.skips(table.canonical(name))
    spellings = ("thinker.model.norm.weight", "model.norm.weight", "model.language_model.norm.weight")
    assert {table.canonical(name) for name in spellings} == {"thinker.model.norm.weight"}


def test_weights_come_back_as_they_were_written(tmp_path):
    folder = tiny_omni.write(tmp_path / "model")
    config = ARCHITECTURE.config_from_hf(tiny_omni.CONFIG)
    declared = ARCHITECTURE.declaration(config)
    params = load_params(folder, declared, ARCHITECTURE.weight_table(config), np.dtype(np.float32))
    assert set(params) == {"text", "vision", "audio"}
    assert "b" not in params["audio"]["blocks"]["attn"]["k"] and "b" in params["audio"]["blocks"]["attn"]["q"]
    assert params["audio"]["conv1"]["w"].shape == (3 * config.towers["audio"].bands, 32)


def test_recordings_of_one_bucket_share_a_program():
    config = config_from_hf(PUBLISHED).towers["audio"]
    assert unit(config) == (200, 50)
    rows = {frames: plan(frames, config).rows // 200 for frames in (3, 200, 201, 401, 801, 3200, 3201, 30000)}
    assert rows == {3: 1, 200: 1, 201: 2, 401: 4, 801: 8, 3200: 16, 3201: 32, 30000: 160}
    assert [int(plan(frames, config).tokens) for frames in (3, 4, 5, 7, 199, 200, 201, 203)] == [
        1,
        1,
        1,
        2,
        50,
        50,
        50,
        51,
    ]
    odd = ARCHITECTURE.config_from_hf(PUBLISHED).towers["audio"]
    assert unit(AudioConfig(**{**vars(odd), "window": 5})) == (20, 5)


def test_more_padding_changes_nothing():
    """The rows of pieces that hold nothing stand behind those that do, and no piece sees another."""
    config = ARCHITECTURE.config_from_hf(tiny_omni.CONFIG).towers["audio"]
    rng = np.random.default_rng(0)
    declared = ARCHITECTURE.medium("audio").declaration(config)
    params = jax.tree.map(
        lambda info: jnp.asarray(0.1 * rng.standard_normal(info.shape), jnp.float32),
        declared,
        is_leaf=lambda x: hasattr(x, "init"),
    )
    frames = rng.standard_normal((27, config.bands)).astype(np.float32)
    layout = plan(27, config)
    padded = np.pad(frames, ((0, layout.rows - 27), (0, 0)), constant_values=7.0)
    first = encode_audio(params, config, padded, layout)
    more = layout.replace(rows=layout.rows + 40)
    second = encode_audio(params, config, np.pad(padded, ((0, 40), (0, 0))), more)
    np.testing.assert_allclose(first[:7], second[:7], rtol=0, atol=1e-6)
    assert not np.asarray(second[7:]).any() and int(layout.tokens) == 7


def test_positions_in_a_piece():
    """HF ``SinusoidsPositionEmbedding``: sines, then cosines, of times that slow down to 1 / 10,000."""
    table = sinusoids(100, 64)
    assert table.shape == (100, 64) and table.dtype == np.float32
    scales = 10000.0 ** (-np.arange(32) / 31)
    expected = np.arange(100)[:, None] * scales
    np.testing.assert_allclose(table, np.concatenate([np.sin(expected), np.cos(expected)], 1), rtol=0, atol=2e-5)
