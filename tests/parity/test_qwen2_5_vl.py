"""Rung 2: the whole model, from hub-format files, images and messages to logits, KV and answers."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import kamera_jax as kj
from kamera_jax.forward import run
from tests.parity.oracle import assert_close, assert_prefilled, frobenius, window_kv

pytestmark = pytest.mark.parity

CAPACITY = 256
QUESTION = "which colour is the cell on the page?"
PROMPTS = [
    ("square",),
    ("dot",),
    ("wide", "tall"),
    ("odd", "two pages show the same glyph.", "square"),
    ("tall", "dot"),
    ("the first is the last.", "large"),
    ("the first is the last.",),
]


@pytest.fixture(params=PROMPTS, ids="+".join)
def prompt(pair, request):
    return pair.prompt(pair.items(request.param), QUESTION)


def test_tokens_and_positions_are_hf_s(prompt):
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    positions = [np.asarray(s.positions)[:, : int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    np.testing.assert_array_equal(np.concatenate(positions, axis=1), prompt.positions)


def test_whole_prompt_equals_hf(pair, prompt):
    segment, tokens = prompt.joined(), len(prompt.ids)
    at = jnp.arange(segment.positions.shape[1])
    output = run(pair.vlm.params, segment, None, at, forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[:tokens], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :tokens], prompt.full.keys, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :tokens], prompt.full.values, layers=True)


def test_prefill_and_query_equal_hf(pair, prompt):
    window = kj.prefill(pair.vlm, prompt.items, capacity=CAPACITY)
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])


@pytest.mark.parametrize("names", [("square",), ("wide", "tall"), ("odd", "two pages.", "dot")], ids="+".join)
def test_greedy_generation_equals_hf(pair, names):
    prompt = pair.prompt(pair.items(names), QUESTION)
    ids = torch.from_numpy(prompt.ids)[None]
    with torch.no_grad():
        whole = pair.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=prompt.kinds,
            **prompt.media,
            max_new_tokens=8,
            do_sample=False,
        )
    expected = [token for token in whole[0, ids.shape[1] :].tolist() if token not in pair.vlm.eos]
    window = kj.prefill(pair.vlm, prompt.items, capacity=CAPACITY)
    answer = kj.generate(pair.vlm, window, QUESTION, max_new_tokens=8)
    assert list(answer.tokens) == expected


def test_bf16_is_as_near_to_f32_as_hf_s(pair, low):
    """bf16 rounds at the same places in both, so the errors are two draws of one noise and agree in size.

    A value of the first layer is rounded seven times on its way; an eighth (a product rounded before its bias is added)
    would be 7 % more noise there and in every layer after it. Chance is below that.
    """
    prompt = pair.prompt(pair.items(("large", "wide")), QUESTION)
    theirs = pair.run(prompt.ids, prompt.positions, prompt.media, model=copy.deepcopy(pair.hf).to(torch.bfloat16))
    window = kj.prefill(low, prompt.items, capacity=CAPACITY)
    until = prompt.spans[-1].start
    for ours, name in zip(window_kv(window), ("keys", "values"), strict=True):
        exact = getattr(prompt.full, name)[:, :until]
        error, bound = frobenius(ours, exact), 1.15 * frobenius(getattr(theirs, name)[:, :until], exact)
        assert (error <= bound).all(), (error, bound)
