"""What `prepare` makes of an item: one part, or a list of texts and images as one chunk."""

import json
import re
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from kamera_jax.forward import run
from models import load
from models.architecture import Architecture, Config
from models.hub.chat import ChatTemplate
from models.hub.text_weights import text_rows
from models.hub.weights import WeightTable, save_params
from models.media.pictures import ImageFormatError
from models.media.spans import Features, Span
from models.media.still import ImageMedium
from models.vlm import ItemError, VisionLanguageModel
from tests.models import tiny_llava, tiny_ports
from tests.models.tiny_ports import random_params

PAD = VOCABULARY.index("<|image_pad|>")
RED = "a red star."
BLUE = "a blue moon."


@pytest.fixture(scope="module", params=[*BACKBONES, "llava"])
def folder(request, tmp_path_factory):
    """A tiny model of every port with random weights."""
    path = tmp_path_factory.mktemp("hub") / request.param
    if request.param == "llava":
        return tiny_llava.write(path, np.float32)
    return tiny_ports.write(path, request.param)


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


def image(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (28 * rows, 28 * columns, 3), np.uint8)


FIRST = image(2, 3)
SECOND = image(1, 4, seed=1)
CHUNKS = {
    "two images": [FIRST, SECOND],
    "eight images": [image(1 + i % 2, 2 + i % 3, seed=i) for i in range(8)],
    "interleaved": [RED, FIRST, BLUE, SECOND],
    "captions": [FIRST, RED, SECOND, BLUE],
    "the same twice": [FIRST, RED, FIRST],
    "texts": [RED, BLUE],
}


def tokens(segment):
    return np.asarray(segment.inputs["tokens"])[: int(segment.length)].tolist()


