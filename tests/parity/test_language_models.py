"""Text-only language models, rungs 2 to 6, against transformers: prefill, moved, blind and patched reuse, sessions."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import kamera_jax as kj
from kamera_jax.forward import run
from tests.parity.oracle import assert_close, assert_prefilled, frobenius, window_kv
from tests.parity.test_reuse import assert_blind_equals_hf, assert_items_equal_there, patched
from tests.parity.text_pairs import CONFIGS, FAR, TextPair

pytestmark = pytest.mark.parity

CAPACITY = 128
QUESTION = "which colour is the cell on the page?"
FIRST = "the first is the last."
SECOND = "two pages show the same glyph."
THIRD = "look, this picture is not the one that you have!"
PROMPTS = {"one": [FIRST], "two": [FIRST, SECOND], "a list": [THIRD, (SECOND, FIRST)], "three": [SECOND, THIRD, FIRST]}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A random model in both libraries."""
    return TextPair(CONFIGS[request.param], tmp_path_factory.mktemp("hub"), seed=len(request.param))


@pytest.fixture(scope="module", params=FAR)
def far_pair(request, tmp_path_factory):
    """One whose angles are exact far from 0."""
    return TextPair(FAR[request.param], tmp_path_factory.mktemp("hub"), seed=7)


@pytest.fixture(params=PROMPTS)
def prompt(pair, request):
    return pair.prompt(pair.items(PROMPTS[request.param]), QUESTION)


def test_the_whole_prompt_equals_hf(pair, prompt):
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    segment = prompt.joined()
    at = jnp.arange(segment.positions.shape[1])
    output = run(pair.vlm.params, segment, None, at, forward=pair.vlm.forward)
    length = len(prompt.ids)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)


def test_prefill_and_query_equal_hf(pair, prompt):
    window = kj.prefill(pair.vlm, prompt.items, capacity=CAPACITY)
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])


@pytest.mark.parametrize("item", [FIRST, [SECOND, THIRD]], ids=["text", "list"])
def test_a_chunk_encoded_alone_and_rotated_equals_hf_there(pair, item):
    assert_items_equal_there(pair, [item], 37)


@pytest.mark.parametrize("base", [1000, 100_000])
def test_a_chunk_rotated_far_equals_hf_there(far_pair, base):
    assert_items_equal_there(far_pair, [SECOND], base)


def test_keys_without_rope_do_not_move(pair):
    """What a window holds of them is the same bits wherever the chunk stands; of rotated keys it is not."""
    vlm = pair.vlm
    chunks = [kj.encode(vlm, text) for text in (SECOND, FIRST)]
    window = kj.append(kj.append(kj.Window.empty(vlm, CAPACITY), chunks[0]), chunks[1])
    moved = kj.reorder(window, [1, 0])
    length = chunks[0].length
    rotary = getattr(pair.hf.config, "no_rope_layers", None) or [1] * vlm.spec.layers
    here, there = (np.asarray(w.state.rot)[:, w.entries[i].slot :][:, :length] for i, w in enumerate((window, moved)))
    same = [np.array_equal(*layers) for layers in zip(here, there, strict=True)]
    assert same == [not each for each in rotary]


@pytest.mark.parametrize("preamble", ["pinned", None])
def test_blind_reuse_equals_hf_under_a_mask(pair, preamble):
    assert_blind_equals_hf(pair, pair.prompt(PROMPTS["three"], QUESTION), preamble)


@pytest.mark.parametrize("form, name", [("antecedents", "three"), ("context", "a list")])
def test_full_rank_patches_give_back_hf_s_prefill(pair, form, name):
    prompt = pair.prompt(pair.items(PROMPTS[name]), QUESTION)
    window = patched(pair.vlm, prompt.items, form)
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])


def test_chunks_attended_to_in_place_give_back_hf_s_prefill(pair):
    prompt = pair.prompt(PROMPTS["three"], QUESTION)
    vlm = pair.vlm
    window = kj.Window.empty(vlm, CAPACITY, mode="in_place")
    chunks = []
    for item in prompt.items:
        chunk = kj.encode(vlm, item)
        patch = kj.form_patch(vlm, chunk, antecedents=chunks, rank=10_000) if chunks else None
        window = kj.append(window, chunk, patch)
        chunks = [*chunks, chunk]
    assert_close(prompt.tail_logits(window), prompt.full.logits[prompt.spans[-1]])


def test_the_residual_of_a_patch_falls_with_its_rank(pair):
    prompt = pair.prompt(PROMPTS["two"], QUESTION)
    chunks = [kj.encode(pair.vlm, item) for item in prompt.items]
    span = prompt.spans[2]
    full = np.concatenate([prompt.full.rot[:, span], prompt.full.free[:, span]], axis=-1)
    errors = []
    for rank in (1, 2, 4, 10_000):
        patch = kj.form_patch(pair.vlm, chunks[1], antecedents=chunks[:1], rank=rank)
        window = kj.append(kj.append(kj.Window.empty(pair.vlm, CAPACITY), chunks[0]), chunks[1], patch)
        rot, free = window_kv(window)
        errors.append(frobenius(np.concatenate([rot[:, span], free[:, span]], axis=-1), full))
    assert all((b[1:] < a[1:]).all() for a, b in pairwise(errors)) and errors[-1].max() <= 1e-5


def greedy(pair, ids, count):
    """What transformers says next, one token after another, up to a token that ends an answer."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        whole = pair.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return [token for token in whole[0, ids.shape[1] :].tolist() if token not in pair.vlm.eos]


def test_a_session_of_texts_answers_as_hf(pair):
    """Two questions in a row: the second one behind the first one's turn."""
    vlm = pair.vlm
    session = kj.Session(vlm, capacity=CAPACITY, rank=128, policy=kj.ReusePolicy(fallback="patch"))  # full rank
    for text in (FIRST, SECOND):
        session.add(text)
    prompt = pair.prompt([FIRST, SECOND], QUESTION)
    ids = prompt.ids.tolist()
    answer = session.ask(QUESTION, max_new_tokens=6)
    expected = greedy(pair, ids, 6)
    assert list(answer.tokens) == expected
    ids += [*expected, *vlm.closing]
    follow_up = vlm.follow_up("is it the same?")
    ids += np.asarray(follow_up.inputs["tokens"])[: int(follow_up.length)].tolist()
    assert list(session.ask("is it the same?", max_new_tokens=6).tokens) == greedy(pair, ids, 6)


def test_a_conversation_s_tokens_are_the_template_s(pair):
    chat = pair.vlm._chat
    said = "it is red."
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": said},
        {"role": "user", "content": FIRST},
    ]
    whole = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = pair.tokenizer.encode(said, add_special_tokens=False)
    assert [*chat.preamble, *chat.tail(QUESTION), *answer, *chat.closing, *chat.follow_up(FIRST)] == whole
