"""Configuration of Qwen3-Omni's thinker, its weights, the layout of its audio tower, and thinkers saved alone."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from models.blocks.attention import GroupedQuery
from models.blocks.moe import Experts
from models.hub.fields import MissingConfigFieldError, UnknownConfigFieldError, UnsupportedConfigError
from models.media.sampling import Sampling
from models.media.sound import MelConfig
from models.ports.qwen3_omni.audio import AudioConfig, encode_audio, plan, token_count, unit
from models.ports.qwen3_omni.config import config_from_hf
from models.ports.qwen3_omni.port import ARCHITECTURE, SIZE
from tests.models import tiny_omni
from tests.models.ports.test_qwen2_5_omni import PREPROCESSING as QWEN2_5
from tests.models.tiny_ports import random_params

PUBLISHED = {  # of the 30B-A3B-Instruct checkpoint
    "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
    "assistant_token_id": 77091,
    "code2wav_config": {"anything": 1},
    "dtype": "bfloat16",
    "enable_audio_output": True,
    "im_end_token_id": 151645,
    "im_start_token_id": 151644,
    "model_type": "qwen3_omni_moe",
    "system_token_id": 8948,
    "talker_config": {"anything": 1},
    "thinker_config": {
        "audio_config": {
            "_name_or_path": "",
            "activation_dropout": 0,
            "activation_function": "gelu",
            "attention_dropout": 0,
            "conv_chunksize": 500,
            "d_model": 1280,
            "downsample_hidden_size": 480,
            "dropout": 0,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "encoder_layers": 32,
            "initializer_range": 0.02,
            "max_source_positions": 1500,
            "model_type": "qwen3_omni_moe_audio_encoder",
            "n_window": 50,
            "n_window_infer": 800,
            "num_hidden_layers": 32,
            "num_mel_bins": 128,
            "output_dim": 2048,
            "scale_embedding": False,
            "tie_word_embeddings": True,
        },
        "audio_end_token_id": 151670,
        "audio_start_token_id": 151669,
        "audio_token_id": 151675,
        "dtype": "bfloat16",
        "image_token_id": 151655,
        "initializer_range": 0.02,
        "model_type": "qwen3_omni_moe_thinker",
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "decoder_sparse_step": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 768,
            "max_position_embeddings": 65536,
            "mlp_only_layers": [],
            "model_type": "qwen3_omni_moe_text",
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
                "type": "default",
            },
            "rope_theta": 1000000,
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_cache": True,
            "use_qk_norm": True,
            "use_sliding_window": False,
            "vocab_size": 152064,
        },
        "tie_word_embeddings": False,
        "user_token_id": 872,
        "video_token_id": 151656,
        "vision_config": {
            "apply_vit_abs_pos_embed": True,
            "deepstack_visual_indexes": [8, 16, 24],
            "depth": 27,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "image_size": 768,
            "in_channels": 3,
            "in_chans": 3,
            "initializer_range": 0.02,
            "intermediate_size": 4304,
            "model_type": "qwen3_omni_moe_vision_encoder",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "spatial_patch_size": 16,
            "temporal_patch_size": 2,
            "tie_word_embeddings": True,
            "tokens_per_second": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    },
    "transformers_version": "4.57.0.dev0",
    "tts_bos_token_id": 151672,
    "tts_eos_token_id": 151673,
    "tts_pad_token_id": 151671,
    "user_token_id": 872,
}
PREPROCESSING = QWEN2_5 | {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "processor_class": "Qwen3OmniMoeProcessor",
}
TOWER = config_from_hf(tiny_omni.CONFIG3).towers["audio"]


def thinker(section=None, **fields):
    mapping = copy.deepcopy(PUBLISHED)
    within = mapping["thinker_config"] if section is None else mapping["thinker_config"][section]
    within.update(fields)
    return mapping


def test_the_published_configuration():
    config = config_from_hf(PUBLISHED)
    assert config.text.attention == GroupedQuery(32, 4, 128, norm_eps=1e-6)
    assert (config.text.num_hidden_layers, config.text.hidden_size, config.text.max_positions) == (48, 2048, 65536)
    assert config.text.rope.sections == (24, 20, 20) and config.text.rope.section_layout == "interleaved"
    assert config.text.experts == Experts(128, 8, 768, scoring="softmax") and not config.text.tie_word_embeddings
    assert config.towers["audio"] == AudioConfig(32, 1280, 5120, 20, "gelu", 128, 50, 2048, 8, 480)
    assert config.vision.deepstack_visual_indexes == (8, 16, 24) and config.vision.out_hidden_size == 2048
    assert config.placeholders == {"audio": 151675, "image": 151655, "video": 151656}
    assert config.media == {"video": 13.0}
    settings = {medium.kind: medium.settings(PREPROCESSING, config) for medium in ARCHITECTURE.media}
    assert settings["audio"] == MelConfig(128, 300)
    assert settings["image"].max_pixels == 12845056 and settings["image"].mean == (0.5, 0.5, 0.5)
    # The processor's bounds on frames, and its one frame a second, unless videos have a file of their own.
    video = settings["video"]
    assert (video.min_pixels, video.max_pixels, video.mean) == (*SIZE.values(), (0.5, 0.5, 0.5))
    medium = ARCHITECTURE.medium("video")
    assert medium.sampling(PREPROCESSING, config) == Sampling(1.0, None, 4, 768, 2)
    own = {"video_processor_type": "Qwen2VLVideoProcessor", "size": {"shortest_edge": 1, "longest_edge": 10**6}}
    assert medium.settings({**own, "patch_size": 16, "fps": 3}, config).max_pixels == 10**6
    assert medium.sampling({**own, "fps": 3}, config).fps == 3
    whole = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(ARCHITECTURE.declaration(config)))
    assert 31.6e9 < whole < 31.8e9


def test_defaults_are_those_of_transformers():
    small = thinker()["thinker_config"]
    for section, names in {
        "audio_config": "d_model downsample_hidden_size encoder_layers num_hidden_layers n_window n_window_infer",
        "text_config": "hidden_size num_experts num_experts_per_tok moe_intermediate_size rope_theta use_qk_norm",
        "vision_config": "depth hidden_size num_heads num_position_embeddings patch_size deepstack_visual_indexes",
    }.items():
        for name in names.split():
            del small[section][name]
    assert config_from_hf(small) == config_from_hf(PUBLISHED)
    for name in ("position_id_per_seconds", "audio_token_id"):
        del small[name]
    assert config_from_hf(small).media == {"video": 25.0} and config_from_hf(small).placeholders["audio"] == 151646
    assert config_from_hf(thinker(tie_word_embeddings=True)).text.tie_word_embeddings
    assert not config_from_hf(thinker("text_config", norm_topk_prob=False)).text.experts.normalise


@pytest.mark.parametrize(
    "section, fields, error, named",
    [
        (None, {"model_type": "qwen2_5_omni_thinker"}, UnsupportedConfigError, "model_type"),
        (None, {"audio_config": None}, MissingConfigFieldError, "audio_config"),
        (None, {"surprise": 1}, UnknownConfigFieldError, "thinker_config has unknown fields .'surprise'"),
        ("audio_config", {"surprise": 1}, UnknownConfigFieldError, "audio_config has unknown fields"),
        ("audio_config", {"encoder_attention_heads": 7}, UnsupportedConfigError, "7 heads of width 1280"),
        ("audio_config", {"output_dim": 3584}, UnsupportedConfigError, "output_dim is 3584; expected the text width"),
        (
            "audio_config",
            {"n_window": 100},
            UnsupportedConfigError,
            "n_window is 100, which makes 25 rows.*expected 13",
        ),
        ("audio_config", {"n_window_infer": 99}, UnsupportedConfigError, "n_window_infer is 99; expected a piece"),
        ("audio_config", {"max_source_positions": 12}, UnsupportedConfigError, "max_source_positions is 12"),
        ("vision_config", {"out_hidden_size": 3584}, UnsupportedConfigError, "out_hidden_size is 3584"),
        ("vision_config", {"apply_vit_abs_pos_embed": False}, UnsupportedConfigError, "apply_vit_abs_pos_embed"),
        ("vision_config", {"spatial_patch_size": 14}, UnsupportedConfigError, "spatial_patch_size is 14"),
        ("text_config", {"rope_scaling": {"type": "default"}}, MissingConfigFieldError, "mrope_section"),
        ("text_config", {"rope_scaling": {"interleaved": False}}, UnsupportedConfigError, "interleaved is False"),
        ("text_config", {"use_qk_norm": False}, UnsupportedConfigError, "use_qk_norm is False"),
        ("text_config", {"shared_expert_intermediate_size": 768}, UnsupportedConfigError, "shared_expert"),
        ("text_config", {"surprise": 1}, UnknownConfigFieldError, "surprise"),
    ],
)
def test_what_is_not_served_is_named(section, fields, error, named):
    with pytest.raises(error, match=named):
        config_from_hf(thinker(section, **fields))


def test_sound_among_the_frames_of_a_video_is_refused():
    config = config_from_hf(PUBLISHED)
    for name in ("use_audio_in_video", "load_audio_from_video"):
        for kind in ("image", "video"):
            with pytest.raises(UnsupportedConfigError, match=f"{name} is True"):
                ARCHITECTURE.medium(kind).settings({**PREPROCESSING, name: True}, config)


def test_a_window_longer_than_a_chunk_is_refused():
    short = {**PREPROCESSING, "chunk_length": 7, "n_samples": 112000, "nb_max_frames": 700}
    with pytest.raises(UnsupportedConfigError, match="chunk_length is 7 seconds; expected 8 at least"):
        ARCHITECTURE.medium("audio").settings(short, config_from_hf(PUBLISHED))


def test_what_speaks_is_left_out_and_other_tensors_are_not():
    table = ARCHITECTURE.weight_table(config_from_hf(tiny_omni.CONFIG3))
    for name in ("talker.model.layers.0.mlp.gate.weight", "code2wav.decoder.0.conv.weight"):
        assert table.skips(table.canonical(name))
    for name in ("thinker.model.layers.0.mlp.gate.weight", "audio_tower.conv2d1.weight", "code2wavs.weight"):
        assert not table.skips(table.canonical(name))
    spellings = ("thinker.visual.merger.ln_q.bias", "model.visual.merger.ln_q.bias", "visual.merger.ln_q.bias")
    assert {table.canonical(name) for name in spellings} == {"thinker.visual.merger.ln_q.bias"}


@pytest.mark.parametrize("family", tiny_omni.CONFIGS)
def test_a_thinker_saved_by_itself_is_the_same_model(tmp_path, family):
    """Without what surrounds it in config.json, and without its prefix in the weights."""
    whole = load(tiny_omni.write(tmp_path / "whole", family=family))
    alone = load(tiny_omni.write(tmp_path / "alone", family=family, alone=True))
    assert alone.architecture.name == f"{family}_thinker" and alone.config == whole.config
    assert set(alone.params) == {"text", "vision", "audio"}
    jax.tree.map(np.testing.assert_array_equal, alone.params, whole.params)
    written = json.loads((tmp_path / "alone" / "config.json").read_text())
    (tmp_path / "alone" / "config.json").write_text(json.dumps({**written, "talker_config": {}}))
    with pytest.raises(UnknownConfigFieldError, match="config.json has unknown fields .'talker_config'"):
        load(tmp_path / "alone")


# The audio tower


def test_recordings_of_one_bucket_share_a_program():
    config = config_from_hf(PUBLISHED).towers["audio"]
    assert unit(config) == (800, 104)
    rows = {frames: plan(frames, config).rows // 100 for frames in (1, 100, 101, 301, 800, 801, 1601, 3201, 30000)}
    assert rows == {1: 1, 100: 1, 101: 2, 301: 4, 800: 8, 801: 16, 1601: 32, 3201: 64, 30000: 320}
    assert [token_count(frames, config) for frames in (1, 8, 9, 99, 100, 101, 109, 800)] == [
        1,
        1,
        2,
        13,
        13,
        14,
        15,
        104,
    ]


@pytest.mark.parametrize("frames, behind, filled", [(99, False, False), (100, False, False), (101, False, True)])
def test_a_last_piece_is_filled_where_one_stands_before_it(frames, behind, filled):
    assert bool(plan(frames, TOWER, behind).filled) == filled
    assert bool(plan(frames, TOWER, True).filled)


def test_more_padding_changes_nothing():
    """Nor does what stands in it; a piece that ends early is another one than that filled with zeros."""
    params = jax.tree.map(jnp.asarray, random_params(ARCHITECTURE.medium("audio").declaration(TOWER)))
    frames = np.random.default_rng(0).standard_normal((127, TOWER.bands)).astype(np.float32)
    layout = plan(127, TOWER)
    padded = np.pad(frames, ((0, layout.rows - 127), (0, 0)), constant_values=7.0)
    first = encode_audio(params, TOWER, padded, layout)
    more = layout.replace(rows=layout.rows + 100, windows=layout.windows + 1)
    second = encode_audio(params, TOWER, np.pad(padded, ((0, 100), (0, 0))), more)
    tokens = int(layout.tokens)
    assert tokens == 13 + 4 and not np.asarray(second[tokens:]).any()
    np.testing.assert_allclose(first[:tokens], second[:tokens], rtol=0, atol=1e-6)
    (alone, behind) = (encode_audio(params, TOWER, padded[100:200], plan(27, TOWER, each)) for each in (False, True))
    np.testing.assert_allclose(behind[:4], first[13:tokens], rtol=0, atol=1e-6)
    assert np.abs(np.asarray(alone - behind)[3]).max() > 1e-4


# Videos


def test_what_follows_a_video_stands_at_a_fraction(tmp_path):
    vlm = load(tiny_omni.write(tmp_path / "model", family="qwen3_omni_moe"))
    frames = np.zeros((6, 16, 16, 3), np.uint8)
    segment = vlm.prepare(kj.Video(frames, [0, 0.5, 0.7, 0.9, 1.1, 2.0]))
    count = int(segment.length)
    at = np.asarray(segment.positions)[:, :count]
    assert count == 2 + 3 * 4
    np.testing.assert_allclose(at[0, 1:-1], np.repeat([1, 1 + 0.7 * 13, 1 + 1.1 * 13], 4), rtol=1e-6)
    np.testing.assert_array_equal(at[1, 1:-1], np.tile([1, 1, 2, 2], 3))
    np.testing.assert_allclose(at[:, -1], 2 + 1.1 * 13, rtol=1e-6)
    assert segment.advance == pytest.approx(3 + 1.1 * 13)
    chunk = kj.encode(vlm, kj.Video(frames, [0, 0.5, 0.7, 0.9, 1.1, 2.0]))
    window = kj.append(kj.Window.empty(vlm, 128), chunk)
    assert window.next_position == pytest.approx(float(vlm.preamble.advance) + 3 + 1.1 * 13)
