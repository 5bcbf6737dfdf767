"""InternVL3 against transformers: pixels, grids of tiles, tokens, towers through files, and videos on rungs 2 to 5."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

import kamera_jax as kj
from kamera_jax.forward import run
from models.hub.chat import IMAGE, Block, ChatTemplate
from models.hub.tensor_files import SINGLE
from models.hub.weights import load_params, save_params
from models.media.spans import Features
from models.ports.internvl.images import ImageConfig, canvas, preprocess_image
from models.ports.internvl.port import ARCHITECTURE, IMAGES, VIDEOS
from models.ports.internvl.vision import encode_image, plan
from tests.internvl_files import NAMES, PREPROCESSING, TEMPLATE
from tests.models.hub.tokenizers_of_ports import QWEN_SPLIT, byte_level
from tests.parity.internvl_pair import CONFIGS, InternVLPair, processor_of
from tests.parity.oracle import assert_close, assert_prefilled, token
from tests.parity.test_reuse import assert_blind_equals_hf, assert_items_equal_there, patched
from tests.parity.tiny_hf import save_hub_folder, tiny_internvl
from tests.pictures import MODES, picture, width_first

pytestmark = pytest.mark.parity

# Pixels ---------------------------------------------------------------------------------------------------------------

CASES = {
    "hub": {name: PREPROCESSING[name] for name in ("image_mean", "image_std", "size", "max_patches")},
    "defaults": {"size": {"height": 56, "width": 56}},
    "few": {"size": {"height": 28, "width": 28}, "min_patches": 2, "max_patches": 5, "rescale_factor": 1 / 128},
    "one": {"size": {"height": 42, "width": 42}, "max_patches": 1, "image_mean": [0.9, 0.2, 0.7]},
    "many": {"size": {"height": 14, "width": 14}, "min_patches": 7, "max_patches": 40},
}
SIZES = [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (5, 640), (641, 480), (200, 1), (900, 300), (112, 112)]


def assert_equal(case, image):
    """Difference 0, where Pillow resizes width first, and to transformers as it is where the order is that."""
    processor = GotOcr2ImageProcessorPil(crop_to_patches=True, **CASES[case])
    with width_first() as unlike:
        made = processor(images=[image], return_tensors="np")
    if not unlike:
        assert np.array_equal(processor(images=[image], return_tensors="np")["pixel_values"], made["pixel_values"])
    config = ImageConfig.from_hf(json.loads(processor.to_json_string()), patch_size=14)
    given = preprocess_image(image, config)
    tiles, rows, columns = given.grid
    assert tiles == made["num_patches"][0] and rows == columns == config.tile // 14
    assert given.patches.dtype == made["pixel_values"].dtype == np.float32
    patches = given.patches.reshape(tiles, rows, columns, 3, 14, 14)
    pixels = patches.transpose(0, 3, 1, 4, 2, 5).reshape(made["pixel_values"].shape)
    np.testing.assert_array_equal(pixels, made["pixel_values"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_hf_to_the_bit(case, size):
    assert_equal(case, picture(*size))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_hf_to_the_bit(mode):
    assert_equal("defaults", picture(97, 61, mode))


def test_arrays_and_palettes_with_transparency_equal_hf_to_the_bit():
    assert_equal("defaults", np.asarray(picture(97, 61)))
    image = picture(97, 61, "P")
    image.info["transparency"] = 3
    assert_equal("defaults", image)


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (3, 9), (5, 5), (1, 40)])
def test_grids_equal_hf_s(least, most):
    """Sizes of every shape; among them ties of shape, on both sides of twice the tiles' pixels."""
    rng = np.random.default_rng(most)
    sizes = [*rng.integers(1, 3000, (400, 2)).tolist(), *([side, side] for side in range(100, 2000, 60))]
    sizes += [[2 * side, side] for side in range(50, 1200, 50)] + [[side, 3 * side] for side in range(50, 900, 50)]
    config = ImageConfig(tile=448, least=least, most=most)
    for width, height in sizes:
        expected = get_optimal_tiled_canvas((height, width), (448, 448), least, most)
        assert canvas(width, height, config) == expected, (width, height)


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """Of the kind that the hub's files have: bytes, and control tokens between which text is tokenized."""
    special = ["<|im_end|>", "<|im_start|>", *NAMES.values()]
    made = byte_level(QWEN_SPLIT, special, ["<tool_call>"], TEMPLATE)
    for name, written in NAMES.items():
        setattr(made, name, written)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(written))
    return made


