"""Chunks of several texts and images, against transformers on the same message: rungs 2 to 5."""

import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.forward import run
from tests.parity.oracle import assert_close, assert_prefilled
from tests.parity.pairs import CONFIGS
from tests.parity.routing import assert_same_routes
from tests.parity.test_reuse import assert_blind_equals_hf, assert_equal_there, patched

pytestmark = pytest.mark.parity

CAPACITY = 256
SIZE = 256
QUESTION = "which colour is the cell on the page?"
EIGHT = ("square", "dot", "wide", "odd", "tall", "large", "square", "dot")
INTERLEAVED = ("the first is the last.", "wide", "two pages show the same glyph.", "odd")
CAPTIONS = ("tall", "the first page.", "dot", "the last page.")
PROMPTS = {
    "eight images": [EIGHT],
    "interleaved": [INTERLEAVED],
    "behind others": ["dot", CAPTIONS, ("square", "wide")],
}
ONE_A_PORT = [
    next(name for name in CONFIGS if name.startswith(port))
    for port in (
        "qwen2_5_vl",
        "qwen2_5_omni",
        "qwen3_omni_moe",
        "qwen3_vl:",
        "qwen3_vl_moe",
        "kimi",
        "deepseek",
        "llava:",
        "llava_onevision",
        "internvl",
        "idefics3",
        "smolvlm",
    )
]
SOME = [*ONE_A_PORT, *(name for name in CONFIGS if name.startswith("qwen2_5_vl") and name not in ONE_A_PORT)]

some = pytest.mark.parametrize("pair", SOME, indirect=True)
one_a_port = pytest.mark.parametrize("pair", ONE_A_PORT, indirect=True)


@pytest.fixture(params=PROMPTS)
def prompt(pair, request):
    return pair.prompt(pair.items(PROMPTS[request.param]), QUESTION)


@some
def test_whole_prompt_equals_hf(pair, prompt):
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    positions = [np.asarray(s.positions)[:, : int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    np.testing.assert_array_equal(np.concatenate(positions, axis=1), prompt.positions)

    segment = prompt.joined(size=SIZE)
    length = len(prompt.ids)
    collect = ("experts", "router_margin") if pair.vlm.config.text.experts else ()
    output = run(pair.vlm.params, segment, None, jnp.arange(SIZE), forward=pair.vlm.forward, collect=collect)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)
    if collect:
        assert_same_routes(output.aux, prompt.full, pair.vlm.config.text.experts)


@one_a_port
def test_prefill_and_query_equal_hf(pair, prompt):
    window = kj.prefill(pair.vlm, prompt.items, capacity=CAPACITY)
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])


@one_a_port
@pytest.mark.parametrize("parts", [EIGHT, INTERLEAVED, CAPTIONS], ids=["eight", "interleaved", "captions"])
def test_a_chunk_of_parts_rotated_equals_hf_there(pair, parts):
    assert_equal_there(pair, parts, 37)


@one_a_port
@pytest.mark.parametrize("preamble", ["pinned", None])
def test_blind_reuse_equals_hf_under_a_mask(pair, preamble):
    prompt = pair.prompt(pair.items(PROMPTS["behind others"]), QUESTION)
    assert_blind_equals_hf(pair, prompt, preamble)


@one_a_port
def test_full_rank_patches_give_back_hf_s_prefill(pair):
    prompt = pair.prompt(pair.items(PROMPTS["behind others"]), QUESTION)
    window = patched(pair.vlm, prompt.items, "antecedents")
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])
