"""Numbers in a model's files that are none, or none that the computation could have, are refused by name."""

import copy
import json

import pytest

from eval.tiny.vocabulary import build_tokenizer
from kamera_jax.rope import UnsupportedRopeError
from models import load
from models.hub.chat import ChatTemplate
from models.hub.fields import ConfigError, Fields, MissingConfigFieldError, UnsupportedConfigError, read_json
from models.ports.deepseek_vl import images as deepseek_vl_images
from models.ports.idefics3 import images as idefics3_images
from models.ports.internvl import images as internvl_images
from models.ports.kimi_vl import images as kimi_vl_images
from models.ports.llava import images as llava_images
from models.ports.llava_onevision import images as llava_onevision_images
from models.ports.qwen2_5_vl import images as qwen2_5_vl_images
from models.registry import ARCHITECTURES, CHECKPOINTS
from tests.models.ports.test_idefics3 import PUBLISHED as IDEFICS3
from tests.models.ports.test_llava_onevision import PUBLISHED as ONEVISION
from tests.models.ports.test_port_configs import PUBLISHED
from tests.models.ports.test_qwen2_5_omni import PUBLISHED as OMNI
from tests.models.ports.test_qwen2_5_vl_config import HUB, nested
from tests.models.ports.test_qwen3_omni import PUBLISHED as OMNI3
from tests.models.ports.test_qwen3_vl_config import PUBLISHED as QWEN3_VL

NAN = float("nan")
INFINITY = float("inf")
HUGE = 10**400
NO_NUMBERS = [NAN, INFINITY, -INFINITY, True, False, "1", [1.0], {}, HUGE, -HUGE]
NOT_POSITIVE = [*NO_NUMBERS, 0, 0.0, -1, -1e-6, 1e-320]
NO_SIZES = [*NO_NUMBERS, 0, -1, 1.5, 2.0, 2**31, 10**30]
CONFIGS = {
    **PUBLISHED,
    **QWEN3_VL,
    "idefics3": IDEFICS3,
    "llava_onevision": ONEVISION,
    "qwen2_5_omni": OMNI,
    "qwen3_omni_moe": OMNI3,
    "qwen2_5_vl": HUB,
    "qwen2_5_vl, nested": nested(),
}


def with_field(mapping, path, value):
    mapping = copy.deepcopy(mapping)
    *sections, name = path.split("/")
    section = mapping
    for each in sections:
        section = section[each]
    section[name] = value
    return mapping


def read(name, path, value):
    mapping = with_field(CONFIGS[name], path, value)
    return ARCHITECTURES[mapping["model_type"]].config_from_hf(mapping)


def cases(fields, values):
    return [(name, path, value) for name, paths in fields.items() for path in paths.split() for value in values]


POSITIVE = {
    "kimi_vl": "text_config/rms_norm_eps text_config/rope_theta text_config/routed_scaling_factor "
    "text_config/partial_rotary_factor",
    "deepseek_vl": "text_config/rms_norm_eps text_config/rope_theta vision_config/layer_norm_eps",
    "llava": "text_config/rms_norm_eps text_config/rope_theta vision_config/layer_norm_eps",
    "internvl": "text_config/rms_norm_eps text_config/rope_theta vision_config/layer_norm_eps downsample_ratio",
    "idefics3": "text_config/rms_norm_eps text_config/rope_theta vision_config/layer_norm_eps",
    "llava_onevision": "text_config/rms_norm_eps text_config/rope_theta vision_config/layer_norm_eps",
    "qwen2_5_vl": "rms_norm_eps rope_theta",
    "qwen2_5_omni": "thinker_config/position_id_per_seconds thinker_config/text_config/rope_theta",
    "qwen3_omni_moe": "thinker_config/position_id_per_seconds thinker_config/text_config/rope_theta",
    "qwen3_vl": "text_config/rms_norm_eps text_config/rope_theta",
    "qwen2_5_vl, nested": "text_config/rms_norm_eps text_config/rope_parameters/rope_theta",
}


@pytest.mark.parametrize("name, path, value", cases(POSITIVE, NOT_POSITIVE))
def test_what_has_to_be_above_zero(name, path, value):
    with pytest.raises((UnsupportedConfigError, UnsupportedRopeError), match=path.split("/")[-1]):
        read(name, path, value)


