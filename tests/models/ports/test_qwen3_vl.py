"""Qwen3-VL on tiny folders: DeepStack through chunks, patches, libraries and sessions, and the form of its prompts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

import kamera_jax as kj
from kamera_jax.forward import run
from models import load
from models.blocks import decoder
from models.vlm import VisionLanguageModel
from tests.models import tiny_qwen3_vl
from tests.models.tiny_qwen3_vl import CELL, CONFIG

CAPACITY = 128
LEVELS = 2

TEMPLATE = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for content in messages[0].content %}
            {%- if 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif content.type == 'video' or 'video' in content %}
                    {%- set video_count.value = video_count.value + 1 %}
                    {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}
                    <|vision_start|><|video_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content_item in message.content %}
                {%- if 'text' in content_item %}
                    {{- content_item.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""As published: no system text unless one is given."""


@pytest.fixture(scope="module", params=["dense", "experts"])
def vlm(request, tmp_path_factory):
    return load(tiny_qwen3_vl.write(tmp_path_factory.mktemp("hub"), experts=request.param == "experts"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return load(tiny_qwen3_vl.write(tmp_path_factory.mktemp("hub")))


def image(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows * CELL, columns * CELL, 3), np.uint8)


def assert_same_kv(ours, theirs, bound=1e-5):
    valid = np.asarray(theirs.state.valid)
    for name in ("rot", "free"):
        given, expected = (np.asarray(getattr(each.state, name))[:, valid] for each in (ours, theirs))
        error = np.abs(given - expected).max((1, 2)) / np.abs(expected).max((1, 2))
        assert (error <= bound).all(), error


def test_features_are_added_behind_the_first_layers(dense):
    """A layer's output is what it is without them, and its level on top; layers past the last level add nothing."""
    text = dense.config.text
    rng = np.random.default_rng(1)
    embeds, level = (jnp.asarray(rng.normal(size=(5, text.hidden_size)), jnp.float32) for _ in range(2))
    positions = jnp.broadcast_to(jnp.arange(5.0), (3, 5))

    def streams(deep):
        def attend(q, parts, layer=None):
            return q.reshape(q.shape[0], -1), ()

        params = dense.params["text"]
        return decoder.decoder(params, text, embeds, positions, attend, observe=lambda x: x, deep=deep).observed

    plain = streams(None)
    one = streams(level[:, None])
    np.testing.assert_allclose(one[0], plain[0] + level, rtol=1e-6)
    padded = [jnp.stack([level, *[jnp.zeros_like(level)] * more], axis=1) for more in (1, 3, 6)]
    for deep in padded:
        np.testing.assert_array_equal(streams(deep), one)
    second = streams(jnp.stack([jnp.zeros_like(level), level], axis=1))
    np.testing.assert_array_equal(second[0], plain[0])
    np.testing.assert_allclose(second[1], plain[1] + level, rtol=1e-6)


def test_a_chunk_brings_its_features(vlm):
    segment = vlm.prepare(["a red star.", image(2, 3), "the page."])
    deep, at = (np.asarray(segment.inputs[name]) for name in ("deep", "is_media"))
    assert deep.shape == (len(at), LEVELS, 64) and at.sum() == 6
    assert (np.abs(deep[at]).max(-1) > 1e-3).all() and not deep[~at].any()
    assert "deep" not in vlm.prepare("a red star.").inputs
    chunk = kj.encode(vlm, image(2, 3))
    np.testing.assert_array_equal(chunk.source.inputs["deep"], vlm.prepare(image(2, 3)).inputs["deep"])


def test_a_full_patch_gives_back_the_prefill(vlm):
    """Canonical, rotated and patched is prefilled, read in place too; and not so if the features are left out."""
    items = [["a red star.", image(2, 3)], image(3, 1, seed=1), "the last page."]
    reference = kj.prefill(vlm, items, capacity=CAPACITY)
    asked = kj.query(vlm, reference, "which colour?")
    chunks = [kj.encode(vlm, item) for item in items]
    patches = [None] + [kj.form_patch(vlm, chunks[i], antecedents=chunks[:i], rank=1000) for i in (1, 2)]
    for mode in ("materialise", "in_place") if vlm.config.text.experts is None else ("materialise",):
        window = kj.Window.empty(vlm, CAPACITY, mode=mode)
        for chunk, patch in zip(chunks, patches, strict=True):
            window = kj.append(window, chunk, patch)
        if mode == "materialise":
            assert_same_kv(window, reference)
        answer = np.asarray(kj.query(vlm, window, "which colour?"))
        assert np.abs(answer - asked).max() <= 1e-4 * np.abs(asked).max()

    source = chunks[1].source
    plain = replace(source, inputs={name: rows for name, rows in source.inputs.items() if name != "deep"})
    without, whole = (run(vlm.params, each, None, forward=vlm.forward).kv.free for each in (plain, source))
    change = np.abs(np.asarray(without) - np.asarray(whole)).max((1, 2))
    assert change[0] == 0 and (change[1:] > 1e-2).all()  # behind layer 0, so that its own KV does not see them


def test_a_library_keeps_what_a_patch_is_formed_from(vlm, tmp_path):
    """Of chunks that were put and got back, the same patches, to the bit."""
    before, behind = (kj.encode(vlm, item) for item in ([image(2, 3), "a red star."], image(3, 1, seed=1)))
    patch = kj.form_patch(vlm, behind, antecedents=[before], rank=8)
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as library:
        library.put_many([before, behind])
    with kj.ChunkLibrary.open(tmp_path / "lib") as library:
        first, second = (library.get(each.key) for each in (before, behind))
    np.testing.assert_array_equal(second.source.inputs["deep"], behind.source.inputs["deep"])
    again = kj.form_patch(vlm, second, antecedents=[first], rank=8)
    assert again.key == patch.key
    jax.tree.map(np.testing.assert_array_equal, again.factors, patch.factors)


def test_tokens_are_recomputed_with_their_features(vlm):
    """Every other token, at its slot on a window that holds the rest, is what one forward of the whole gives it."""
    segment = vlm.prepare(["a red star.", image(2, 3)])
    length = int(segment.length)
    whole = run(vlm.params, segment, None, forward=vlm.forward)
    spec = vlm.spec
    state = kj.window.reuse.write(spec.empty_state(32), 0, whole.kv, None, segment.positions, length, spec.rope)
    slots = jnp.arange(1, length, 2)
    inputs = {name: rows[slots] for name, rows in segment.inputs.items()} | {"slots": slots}
    some = kj.Segment(inputs, segment.positions[:, slots], jnp.int32(len(slots)))
    hidden = state.replace(valid=state.valid.at[slots].set(False))
    ours = run(vlm.params, some, hidden, forward=vlm.forward)
    np.testing.assert_allclose(ours.kv.free, whole.kv.free[:, slots], atol=2e-5)


def test_a_session_and_a_generated_turn(vlm):
    session = kj.Session(vlm, capacity=CAPACITY)
    key = session.add(image(2, 3))
    session.add(image(3, 1, seed=1))
    first = session.ask("which colour?", max_new_tokens=3)
    session.recall(key, at=None)
    assert len(first.tokens) <= 3
    window = kj.prefill(vlm, [image(2, 3)], capacity=CAPACITY)
    answer = kj.generate(vlm, window, "which colour?", max_new_tokens=4)
    follow = kj.generate(vlm, answer.window, "and the page?", max_new_tokens=2)
    assert len(answer.tokens) <= 4 and len(follow.window.entries) == 3


def test_preprocessed_in_a_worker_is_the_same_chunk(vlm):
    item = ["a red star.", image(2, 3)]
    done = vlm.prepare(vlm.preprocess(item))
    direct = vlm.prepare(item)
    assert done.content == direct.content
    jax.tree.map(np.testing.assert_array_equal, done.inputs, direct.inputs)


@pytest.mark.parametrize("system", [None, "you read pages"])
def test_prompts_are_the_published_template_s(tmp_path, system):
    """Without a system text there is none; one that is given stands first."""
    folder = tiny_qwen3_vl.write(tmp_path)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    vlm = load(folder, system=system)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "the page."}, {"type": "text", "text": "which colour?"}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    segments = [vlm.preamble, vlm.prepare([image(1, 1), "the page."]), vlm.tail("which colour?")]
    given = np.concatenate([np.asarray(each.inputs["tokens"])[: int(each.length)] for each in segments])
    np.testing.assert_array_equal(given, expected)
    assert ("system" in vlm.decode(vlm.preamble.inputs["tokens"].tolist())) == (system is not None)


