"""Idefics3 and SmolVLM2 against transformers: pixels, grids of tiles, tokens, and towers through files."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata

import kamera_jax as kj
from models.hub.chat import IMAGE, ChatTemplate
from models.hub.tensor_files import SINGLE
from models.hub.weights import load_params, save_params
from models.media.images import cropped_patches
from models.media.sampling import TrimmedSampling
from models.media.spans import Features
from models.ports.idefics3.images import ImageConfig, in_whole_tiles, scaled, tiles_of
from models.ports.idefics3.media import FENCE, WHOLE
from models.ports.idefics3.port import ARCHITECTURES, IMAGES, VIDEOS
from models.ports.idefics3.video import in_words, video_config_from_hf
from models.ports.idefics3.vision import encode_image, plan
from tests.idefics3_files import PLACES, PREPROCESSING, TEMPLATE
from tests.models.hub.tokenizers_of_ports import GPT2_SPLIT, byte_level
from tests.parity.idefics3_pair import processor_of
from tests.parity.oracle import assert_close
from tests.parity.tiny_hf import save_hub_folder, tiny_idefics3
from tests.pictures import MODES, picture, width_first

pytestmark = pytest.mark.parity

# Pixels ---------------------------------------------------------------------------------------------------------------

CASES = {
    "four a side": {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}},
    "uneven": {"size": {"longest_edge": 150}, "max_image_size": {"longest_edge": 49}, "image_mean": [0.9, 0.2, 0.7]},
    "one": {"size": {"longest_edge": 42}, "max_image_size": {"longest_edge": 42}, "rescale_factor": 1 / 128},
    "whole": {"do_image_splitting": False, "size": {"longest_edge": 90}, "max_image_size": {"longest_edge": 28}},
}
SIZES = [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (5, 640), (641, 480), (200, 1), (224, 223), (112, 113)]
PROCESSORS = (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil)


def assert_equal(case, image, processor_class=Idefics3ImageProcessorPil):
    """Difference 0, where Pillow resizes width first, and to transformers as it is where the order is that."""
    processor = processor_class(**CASES[case])
    given = {"images": [[image]], "return_row_col_info": True, "return_tensors": "np"}
    with width_first() as unlike:
        made = processor(**given)
    if not unlike:
        assert np.array_equal(processor(**given)["pixel_values"], made["pixel_values"])
    assert made["pixel_attention_mask"].all()
    config = ImageConfig.from_hf(json.loads(processor.to_json_string()), patch_size=7)
    tiles, rows, columns = tiles_of(image, config)
    assert (rows, columns) == (made["rows"][0][0], made["cols"][0][0])
    expected = made["pixel_values"][0]
    assert len(tiles) == len(expected) == max(rows * columns + 1, 1)
    for tile, pixels in zip(tiles, expected, strict=True):
        cut = cropped_patches(tile, config)
        side = cut.grid[1]
        assert cut.grid == (1, side, side) and side == config.tile // 7
        patches = cut.patches.reshape(side, side, 3, 7, 7).transpose(2, 0, 3, 1, 4).reshape(3, side * 7, side * 7)
        assert patches.dtype == pixels.dtype == np.float32
        np.testing.assert_array_equal(patches, pixels[:, : side * 7, : side * 7])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_hf_to_the_bit(case, size):
    assert_equal(case, picture(*size), PROCESSORS[len(case) % 2])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_hf_to_the_bit(mode):
    assert_equal("whole", picture(97, 61, mode))


@pytest.mark.parametrize(("longest", "tile"), [(2048, 512), (1920, 384), (1456, 364), (364, 364), (5000, 512)])
def test_sizes_equal_hf_s(longest, tile):
    """Of every shape, and of sides that are whole tiles or one pixel from it."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    rng = np.random.default_rng(longest)
    sizes = [*rng.integers(1, 5000, (300, 2)).tolist(), *([tile * 2 + more, tile] for more in (-1, 0, 1))]
    sizes += [[1, 5000], [5000, 1], [4096, 4097], [tile, tile]]
    config = ImageConfig(longest_edge=longest, tile=tile)
    for width, height in sizes:
        rows, columns = get_resize_output_image_size(np.empty((1, height, width), bool), longest)
        assert scaled(width, height, config) == (columns, rows), (width, height)
        across, down = in_whole_tiles(columns, rows, tile)
        assert across % tile == 0 == down % tile and across >= columns


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """Of the kind that the hub's files have: bytes, in which two line breaks may be one token."""
    special = ["<end_of_utterance>", "<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>", *PLACES]
    made = byte_level(GPT2_SPLIT, special, [], TEMPLATE)
    assert len(made("\n\n")["input_ids"]) == 1
    return made


