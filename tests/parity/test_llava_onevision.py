"""LLaVA-OneVision against transformers: pixels, packing, tokens, frames, weights, and images with videos."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.video_utils import VideoMetadata

import kamera_jax as kj
from kamera_jax.forward import run
from models.hub.chat import IMAGE, Block, ChatTemplate
from models.hub.tensor_files import SINGLE
from models.hub.weights import load_params, save_params
from models.media.images import AspectRatioError, cropped_patches, padded_and_resized, resized, to_rgb
from models.media.sampling import UniformSampling
from models.ports.llava_onevision.images import PINPOINTS, ImageConfig, best_fit, tiles_of
from models.ports.llava_onevision.media import sampling_from_hf, video_config_from_hf
from models.ports.llava_onevision.packing import packed_frame, packed_square, packed_tiles
from models.ports.llava_onevision.port import ARCHITECTURE
from tests.models.hub.tokenizers_of_ports import QWEN_SPLIT, byte_level
from tests.parity.llava_onevision_pair import CONFIGS, Counting
from tests.parity.oracle import assert_close, assert_prefilled, token
from tests.parity.test_reuse import assert_blind_equals_hf, assert_items_equal_there, patched
from tests.parity.tiny_hf import save_hub_folder, tiny_llava_onevision
from tests.pictures import MODES, picture, width_first

pytestmark = pytest.mark.parity

QUESTION = "which colour is the cell on the page?"

# Pixels ---------------------------------------------------------------------------------------------------------------


def grid(side, *cells):
    return [[side * rows, side * columns] for rows, columns in cells]


def pairs(pinpoints):
    return tuple((height, width) for height, width in pinpoints)


CASES = {
    "pixels left over": {
        "size": {"height": 31, "width": 31},
        "image_grid_pinpoints": grid(31, (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 4)),
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "long": {
        "size": {"height": 28, "width": 28},
        "image_grid_pinpoints": grid(28, (4, 1), (1, 4), (2, 3)),
        "rescale_factor": 1 / 128,
    },
}
SIZES = [(28, 28), (1, 1), (1, 150), (97, 61), (300, 224), (5, 640), (641, 480), (200, 1), (62, 31), (112, 113)]


def assert_tiles_equal(tiles, pixels, config):
    """Difference 0, as far as patches go."""
    assert len(tiles) == len(pixels)
    for tile, expected in zip(tiles, pixels, strict=True):
        cut = cropped_patches(tile, config)
        side = config.tile // 7
        assert cut.grid == (1, side, side)
        given = cut.patches.reshape(side, side, 3, 7, 7).transpose(2, 0, 3, 1, 4).reshape(3, side * 7, side * 7)
        assert given.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(given, expected[:, : side * 7, : side * 7])


def processed(case, images):
    """What transformers makes of them, its processor, and the configuration that this is."""
    processor = LlavaOnevisionImageProcessorPil(**CASES[case])
    with width_first() as unlike:
        made = processor(images=images, return_tensors="np")
    if not unlike:
        assert np.array_equal(processor(images=images, return_tensors="np")["pixel_values"], made["pixel_values"])
    return made, ImageConfig.from_hf(json.loads(processor.to_json_string()), patch_size=7)


def assert_pixels_equal(case, image):
    made, config = processed(case, [image])
    tiles, rows, columns = tiles_of(to_rgb(image), config)
    assert [rows * config.tile, columns * config.tile] in CASES[case]["image_grid_pinpoints"]
    assert len(tiles) == rows * columns + 1
    assert_tiles_equal(tiles, made["pixel_values"][0], config)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_hf_to_the_bit(case, size):
    assert_pixels_equal(case, picture(*size))


@pytest.mark.parametrize("mode", ["L", "1", "RGBA"])
def test_other_modes_equal_hf_to_the_bit(mode):
    assert mode in MODES
    assert_pixels_equal("long", picture(97, 61, mode))


def test_pixels_of_several_images_of_a_list_in_a_list_equal_hf_to_the_bit():
    images = [picture(*size) for size in SIZES]
    made, config = processed("pixels left over", [images])
    for image, pixels in zip(images, made["pixel_values"], strict=True):
        assert_tiles_equal([padded_and_resized(image, config.tile, config.mean)], pixels, config)


def sizes(count):
    """Widths and heights, some of them long."""
    rng = np.random.default_rng(count)
    return [*np.exp(rng.uniform(0, 8.3, (count, 2))).astype(int).tolist(), [1, 4000], [4000, 1], [768, 768], [385, 384]]


@pytest.mark.parametrize("pinpoints", [PINPOINTS, CASES["long"]["image_grid_pinpoints"]], ids=["published", "long"])
def test_the_grid_is_hf_s(pinpoints):
    for width, height in sizes(300):
        assert best_fit(width, height, pairs(pinpoints)) == tuple(select_best_resolution((height, width), pinpoints))


# Packing --------------------------------------------------------------------------------------------------------------


def hf(pinpoints, image_size, patch_size):
    """What of transformers' model the packing reads."""
    vision = SimpleNamespace(image_size=image_size, patch_size=patch_size)
    return SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))


