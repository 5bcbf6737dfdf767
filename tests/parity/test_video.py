"""Videos of the Qwen models, alone and in chunks of several parts, against transformers: rungs 2 to 5."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import kamera_jax as kj
from kamera_jax.forward import run
from tests.parity.oracle import assert_close, assert_prefilled, assert_same_positions, token
from tests.parity.pairs import CONFIGS
from tests.parity.test_reuse import assert_blind_equals_hf, assert_items_equal_there, patched

pytestmark = pytest.mark.parity

with_videos = pytest.mark.parametrize("pair", [name for name in CONFIGS if name.startswith("qwen")], indirect=True)

SIZE = 128
QUESTION = "which colour is the cell on the page?"


def video(pair, count, rows, columns, fps, seed=0):
    shape = (count, rows * pair.cell, columns * pair.cell, 3)
    return kj.Video.at_rate(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), fps)


def prompts(pair):
    """Long and short videos against the height and width of their frames; an odd last frame; one frame."""
    slow = video(pair, 6, 2, 3, 0.5)
    return {
        "slow": [slow],
        "fast": [video(pair, 4, 2, 4, 12.0, seed=1)],
        "odd": [video(pair, 5, 3, 2, 3.0, seed=2)],
        "one frame": [video(pair, 1, 2, 2, 1.0, seed=3)],
        "two media in one chunk": [[pair.image("wide"), "the first page.", video(pair, 4, 2, 2, 1.0, seed=4)]],
        "behind others": [
            pair.image("dot"),
            [video(pair, 3, 1, 3, 2.0, seed=5), "the page.", pair.image("tall"), video(pair, 2, 2, 2, 2.0, seed=6)],
            "the last page.",
        ],
    }


@pytest.fixture(params=["slow", "fast", "odd", "one frame", "two media in one chunk", "behind others"])
def prompt(pair, request):
    return pair.prompt(prompts(pair)[request.param], QUESTION)


@with_videos
def test_whole_prompt_equals_hf(pair, prompt):
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    positions = [np.asarray(s.positions)[:, : int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    assert_same_positions(np.concatenate(positions, axis=1), prompt.positions)
    assert (prompt.ids == token("video_pad")).any()

    segment = prompt.joined(size=SIZE)
    length = len(prompt.ids)
    output = run(pair.vlm.params, segment, None, jnp.arange(SIZE), forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)


@pytest.mark.parametrize("pair", [name for name in CONFIGS if name.startswith("qwen2_5_vl")], indirect=True)
def test_positions_of_a_short_video_are_hf_5_s(pair):
    """transformers 5 begins what follows at max(rows, columns): the same where the video is no longer than that."""
    prompt = pair.prompt(prompts(pair)["fast"], QUESTION)
    kinds = torch.from_numpy(np.where(prompt.ids == token("video_pad"), 2, 0))[None]
    theirs, _ = pair.hf.model.get_rope_index(
        torch.from_numpy(prompt.ids)[None],
        kinds.int(),
        video_grid_thw=prompt.media.tensors["video_grid_thw"],
        second_per_grid_ts=torch.tensor([2 / 12.0]),
    )
    np.testing.assert_array_equal(prompt.positions, theirs[:, 0].numpy())


@with_videos
def test_a_chunk_rotated_equals_hf_there(pair):
    assert_items_equal_there(pair, prompts(pair)["behind others"][1:2], 37)


@with_videos
def test_blind_and_patched_reuse_equal_hf(pair):
    prompt = pair.prompt(prompts(pair)["behind others"], QUESTION)
    assert_blind_equals_hf(pair, prompt, "pinned")
    assert_prefilled(patched(pair.vlm, prompt.items, "antecedents"), prompt)