TILES = {**PREPROCESSING, "max_image_size": {"longest_edge": 28}, "size": {"longest_edge": 84}}
MESSAGES = {
    "an image": [picture(60, 40)],
    "one tile": [picture(60, 40)],
    "wide": [picture(300, 20)],
    "tall": [picture(20, 300)],
    "images": [picture(60, 40), picture(10, 90), picture(56, 56)],
    "one chunk": [[picture(60, 40), " and the pages of the book:", picture(9, 9)]],
}


def configuration(image):
    """Of tiles of 28 pixels and 4 tokens."""
    vision = {"image_size": 28, "patch_size": 7}
    sections = {"text_config": {"vocab_size": 600}, "vision_config": vision, "image_token_id": image}
    return ARCHITECTURES[0].config_from_hf({"model_type": "idefics3", **sections})


def prompt_ids(chat, items, question, settings):
    """The port's tokens of items that are one chunk each, or the parts of one, with 4 tokens a tile."""
    config = configuration(chat.token("<image>"))
    ids = list(chat.preamble)
    for chunk in items:
        parts = chunk if isinstance(chunk, list) else [chunk]
        images = iter([part for part in parts if not isinstance(part, str)])
        for number in chat.content([p if isinstance(p, str) else IMAGE for p in parts], config.placeholders):
            if number != config.image_token_id:
                ids.append(number)
                continue
            spans = IMAGES.spans(next(images), settings, config, chat, lambda *_: Features(np.ones((4, 1))))
            ids += [number for span in spans for number in span.ids]
    return [*ids, *chat.tail(question)]


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("question", ["what is it?", " which  colour\n\n is it", "\n2024"])
def test_prompts_are_the_tokens_of_hf_s_processor(tokenizer, name, question):
    tiles = {**TILES, "do_image_splitting": name != "one tile"}
    parts = [part for item in MESSAGES[name] for part in (item if isinstance(item, list) else [item])]
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    processor = processor_of(tokenizer, tiles, 4)
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [part for part in parts if not isinstance(part, str)]
    expected = processor(text=text, images=[images], return_tensors="np")["input_ids"][0].tolist()
    settings = ImageConfig.from_hf(tiles, patch_size=7)
    assert prompt_ids(ChatTemplate(tokenizer, [0]), MESSAGES[name], question, settings) == expected


def test_a_text_that_comes_first_has_no_space_before_it(tokenizer):
    """The template writes one unless an image comes first; a chunk's tokens are the same wherever it stands."""
    chat = ChatTemplate(tokenizer, [0])
    written = tokenizer.decode([*chat.preamble, *chat.encode("the page"), *chat.tail("what?")])
    assert written == "<|im_start|>User:the pagewhat?<end_of_utterance>\nAssistant:"
    assert chat.content(["the page", IMAGE], {"image": chat.token("<image>")}) == [
        *chat.encode("the page"),
        chat.token("<image>"),
    ]
    assert tokenizer.decode([*chat.closing, *chat.follow_up("what?")]) == (
        "<end_of_utterance>\nUser: what?<end_of_utterance>\nAssistant:"
    )