def taken(packing, features, newline):
    """The tokens, of the features of tiles [n, P, E], in float64."""
    table = np.concatenate([newline[None], features.reshape(-1, features.shape[-1])])
    tokens = int(packing.tokens)
    assert int(packing.tiles) == len(features)
    assert not packing.weights[tokens:].any() and len(packing.taps) % 512 == 0
    return np.einsum("rk,rke->re", packing.weights[:tokens].astype(np.float64), table[packing.taps[:tokens]])


PACKED = {
    **dict.fromkeys([(384, 384), (60, 800), (1, 700), (800, 1)], 0),
    **dict.fromkeys([(500, 400), (3000, 300)], 2),
    **dict.fromkeys([(1500, 1400), (2304, 2304), (640, 1999)], 9),
}
"""Widths and heights, and up to how many tiles each is shrunk to."""


@pytest.mark.parametrize("size", PACKED)
@pytest.mark.parametrize("most", [9, 2])
def test_packing_is_hf_s_to_the_bit_and_where_it_shrinks_to_rounding(size, most):
    width, height = size
    rows, columns = (side // 384 for side in best_fit(width, height, pairs(PINPOINTS)))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows * columns + 1, 729, 3)).astype(np.float32)
    newline = rng.normal(size=3).astype(np.float32)
    (expected,), _ = LlavaOnevisionModel.pack_image_features(
        hf(PINPOINTS, 384, 14),
        [torch.from_numpy(features)],
        [[height, width]],
        torch.from_numpy(newline),
        f"anyres_max_{most}",
    )
    packing = packed_tiles(width, height, rows, columns, 27, most)
    given = taken(packing, features, newline)
    assert given.shape == tuple(expected.shape)
    shrunk = not np.isin(packing.weights, (0, 1)).all()
    assert shrunk == (most <= PACKED[size])
    assert np.abs(given - expected.numpy()).max() <= (1e-6 if shrunk else 0)


def test_one_tile_and_frames_are_packed_as_hf_packs_them():
    rng = np.random.default_rng(1)
    for side in (1, 2, 3, 27):
        features = rng.normal(size=(1, side**2, 3)).astype(np.float32)
        newline = rng.normal(size=3).astype(np.float32)
        of = hf(PINPOINTS, side * 14 + 6, 14)
        (expected,), _ = LlavaOnevisionModel.pack_image_features(
            of, [torch.from_numpy(features)], [[9, 9]], torch.from_numpy(newline)
        )
        np.testing.assert_array_equal(taken(packed_square(side), features, newline), expected.numpy())
        halved = LlavaOnevisionModel.apply_pooling(of, torch.from_numpy(features))[0].numpy()
        given = taken(packed_frame(side, last=False), features, newline)
        assert given.shape == halved.shape and np.abs(given - halved).max() <= 1e-6
        np.testing.assert_array_equal(taken(packed_frame(side, last=True), features, newline), [*given, newline])


def test_numbers_of_tokens_are_those_of_hf_s_processor():
    images = SimpleNamespace(image_grid_pinpoints=PINPOINTS)
    counting = Counting(images, 729, "anyres_max_9")
    for width, height in sizes(40):
        rows, columns = (side // 384 for side in best_fit(width, height, pairs(PINPOINTS)))
        packing = packed_tiles(width, height, rows, columns, 27, 9)
        assert packing.tokens == counting._get_number_of_features(height, width, 384, 384), (width, height)


def test_what_would_be_shrunk_to_nothing_is_refused():
    """transformers fails at it too."""
    with pytest.raises(AspectRatioError, match="90 x 1 features would be shrunk to .* x 0; cut it up"):
        packed_tiles(4000, 2, 1, 30, 3, 1)


# Tokens ---------------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As the hub has it: images and videos first, and a line break before each text."""

VIDEO = Block("video")
PROMPTS = {
    "an image": [[IMAGE]],
    "a video": [[VIDEO]],
    "an image, then a text": [[IMAGE], ["the page"]],
    "parts": [["the page", IMAGE, VIDEO, "and a page"]],
}
OTHERWISE = {
    "images": ([[IMAGE], [IMAGE]], "<image><image>\n", "<image>\n<image>\n"),
    "a text first": ([["the page"], ["a page"]], "user \nthe page\na page\n", "user the page\na page\n"),
}
"""Chunks, what the template writes of them in one message, and what stands there."""


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(QWEN_SPLIT, ["<|im_end|>", "<|im_start|>", "<image>", "<video>"], [], TEMPLATE)


def prompt_ids(tokenizer, chunks, question):
    """The port's tokens, and the template's text."""
    chat = ChatTemplate(tokenizer, [0], kinds=("image", "video"))
    placeholders = {"image": chat.token("<image>"), "video": chat.token("<video>")}
    given = list(chat.preamble)
    for parts in chunks:
        given += (
            chat.encode(parts[0]) if isinstance(parts[0], str) and not parts[1:] else chat.content(parts, placeholders)
        )
    parts = [part for parts in chunks for part in parts] + [question]
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in parts]
    messages = [{"role": "user", "content": content}]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return [*given, *chat.tail(question)], whole


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_the_tokens_of_the_published_template(tokenizer, name):
    for question in ("what is it?", "which  colour\n\n is it", "2024"):
        given, whole = prompt_ids(tokenizer, PROMPTS[name], question)
        assert given == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_line_break_stands_behind_each_chunk_and_none_before_the_first(tokenizer, name):
    chunks, theirs, ours = OTHERWISE[name]
    given, whole = prompt_ids(tokenizer, chunks, "what is it?")
    assert theirs in whole and tokenizer.decode(given) == whole.replace(theirs, ours)


# Videos ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 12.5, 29.97])
def test_frames_of_files_are_hf_s(rate):
    processor = LlavaOnevisionVideoProcessor()
    for total in (1, 9, 97, 1000, 4001, 108_000):
        metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
        for fps in (0.25, 1.0, 2.0):
            if int(total / rate * fps) <= total:
                expected = processor.sample_frames(metadata, fps=fps)
                np.testing.assert_array_equal(UniformSampling(fps, most=10**9).places(total, rate), expected)
        for frames in (1, 8, 769):
            if frames <= total:
                expected = processor.sample_frames(metadata, num_frames=frames)
                np.testing.assert_array_equal(UniformSampling(frames=frames).places(total, rate), expected)
    assert UniformSampling(frames=8).count(5, rate) == 5


@pytest.mark.parametrize("size", [(40, 60), (28, 28), (7, 100)])
def test_pixels_of_frames_are_hf_s_to_a_level(size):
    """torchvision rounds otherwise where it resizes, and normalises in f32."""
    frames = np.random.default_rng(size[0]).integers(0, 256, (2, *size, 3), np.uint8)
    processor = LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}, num_frames=4)
    expected = processor(videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="np")
    own = json.loads(processor.to_json_string())
    settings = video_config_from_hf(own, SimpleNamespace(image_size=28, patch_size=7))
    assert sampling_from_hf(own).frames == 4
    for frame, pixels in zip(frames, expected["pixel_values_videos"][0], strict=True):
        cut = cropped_patches(resized(Image.fromarray(frame), 28, 28), settings)
        given = cut.patches.reshape(4, 4, 3, 7, 7).transpose(2, 0, 3, 1, 4).reshape(3, 28, 28)
        level = 1 / 255 / np.asarray(settings.std)[:, None, None]
        assert (np.abs(given - pixels) <= (1e-5 if size == (28, 28) else 1.001 * level)).all()


