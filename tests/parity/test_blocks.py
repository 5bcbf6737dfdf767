"""Rung 2 with attention by blocks, in the tower and in the decoder: blocks so small that a page is cut into many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import vlm as ports
from models.blocks import softmax
from tests.parity.oracle import assert_close
from tests.parity.routing import assert_same_routes

pytestmark = pytest.mark.parity


def test_whole_prompt_by_blocks_equals_hf(pair, monkeypatch):
    for name, value in {"BLOCK_BYTES": 1, "BLOCK_QUERIES": 16, "BLOCK_KEYS": 32, "LANES": 16, "FEW_TOKENS": 0}.items():
        monkeypatch.setattr(softmax, name, value)
    encode = jax.jit(ports._encode.__wrapped__, static_argnames=("medium", "tower"))
    monkeypatch.setattr(ports, "_encode", encode)  # compiled with these blocks, and not kept
    prompt = pair.prompt(pair.items(("odd", "two pages show the same glyph.", "square")), "which colour is it?")
    segment = prompt.joined()
    tokens = len(prompt.ids)
    at = jnp.arange(segment.positions.shape[1])
    collect = ("experts", "router_margin") if pair.vlm.config.text.experts else ()
    run = jax.jit(lambda params, segment: pair.vlm.forward(params, segment, None, logits_at=at, collect=collect))
    output = run(pair.vlm.params, segment)
    assert_close(np.asarray(output.logits)[:tokens], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :tokens], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :tokens], prompt.full.free, layers=True)
    if collect:
        assert_same_routes(output.aux, prompt.full, pair.vlm.config.text.experts)