# Videos ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rate"), [(1, 1.0), (3, 2.0), (20, 0.3), (130, 1.7)])
def test_what_is_written_of_videos_is_hf_s(tokenizer, monkeypatch, count, rate):
    monkeypatch.setattr(processing_smolvlm, "num2words", in_words)
    times = np.arange(count) / rate
    item = kj.Video(np.zeros((count, 28, 28, 3), np.uint8), times.astype(np.float32))
    metadata = VideoMetadata(total_num_frames=count, fps=rate, frames_indices=list(range(count)))
    given = SimpleNamespace(image_seq_len=4, image_token="<image>", fake_image_token=FENCE, global_image_token=WHOLE)
    inputs = {"pixel_values": np.zeros((1, count)), "video_metadata": [metadata]}
    written = processing_smolvlm.SmolVLMProcessor.replace_video_token(given, inputs, 0)
    expected = tokenizer(written, add_special_tokens=False)["input_ids"]
    config = configuration(tokenizer.convert_tokens_to_ids("<image>"))
    settings = video_config_from_hf(TILES, patch_size=7)
    chat = ChatTemplate(tokenizer, [0])
    spans = VIDEOS.spans(item, settings, config, chat, lambda *_: Features(np.ones((4, 1))))
    assert [number for span in spans for number in span.ids] == expected


@pytest.mark.parametrize("size", [(40, 60), (60, 30), (28, 28), (7, 100)])
def test_pixels_of_frames_are_hf_s_to_a_level_a_resize(size):
    """torchvision rounds otherwise in each of the two resizes, and normalises in f32."""
    frames = np.random.default_rng(size[0]).integers(0, 256, (3, *size, 3), np.uint8)
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    processor = SmolVLMVideoProcessor(**sizes)
    expected = processor(videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="np")["pixel_values"][0]
    settings = video_config_from_hf(sizes, patch_size=7)
    for frame, pixels in zip(frames, expected, strict=True):
        ((tile,), *grid) = tiles_of(frame, settings)
        cut = cropped_patches(tile, settings)
        given = cut.patches.reshape(4, 4, 3, 7, 7).transpose(2, 0, 3, 1, 4).reshape(3, 28, 28)
        assert grid == [0, 0]
        assert np.abs(given - pixels).max() <= 2 / 127.5 + 1e-6
        assert np.abs(given - pixels).mean() <= 0.1 / 127.5


@pytest.mark.parametrize("frames", [1, 9, 100, 1000, 4001])
@pytest.mark.parametrize(("fps", "most"), [(1.0, 64), (2.0, 8), (0.5, 10)])
@pytest.mark.parametrize("rate", [1.0, 12.5, 29.97])
def test_frames_of_files_are_hf_s(frames, fps, most, rate):
    processor = SmolVLMVideoProcessor()
    metadata = VideoMetadata(total_num_frames=frames, fps=rate, duration=frames / rate)
    expected = processor.sample_frames(metadata, num_frames=most, fps=fps)
    np.testing.assert_array_equal(TrimmedSampling(fps, most=most).places(frames, rate), expected)


# Towers ---------------------------------------------------------------------------------------------------------------

TOWERS = {
    "2 x 2 merged": ({}, {}),
    "3 x 3 merged, pixels left over": ({"image_size": 14, "patch_size": 4, "hidden_act": "gelu"}, {"scale_factor": 3}),
    "no merging, grey": ({"num_channels": 1, "layer_norm_eps": 1e-3}, {"scale_factor": 1}),
    "one token": ({"image_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}, {"scale_factor": 4}),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_towers_equal_hf_through_files(tmp_path, name, architecture):
    variation, top = TOWERS[name]
    vision = {"initializer_range": 0.15, **variation}
    model = tiny_idefics3(len(name), smolvlm=architecture.name == "smolvlm", vision=vision, **top)
    folder = save_hub_folder(model, tmp_path / "hub")
    config = architecture.config_from_hf(json.loads((folder / "config.json").read_text()))
    table = architecture.weight_table(config)
    params = load_params(folder, architecture.declaration(config), table, jnp.float32)

    tower = config.vision
    shape = (3, tower.in_channels, tower.image_size, tower.image_size)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        features = model.model.get_image_features(torch.from_numpy(pixels)[None], return_dict=True).pooler_output
    expected = torch.cat(list(features)).numpy().reshape(3, tower.tokens, -1)
    side = tower.side * tower.patch_size
    cells = (3, tower.in_channels, tower.side, tower.patch_size, tower.side, tower.patch_size)
    patches = pixels[..., :side, :side].reshape(cells).transpose(0, 2, 4, 1, 3, 5).reshape(3, tower.side**2, -1)
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
    assert {*theirs} == {*ours} and any(re.search("post_layernorm", name) for name in ours)
    for tensor, given in ours.items():
        np.testing.assert_array_equal(given, theirs[tensor])