def prompt_ids(tokenizer, items, question, tiles):
    """The port's tokens of items that are one chunk each, or the parts of one, with 4 tokens a tile."""
    chat = ChatTemplate(tokenizer, [0], kinds=("image", "video"))
    mapping = {"model_type": "internvl", "text_config": {}, "image_token_id": tokenizer.context_image_token_id}
    mapping["vision_config"] = {"image_size": 56, "num_hidden_layers": 1}
    config = ARCHITECTURE.config_from_hf(mapping)
    placeholders = {"image": config.image_token_id, "video": chat.token(VIDEOS.placeholder)}

    def media_ids(item):
        medium = VIDEOS if isinstance(item, kj.Video) else IMAGES
        settings = medium.settings_from_hf(tiles)
        spans = medium.spans(item, settings, config, chat, lambda *_: Features(np.ones((4, 1))))
        return [number for span in spans for number in span.ids]

    ids = list(chat.preamble)
    for chunk in items:
        parts = chunk if isinstance(chunk, list) else [chunk]
        media = iter([part for part in parts if not isinstance(part, str)])
        kinds = [p if isinstance(p, str) else Block("video") if isinstance(p, kj.Video) else IMAGE for p in parts]
        for number in chat.content(kinds, placeholders):
            ids += media_ids(next(media)) if number in placeholders.values() else [number]
    return [*ids, *chat.tail(question)]


def video(count, rows, columns, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, rows, columns, 3), np.uint8)
    return kj.Video.at_rate(frames, 2.0)