def test_both_forms_of_a_video_s_prompt(dense, tmp_path):
    """As published the template's start and end make room for the temporal patches; transformers 5 keeps them."""
    folder = tiny_qwen3_vl.write(tmp_path)
    images, videos = dense.architecture.media
    port = replace(dense.architecture, media=(images, replace(videos, framed=True)))
    framed = VisionLanguageModel.load(port, folder)
    shown = kj.Video(np.stack([image(1, 2, seed=seed) for seed in range(3)]), [0.0, 0.5, 1.0])
    start, end, pad = (CONFIG[f"{name}_token_id"] for name in ("vision_start", "vision_end", "video"))
    segments = [vlm.prepare(shown) for vlm in (dense, framed)]
    ids = [np.asarray(each.inputs["tokens"])[: int(each.length)].tolist() for each in segments]
    assert ids[1] == [start, *ids[0], end]
    stamps = [dense.preprocess._chat.ids(f"<{time} seconds>") for time in ("0.2", "1.0")]
    assert ids[0] == [*stamps[0], start, pad, pad, end, *stamps[1], start, pad, pad, end]
    # Among other parts: only what stands around the video goes.
    mixed = [image(1, 1), shown, image(1, 1)]
    several = np.asarray(dense.prepare(mixed).inputs["tokens"]).tolist()
    picture = [start, CONFIG["image_token_id"], end]
    assert several[: len(ids[0]) + 6] == [*picture, *ids[0], *picture]