def in_template(vlm, folder, items):
    """The template's tokens of the whole message, each image's placeholder as often as it has tokens alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "text", "text": item} if isinstance(item, str) else {"type": "image"} for item in items]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    counts = iter([tokens(vlm.prepare(item)).count(PAD) for item in items if not isinstance(item, str)])
    return [copy for each in ids for copy in [each] * (next(counts) if each == PAD else 1)]


@pytest.mark.parametrize("name", CHUNKS)
def test_a_list_has_the_tokens_of_the_template_s_message(vlm, folder, name):
    segment = vlm.prepare(CHUNKS[name])
    given = [*tokens(vlm.preamble), *tokens(segment), *tokens(vlm.tail("what?"))]
    assert given == in_template(vlm, folder, CHUNKS[name])
    assert vlm.prepare(tuple(CHUNKS[name])).content == segment.content
    if name == "texts":
        assert segment.inputs.keys() == {"tokens"}
        return
    is_media = np.asarray(segment.inputs["is_media"])
    np.testing.assert_array_equal(is_media, np.asarray(segment.inputs["tokens"]) == PAD)
    alone = [vlm.prepare(item) for item in CHUNKS[name] if not isinstance(item, str)]
    features = [np.asarray(each.inputs["media"])[np.asarray(each.inputs["is_media"])] for each in alone]
    np.testing.assert_array_equal(np.asarray(segment.inputs["media"])[is_media], np.concatenate(features))
    assert not np.asarray(segment.inputs["media"])[~is_media].any()


@pytest.mark.parametrize("name", CHUNKS)
def test_positions_are_those_of_the_parts_in_a_row(vlm, name):
    """In a template that writes each part where it stands, a chunk of parts counts on as chunks of each would."""
    segment = vlm.prepare(CHUNKS[name])
    parts = [vlm.prepare(item) for item in CHUNKS[name]]
    base = 0.0
    rows = []
    for part in parts:
        rows.append(base + np.asarray(part.positions)[:, : int(part.length)])
        base += part.advance
    np.testing.assert_array_equal(np.asarray(segment.positions)[:, : int(segment.length)], np.concatenate(rows, axis=1))
    assert segment.advance == base


@pytest.mark.parametrize("item", [FIRST, RED], ids=["image", "text"])
def test_a_list_of_one_is_that_item(vlm, item):
    alone = kj.encode(vlm, item)
    for one in ([item], (item,)):
        chunk = kj.encode(vlm, one)
        assert chunk.key == alone.key and chunk.content == alone.content
        np.testing.assert_array_equal(chunk.kv.rot, alone.kv.rot)


def test_a_content_names_every_part_and_their_order(vlm):
    other = FIRST.copy()
    other[0, 0, 0] ^= 1
    lists = [
        [FIRST, RED, SECOND],
        [SECOND, RED, FIRST],
        [RED, FIRST, SECOND],
        [FIRST, BLUE, SECOND],
        [other, RED, SECOND],
        [FIRST, RED],
        [FIRST, SECOND],
        [FIRST, RED, SECOND, SECOND],
        [FIRST, f"{RED} {RED}", SECOND],
        FIRST,
        RED,
    ]
    contents = [vlm.prepare(each).content for each in lists]
    assert len(set(contents)) == len(lists)
    assert [vlm.prepare(each).content for each in lists] == contents


def test_texts_that_join_to_the_same_characters_are_told_apart(vlm):
    assert len({vlm.prepare([FIRST, *texts]).content for texts in (["a red", "star."], ["a", "red star."])}) == 2


def test_parts_are_whatever_an_item_may_be(vlm, tmp_path):
    Image.fromarray(FIRST).save(tmp_path / "first.png")
    (tmp_path / "caption.txt").write_text(RED)
    files = vlm.prepare([tmp_path / "first.png", tmp_path / "caption.txt", Image.fromarray(SECOND)])
    assert files.content == vlm.prepare([FIRST, RED, SECOND]).content


def test_a_chunk_of_parts_is_prefilled_and_reused_as_any(vlm):
    items = [[FIRST, RED, SECOND], BLUE]
    reference = kj.prefill(vlm, items, capacity=256)
    first, second = (kj.encode(vlm, item) for item in items)
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=1000)
    window = kj.append(kj.append(kj.Window.empty(vlm, 256), first), second, patch)
    valid = np.asarray(reference.state.valid)
    np.testing.assert_array_equal(valid, window.state.valid)
    for name in ("rot", "free"):
        ours, theirs = (np.asarray(getattr(each.state, name))[:, valid] for each in (window, reference))
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


BAD = {
    "empty": ([], ItemError, "list of a chunk's parts is empty; expected text"),
    "nested": ([FIRST, [RED]], ItemError, "part 2 of 2: a list stands among the parts of a chunk; expected text"),
    "nested alone": ([[FIRST]], ItemError, "a list stands among the parts"),
    "a tuple in a list": ([RED, (FIRST, RED)], ItemError, "part 2 of 2: a tuple stands among"),
    "empty text": ([FIRST, "", SECOND], ItemError, "part 2 of 3: the text is empty"),
    "no token": ([FIRST, " "], ItemError, "part 2 of 2: the text is empty"),
    "bytes": ([FIRST, b"bytes"], ItemError, "part 2 of 2: the item is of type bytes; this model reads text .*, images"),
    "None": ([None, RED], ItemError, "part 1 of 2: the item is of type NoneType"),
    "wrong array": ([RED, np.zeros((4, 4), np.uint8)], ImageFormatError, r"part 2 of 2: the image is uint8\[4, 4\]"),
    "generator": ((each for each in [FIRST]), ItemError, "the item is of type generator; this model reads"),
    "chunk": (object(), ItemError, "the item is of type object; this model reads text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_item_is_refused(vlm, name):
    item, error, message = BAD[name]
    with pytest.raises(error, match=message) as raised:
        vlm.prepare(item)
    assert isinstance(raised.value, ValueError)


def test_an_image_that_cannot_be_cut_up_is_named(vlm):
    items = [FIRST, np.zeros((9000, 2, 3), np.uint8)]
    if vlm.architecture.name == "deepseek_vl":  # it shrinks and pads any image
        vlm.prepare(items)
        return
    with pytest.raises(ValueError, match="part 2 of 2: the image is 2 x 9000 pixels") as raised:
        vlm.prepare(items)
    assert type(raised.value).__name__ in ("AspectRatioError", "PatchLimitError")


# Media of a port's own


@dataclass(frozen=True)
class Stamped(ImageMedium):
    """Frames with text before each, and features for the residual stream: as Qwen3-VL has them."""

    kind: str = "video"

    def reads(self, item):
        return isinstance(item, kj.Video)

    def normal(self, item):
        return item

    def digested(self, item, settings):
        return "stamped", str(item.frames.shape), item.frames.tobytes() + item.times.tobytes()

    def spans(self, item, settings, config, chat, encode):
        spans = []
        for frame, time in zip(item.frames, item.times, strict=True):
            spans.append(Span(chat.ids(f"{'first' if time == 0 else 'last'}<|vision_start|>")))
            still = super().spans(Image.fromarray(frame), settings, config, chat, encode)
            spans += [*still, Span(chat.ids("<|vision_end|>"))]
        return spans

    def encode(self, params, tower, inputs, plan):
        rows = super().encode(params, tower, inputs, plan).rows
        return Features(rows, jnp.stack([2 * rows, 3 * rows], axis=1))


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    """DeepSeek-VL that reads such frames too, through the tower of its images."""
    folder = tiny_ports.write(tmp_path_factory.mktemp("hub") / "mha", "mha")
    port = BACKBONES["mha"].architecture
    (images,) = port.media
    videos = Stamped(
        *(getattr(images, name) for name in ("settings_from_hf", "preprocess", "declared", "plan", "embed"))
    )

    def config_from_hf(mapping):
        return replace(port.config_from_hf(mapping), placeholders={"video": VOCABULARY.index("<|video_pad|>")})

    both = Architecture(port.name, config_from_hf, port.weight_table, (images, videos))
    return VisionLanguageModel.load(both, folder), load(folder)


def test_two_kinds_of_media_stand_in_one_chunk(stamped):
    """With text within a block, and features that only one of them has."""
    vlm, plain = stamped
    frames = np.stack([FIRST, image(2, 3, seed=7)])
    segment = vlm.prepare([FIRST, RED, kj.Video(frames, [0, 1]), BLUE])
    image_ids = tokens(plain.prepare(FIRST))
    start, end = (VOCABULARY.index(f"<|vision_{name}|>") for name in ("start", "end"))
    video = [VOCABULARY.index("<|video_pad|>")] * image_ids.count(PAD)
    stamps = [VOCABULARY.index(word) for word in ("first", "last")]
    inner = [number for stamp in stamps for number in (stamp, start, *video, end)]
    text = [tokens(plain.prepare(each)) for each in (RED, BLUE)]
    assert tokens(segment) == [*image_ids, *text[0], start, *inner, end, *text[1]]

    is_media = np.asarray(segment.inputs["is_media"])
    media = np.asarray(segment.inputs["media"])
    deep = np.asarray(segment.inputs["deep"])
    alone = [plain.prepare(each) for each in (FIRST, *frames)]
    features = [np.asarray(each.inputs["media"])[np.asarray(each.inputs["is_media"])] for each in alone]
    np.testing.assert_allclose(media[is_media], np.concatenate(features), atol=1e-6)
    shown = np.asarray(segment.inputs["tokens"]) == video[0]
    np.testing.assert_array_equal(deep[shown], np.stack([2 * media[shown], 3 * media[shown]], axis=1))
    assert not deep[~shown].any() and is_media.sum() == 3 * len(video)
    assert segment.advance == int(segment.length)


def test_the_order_of_two_kinds_is_the_message_s(stamped):
    vlm, _ = stamped
    clip = kj.Video(FIRST[None], [0])
    assert vlm.prepare([clip, SECOND]).content != vlm.prepare([SECOND, clip]).content
    first, second = (tokens(vlm.prepare(each)) for each in ([clip, SECOND], [SECOND, clip]))
    pads = [VOCABULARY.index("<|video_pad|>"), PAD]
    assert [number for number in dict.fromkeys(first) if number in pads] == pads
    assert [number for number in dict.fromkeys(second) if number in pads] == pads[::-1]


# A model without media


def text_config(mapping):
    return Config(BACKBONES["mha"].config.text)


def text_table(config):
    return WeightTable(rows=tuple(text_rows(config.text)), copies=(("lm_head.weight", "model.embed_tokens.weight"),))


TEXT_ONLY = Architecture("text_only", text_config, text_table)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A port without any medium; its folder holds no preprocessing."""
    folder = tmp_path_factory.mktemp("hub") / "text"
    config = text_config({})
    params = random_params(TEXT_ONLY.declaration(config))
    assert params.keys() == {"text"}
    folder.mkdir()
    build_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "text_only", "dtype": "float32"}))
    save_params(folder, params, text_table(config), np.float32)
    return VisionLanguageModel.load(TEXT_ONLY, folder)