def video(count, size, seed=0):
    shown = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)
    return kj.Video.at_rate(shown, 2.0)


def items(pair):
    """An image before two videos of as many frames, one of which stands within a chunk of several parts."""
    parts = ["the first page.", video(2, (9, 14)), "two pages.", pair.image("odd")]
    return [pair.image("wide"), parts, video(2, (5, 5), seed=1)]


ports = pytest.mark.parametrize("pair", CONFIGS, indirect=True)
some = pytest.mark.parametrize("pair", list(CONFIGS)[1:2], indirect=True)


@ports
def test_images_and_videos_in_one_prompt_equal_hf(pair):
    prompt = pair.prompt(items(pair), QUESTION)
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    frame = math.ceil(pair.side / 2) ** 2
    assert (prompt.ids == token("video_pad")).sum() == 2 * (2 * frame + 1)
    segment = prompt.joined(size=128)
    length = len(prompt.ids)
    output = run(pair.vlm.params, segment, None, jnp.arange(128), forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)


@some
def test_a_chunk_with_a_video_rotated_equals_hf_there(pair):
    assert_items_equal_there(pair, items(pair)[1:2], 37)


@some
def test_blind_and_patched_reuse_with_videos_equal_hf(pair):
    prompt = pair.prompt(items(pair), QUESTION)
    assert_blind_equals_hf(pair, prompt, "pinned")
    assert_prefilled(patched(pair.vlm, prompt.items, "antecedents"), prompt)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["as of 4", "as of 5", "SigLIP within itself"])