MESSAGES = {
    "an image": [picture(60, 40)],
    "wide": [picture(300, 20)],
    "images": [picture(60, 40), picture(10, 90), picture(56, 56)],
    "one chunk": [["the first page", picture(60, 40), " and the pages of the book:", picture(9, 9)]],
    "a video": [video(12, 30, 40)],
    "one frame": [video(1, 30, 40)],
    "both": [picture(60, 40), video(3, 56, 56), [picture(9, 90), video(3, 20, 20)]],
    "behind a text": [
        ["the pages of the book:\n", video(2, 20, 20), picture(9, 90), "\nand the first:\n", video(2, 9, 9)]
    ],
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("question", ["what is it?", " which  colour\n\n is it", "2024"])
def test_prompts_are_the_tokens_of_hf_s_processor(tokenizer, name, question):
    tiles = {**PREPROCESSING, "size": {"height": 56, "width": 56}}
    parts = [part for item in MESSAGES[name] for part in (item if isinstance(item, list) else [item])]
    content = []
    for part in [*parts, question]:
        kind = "text" if isinstance(part, str) else "video" if isinstance(part, kj.Video) else "image"
        content.append({"type": kind, "text": part} if kind == "text" else {"type": kind})
    processor = processor_of(tokenizer, tiles, 4)
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    media = {
        "images": [part for part in parts if not isinstance(part, str | kj.Video)] or None,
        "videos": [part.frames for part in parts if isinstance(part, kj.Video)] or None,
    }
    expected = processor(text=text, **media, return_tensors="pt")["input_ids"][0].tolist()
    assert prompt_ids(tokenizer, MESSAGES[name], question, tiles) == expected


# Towers ---------------------------------------------------------------------------------------------------------------

TOWERS = {
    "300M": ({"hidden_size": 48, "num_attention_heads": 3}, {}),
    "6B": ({"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}, {}),
    "norm behind it": ({"use_mean_pooling": False, "layer_norm_eps": 1e-3}, {"projector_hidden_act": "quick_gelu"}),
    "norm not reached": ({"use_mean_pooling": False, "norm_type": "rms_norm"}, {"vision_feature_layer": 2}),
    "QK norm, layer -2": ({"use_qk_norm": True, "num_hidden_layers": 4}, {"vision_feature_layer": -2}),
    "RMSNorm, layer 1": ({"norm_type": "rms_norm", "layer_norm_eps": 1e-3}, {"vision_feature_layer": 1}),
    "grey, no merging": ({"num_channels": 1, "hidden_act": "gelu_pytorch_tanh"}, {"downsample_ratio": 1.0}),
    "4 x 4 merged": ({"image_size": 24, "patch_size": 3}, {"downsample_ratio": 0.25}),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_equal_hf_through_files(tmp_path, name):
    variation, top = TOWERS[name]
    vision = {"image_size": 16, "initializer_range": 0.15, **variation}
    model = tiny_internvl(len(name), vision=vision, **top)
    folder = save_hub_folder(model, tmp_path / "hub")
    config = ARCHITECTURE.config_from_hf(json.loads((folder / "config.json").read_text()))
    table = ARCHITECTURE.weight_table(config)
    params = load_params(folder, ARCHITECTURE.declaration(config), table, jnp.float32)

    tower = config.vision
    shape = (3, tower.in_channels, tower.image_size, tower.image_size)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = model.model.get_image_features(torch.from_numpy(pixels), return_dict=True).pooler_output.numpy()
    cells = (3, tower.in_channels, tower.side, tower.patch_size, tower.side, tower.patch_size)
    patches = pixels.reshape(cells).transpose(0, 2, 4, 1, 3, 5).reshape(3, tower.side**2, -1)
    layout = plan(tower.side, tower.side, tower)
    encode = jax.jit(encode_image, static_argnums=1)
    for tile, features in zip(patches, expected, strict=True):
        given = np.asarray(encode(params["vision"], tower, tile, layout))
        assert len(given) == layout.tokens == tower.tokens
        assert_close(given, features)
    # The tiles' features differ in more than what is common to all: the tower is seen.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()

    save_params(tmp_path / "ours", params, table, jnp.float32)
    ours = load_file(tmp_path / "ours" / SINGLE)
    theirs = load_file(folder / SINGLE)
    assert {*theirs} >= {*ours} and all(table.skips(name) for name in {*theirs} - {*ours})
    for tensor, given in ours.items():
        np.testing.assert_array_equal(given, theirs[tensor])


# Videos ---------------------------------------------------------------------------------------------------------------

SIZE = 128
QUESTION = "which colour is the cell on the page?"


@pytest.fixture(scope="module", params=list(CONFIGS)[:2])
def video_pair(request, tmp_path_factory):
    return InternVLPair(CONFIGS[request.param][1], tmp_path_factory.mktemp("hub"), seed=len(request.param))


def prompts(pair):
    """Frames of the tile's size and of others; a video alone, in a chunk of several parts, and behind others."""
    side = pair.preprocessing()["size"]["height"]
    return {
        "alone": [video(5, side, side)],
        "resized": [video(2, side + 5, 3 * side, seed=1)],
        "one frame": [video(1, 7, 5, seed=2)],
        "behind others": [
            pair.image("dot"),
            [video(3, side, side, seed=3), "the page.", pair.image("square"), video(2, 9, 20, seed=4)],
            "the last page.",
        ],
    }


@pytest.mark.parametrize("name", ["alone", "resized", "one frame", "behind others"])
def test_whole_prompts_with_videos_equal_hf(video_pair, name):
    pair = video_pair
    prompt = pair.prompt(prompts(pair)[name], QUESTION)
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    assert (prompt.ids == token("image_pad")).any() and not (prompt.ids == token("video_pad")).any()
    segment = prompt.joined(size=SIZE)
    length = len(prompt.ids)
    output = run(pair.vlm.params, segment, None, jnp.arange(SIZE), forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)


def test_a_chunk_with_videos_rotated_equals_hf_there(video_pair):
    assert_items_equal_there(video_pair, prompts(video_pair)["behind others"][1:2], 37)


def test_blind_and_patched_reuse_of_videos_equal_hf(video_pair):
    prompt = video_pair.prompt(prompts(video_pair)["behind others"], QUESTION)
    assert_blind_equals_hf(video_pair, prompt, "pinned")
    assert_prefilled(patched(video_pair.vlm, prompt.items, "antecedents"), prompt)


def test_dynamic_ntk_is_served_up_to_the_model_s_length(video_pair):
    """There transformers turns keys by other frequencies from the next position on."""
    limit = video_pair.hf.config.text_config.max_position_embeddings
    assert video_pair.vlm.spec.max_positions == limit