def test_a_model_without_media_reads_text(language_model):
    chunks = [kj.encode(language_model, text) for text in (RED, BLUE)]
    window = kj.Window.empty(language_model, 128)
    for chunk in chunks:
        assert chunk.source.inputs.keys() == {"tokens"}
        window = kj.append(window, chunk)
    assert np.isfinite(kj.query(language_model, window, "which star?")).all()
    assert language_model.prepare([RED, BLUE]).content != language_model.prepare(RED).content
    output = run(language_model.params, language_model.prepare(RED), None, forward=language_model.forward)
    assert output.kv.rot.shape[0] == language_model.spec.layers


@pytest.mark.parametrize("item", [FIRST, [RED, FIRST], Image.fromarray(FIRST)], ids=["array", "list", "PIL"])
def test_a_model_without_media_refuses_an_image(language_model, item):
    with pytest.raises(
        ItemError, match=re.escape("the item is an image; this model reads text alone (str, or a .txt or .md file)")
    ):
        language_model.prepare(item)


def test_a_model_without_media_takes_a_template_of_strings(tmp_path):
    """As language models' templates are: they write a list of content parts as Python would print it."""
    build_tokenizer(tmp_path)
    template = (
        "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    chat = ChatTemplate.load(tmp_path, kinds=())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": f"{RED} {BLUE}"}]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert [*chat.preamble, *chat.encode(RED), *chat.tail(BLUE)] == whole