def test_weights_through_files(tmp_path, spelling):
    """Of a tower with a pooling head, and a block more than run."""
    vision = {"vision_use_head": True, "image_size": 8, "num_hidden_layers": 3}
    model = tiny_llava_onevision(3, vision=vision, vision_feature_layer=2, image_grid_pinpoints=[[8, 8]])
    folder = save_hub_folder(model, tmp_path / "hub")
    theirs = load_file(folder / SINGLE)
    config = ARCHITECTURE.config_from_hf(json.loads((folder / "config.json").read_text()))
    assert (config.vision.depth, config.vision.stored_depth) == (2, 3)
    table = ARCHITECTURE.weight_table(config)
    params = load_params(folder, ARCHITECTURE.declaration(config), table, jnp.float32)
    save_params(tmp_path / "ours", params, table, jnp.float32)
    ours = load_file(tmp_path / "ours" / SINGLE)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    unused = {*theirs} - {*ours}
    assert "image_newline" in ours and any("head.probe" in name for name in unused)
    assert all("post_layernorm" in name or ".head." in name or "layers.2." in name for name in unused)
    if spelling == "as of 4":
        return
    renamed = {}
    for name, tensor in theirs.items():
        if spelling == "as of 5":
            name = name.replace("language_model.model.", "language_model.")
            name = "lm_head.weight" if "lm_head" in name else f"model.{name}"
        renamed[name.replace("vision_tower.", "vision_tower.vision_model.") if "within" in spelling else name] = tensor
    save_file(renamed, folder / SINGLE)
    again = load_params(folder, ARCHITECTURE.declaration(config), table, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, again, params)