SIZES = {
    "kimi_vl": "text_config/hidden_size text_config/num_hidden_layers text_config/num_attention_heads "
    "text_config/kv_lora_rank text_config/q_lora_rank text_config/qk_rope_head_dim text_config/v_head_dim "
    "text_config/n_routed_experts text_config/n_group text_config/topk_group text_config/num_experts_per_tok "
    "text_config/moe_intermediate_size text_config/max_position_embeddings text_config/vocab_size "
    "vision_config/num_hidden_layers vision_config/patch_size vision_config/init_pos_emb_height",
    "deepseek_vl": "text_config/num_key_value_heads text_config/head_dim text_config/max_position_embeddings "
    "vision_config/num_attention_heads vision_config/image_size vision_config/num_channels",
    "llava": "text_config/hidden_size text_config/intermediate_size text_config/original_max_position_embeddings "
    "vision_config/hidden_size vision_config/num_hidden_layers",
    "qwen3_vl": "text_config/head_dim text_config/num_hidden_layers text_config/num_key_value_heads "
    "vision_config/depth vision_config/patch_size vision_config/num_position_embeddings vision_config/num_heads",
    "qwen3_vl_moe": "text_config/num_experts text_config/num_experts_per_tok text_config/moe_intermediate_size "
    "text_config/decoder_sparse_step",
    "internvl": "text_config/hidden_size text_config/num_attention_heads text_config/num_hidden_layers "
    "vision_config/num_hidden_layers vision_config/num_attention_heads vision_config/image_size "
    "vision_config/num_channels",
    "llava_onevision": "text_config/hidden_size vision_config/image_size vision_config/patch_size",
    "qwen2_5_omni": "thinker_config/audio_config/d_model thinker_config/audio_config/encoder_layers "
    "thinker_config/audio_config/encoder_attention_heads thinker_config/audio_config/n_window "
    "thinker_config/audio_config/num_mel_bins thinker_config/text_config/vocab_size thinker_config/vision_config/depth",
    "qwen3_omni_moe": "thinker_config/audio_config/n_window thinker_config/audio_config/n_window_infer "
    "thinker_config/audio_config/downsample_hidden_size thinker_config/text_config/num_experts "
    "thinker_config/vision_config/num_position_embeddings",
    "idefics3": "scale_factor text_config/num_hidden_layers vision_config/image_size vision_config/patch_size",
    "qwen2_5_vl": "num_attention_heads num_key_value_heads max_position_embeddings vocab_size vision_config/depth "
    "vision_config/window_size vision_config/temporal_patch_size vision_config/spatial_merge_size",
}


@pytest.mark.parametrize("name, path, value", cases(SIZES, NO_SIZES))
def test_what_counts_something(name, path, value):
    with pytest.raises(UnsupportedConfigError, match=path.split("/")[-1]):
        read(name, path, value)


TOKENS = {
    "kimi_vl": "media_placeholder_token_id text_config/first_k_dense_replace text_config/n_shared_experts",
    "deepseek_vl": "image_token_id",
    "llava": "image_token_id image_token_index",
    "internvl": "image_token_id",
    "idefics3": "image_token_id",
    "llava_onevision": "image_token_index video_token_index",
    "qwen2_5_vl": "image_token_id",
    "qwen2_5_omni": "thinker_config/audio_token_index thinker_config/video_token_index",
    "qwen3_omni_moe": "thinker_config/audio_token_id thinker_config/video_token_id",
    "qwen3_vl": "image_token_id video_token_id vision_start_token_id vision_end_token_id",
}


@pytest.mark.parametrize("name, path, value", cases(TOKENS, [each for each in NO_SIZES if each != 0 or each is False]))
def test_what_counts_from_zero(name, path, value):
    with pytest.raises(UnsupportedConfigError, match=path.split("/")[-1]):
        read(name, path, value)


@pytest.mark.parametrize(
    "name, path, value, named",
    [
        ("deepseek_vl", "text_config/num_attention_heads", 15, "15 query heads"),
        ("deepseek_vl", "text_config/num_key_value_heads", 5, "5 KV heads"),
        ("deepseek_vl", "text_config/num_key_value_heads", 32, "32 KV heads"),
        ("deepseek_vl", "vision_config/num_attention_heads", 15, "15 heads"),
        ("llava", "vision_config/num_attention_heads", 7, "7 heads"),
        ("kimi_vl", "vision_config/num_attention_heads", 7, "7 heads"),
        ("kimi_vl", "text_config/moe_layer_freq", True, "moe_layer_freq is True"),
        ("kimi_vl", "text_config/attention_bias", 0, "attention_bias is 0"),
        ("kimi_vl", "vision_config/merge_kernel_size", [True, True], "merge_kernel_size"),
        ("kimi_vl", "vision_config/merge_kernel_size", [2.0, 2.0], "merge_kernel_size"),
        ("kimi_vl", "vision_config/merge_kernel_size", [0, 0], "merge_kernel_size"),
        ("qwen2_5_vl", "num_attention_heads", 27, "27 query heads"),
        ("qwen2_5_vl", "use_sliding_window", 0, "use_sliding_window is 0"),
        ("qwen2_5_vl", "vision_config/num_heads", 24, "24 heads"),
        ("qwen2_5_vl", "vision_config/fullatt_block_indexes", [True], "fullatt_block_indexes"),
        ("qwen2_5_vl", "vision_config/fullatt_block_indexes", [1.0], "fullatt_block_indexes"),
        ("qwen2_5_vl", "vision_config/fullatt_block_indexes", [-1], "fullatt_block_indexes"),
        ("qwen3_vl", "text_config/attention_bias", 0, "attention_bias is 0"),
        ("qwen3_vl", "vision_config/deepstack_visual_indexes", [True], "deepstack_visual_indexes"),
        ("qwen3_vl", "vision_config/deepstack_visual_indexes", [1.0], "deepstack_visual_indexes"),
        ("qwen3_vl_moe", "text_config/mlp_only_layers", [0.0], "mlp_only_layers"),
        ("llava", "vision_feature_layer", True, "vision_feature_layer is True"),
        ("llava", "vision_feature_layer", [-2, -5], "vision_feature_layer"),
        ("llava", "vision_feature_layer", 0, "vision_feature_layer is 0"),
        ("llava_onevision", "vision_feature_layer", True, "vision_feature_layer is True"),
        ("llava_onevision", "image_grid_pinpoints", [[384, 384.0]], "image_grid_pinpoints"),
    ],
)
def test_other_things_that_cannot_be(name, path, value, named):
    with pytest.raises(UnsupportedConfigError, match=named):
        read(name, path, value)


IMAGES = {
    "qwen2_5_vl": (qwen2_5_vl_images, {"image_processor_type": "Qwen2VLImageProcessor"}),
    "kimi_vl": (kimi_vl_images, {"image_processor_type": "KimiVLImageProcessor", "pad_input": True}),
    "deepseek_vl": (deepseek_vl_images, {"image_processor_type": "DeepseekVLImageProcessor"}),
    "llava": (llava_images, {"image_processor_type": "LlavaImageProcessor", "do_pad": True}),
    "internvl": (internvl_images, {"image_processor_type": "GotOcr2ImageProcessorFast"}),
    "idefics3": (idefics3_images, {"image_processor_type": "SmolVLMImageProcessor"}),
    "llava_onevision": (llava_onevision_images, {"image_processor_type": "LlavaOnevisionImageProcessor"}),
}


def preprocessing(name, **said):
    module, mapping = IMAGES[name]
    return module.ImageConfig.from_hf({**mapping, **said})


@pytest.mark.parametrize("value", NOT_POSITIVE)
@pytest.mark.parametrize("name", IMAGES)
def test_what_pixels_are_divided_and_multiplied_by(name, value):
    with pytest.raises(ConfigError, match="image_std"):
        preprocessing(name, image_std=[0.5, value, 0.5])
    with pytest.raises(ConfigError, match="rescale_factor"):
        preprocessing(name, rescale_factor=value)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", IMAGES)
def test_what_is_taken_off_pixels(name, value):
    with pytest.raises(ConfigError, match="image_mean"):
        preprocessing(name, image_mean=[0.5, value, 0.5])
    assert preprocessing(name, image_mean=[0, 0.0, 1]).mean == (0.0, 0.0, 1.0)


def test_a_mean_that_is_painted_is_a_colour():
    for name in ("deepseek_vl", "llava"):
        for value in (-0.1, 1.1):
            with pytest.raises(UnsupportedConfigError, match="image_mean.*colour"):
                preprocessing(name, image_mean=[0.5, 0.5, value])
    assert preprocessing("llava", do_pad=False, image_mean=[-0.1, 0.5, 1.1]).mean == (-0.1, 0.5, 1.1)
    assert preprocessing("qwen2_5_vl", image_mean=[-0.1, 0.5, 1.1]).mean == (-0.1, 0.5, 1.1)


@pytest.mark.parametrize("value", NO_SIZES)
def test_what_counts_pixels(value):
    for name, field in (
        ("qwen2_5_vl", "min_pixels"),
        ("qwen2_5_vl", "merge_size"),
        ("qwen2_5_vl", "patch_size"),
        ("kimi_vl", "in_token_limit"),
        ("deepseek_vl", "min_size"),
        ("deepseek_vl", "size"),
        ("llava", "crop_size"),
        ("llava_onevision", "size"),
        ("internvl", "size"),
        ("internvl", "min_patches"),
        ("internvl", "max_patches"),
    ):
        if field in ("size", "crop_size") and value == {}:
            continue  # sides that are left out have their default
        with pytest.raises(ConfigError, match=field):
            preprocessing(name, **{field: value})
    for merge in ([value, 2], [2], [2, 2, 2]):
        with pytest.raises(ConfigError, match="merge_kernel_size"):
            preprocessing("kimi_vl", merge_kernel_size=merge)


def test_a_size_is_never_a_list_of_its_length():
    """The largest that passes is a size like others, until the weights are compared with it; no model has more."""
    assert read("qwen2_5_vl", "num_hidden_layers", 4096).text.num_hidden_layers == 4096
    with pytest.raises(
        UnsupportedConfigError, match="num_hidden_layers is 2147483647; expected at least 1, and at most 4096"
    ):
        read("qwen2_5_vl", "num_hidden_layers", 2**31 - 1)


def test_bounds_of_an_area_stand_in_order():
    with pytest.raises(
        UnsupportedConfigError, match=r"min_pixels \(shortest_edge\) is 5000 and max_pixels \(longest_edge\) is 4000"
    ):
        preprocessing("qwen2_5_vl", min_pixels=5000, max_pixels=4000)
    assert preprocessing("qwen2_5_vl", min_pixels=4000, max_pixels=4000).min_pixels == 4000


def test_fields_give_what_they_were_asked_for():
    fields = Fields("here", {"a": 1, "b": 0, "c": -0.5, "d": [1, 2], "e": 0, "f": None})
    assert fields.positive("a") == 1.0 and fields.positive("f", 2.0) == 2.0
    assert fields.number("b") == 0.0 and fields.number("c") == -0.5
    assert fields.sizes("d") == (1, 2) and fields.size("e", least=0) == 0
    fields.close()
    for take in (fields.positive, fields.number, fields.size, fields.sizes):
        with pytest.raises(MissingConfigFieldError, match="here has no 'g'"):
            take("g")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_literals_that_are_no_json(tmp_path, literal):
    path = tmp_path / "config.json"
    for text, name in (
        (f'{{"rope_theta": {literal}}}', "rope_theta is"),
        (f'{{"text_config": {{"rope_parameters": {{"factor": {literal}}}}}}}', "text_config.rope_parameters.factor is"),
        (f'{{"image_std": [0.5, {literal}]}}', r"image_std\[1\] is"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"config.json: {name}"):
            read_json(path)
    path.write_text('{"a": [1, 2.5, {"b": "NaN"}], "c": null}')
    assert read_json(path) == {"a": [1, 2.5, {"b": "NaN"}], "c": None}


def test_a_number_of_thousands_of_digits(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("value", [-1, 2.0, "3", True, [3, -1], [3, True], [3.5], {}])
def test_ids_that_end_an_answer(tmp_path, value):
    build_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ConfigError, match="generation_config.json: eos_token_id"):
        ChatTemplate.load(tmp_path)
    for good, read_as in ((None, (3,)), (1, (1,)), ([1, 3], (1, 3))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": good}))
        assert ChatTemplate.load(tmp_path).eos == read_as


def test_a_model_with_such_a_number_is_not_loaded(tmp_path):
    for file in (CHECKPOINTS / "kamera-tiny-mha").iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    mapping = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(with_field(mapping, "text_config/rope_theta", NAN)))
    with pytest.raises(ConfigError, match="text_config.rope_theta is nan"):
        load(tmp_path)
