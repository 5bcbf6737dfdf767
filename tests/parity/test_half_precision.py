"""LLaVA in float16, the dtype it is published in: as near to transformers in f32 as transformers in float16 is."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.forward import run
from tests.parity.oracle import frobenius
from tests.parity.pairs import LlavaPair
from tests.parity.tiny_hf import save_hub_folder

pytestmark = pytest.mark.parity


class HalfPair(LlavaPair):
    """The f32 model holds what float16 keeps of random weights; the folder holds them in float16."""

    def build(self, seed):
        model = super().build(seed)
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
        return model

    def save(self, folder):
        save_hub_folder(half(self.hf), folder)


def half(model):
    """In float16 as transformers loads it: the frequencies of RoPE stay f32."""
    low = copy.deepcopy(model).half()
    for name, buffer in model.named_buffers():
        low.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.clone()
    return low


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = HalfPair({}, tmp_path_factory.mktemp("hub"), seed=3)
    assert pair.vlm.spec.dtype == "float16"
    return pair


def test_float16_is_as_near_to_f32_as_transformers_float16(pair):
    prompt = pair.prompt(pair.items(["square", "a red star.", "odd"]), "what colour is the star?")
    theirs = pair.run(prompt.ids, prompt.positions, prompt.media, model=half(pair.hf))
    joined = prompt.joined()
    count = len(prompt.ids)
    output = run(pair.vlm.params, joined, None, jnp.arange(count), forward=pair.vlm.forward)
    assert output.kv.rot.dtype == jnp.float16 and output.logits.dtype == jnp.float32
    rotated = pair.rotated(output.kv, joined.positions)[:, :count]
    for ours, low, exact in (
        (rotated, theirs.rot, prompt.full.rot),
        (np.asarray(output.kv.free)[:, :count], theirs.free, prompt.full.free),
        (np.asarray(output.logits)[None, :count], theirs.logits[None], prompt.full.logits[None]),
    ):
        error = frobenius(ours, exact)
        reference = frobenius(low, exact)
        assert (error <= 1.15 * reference).all() and (error <= 2.0**-8).all()
        assert (error > 2.0**-14).all()  # it is float16 that is compared


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_window_of_full_rank_patches_is_transformers_full_prefill(pair, mode):
    items = pair.items(["square", "a red star.", "odd"])
    prompt = pair.prompt(items, "what colour is the star?")
    chunks = [kj.encode(pair.vlm, item) for item in items]
    window = kj.Window.empty(pair.vlm, 128, mode=mode)
    for i, chunk in enumerate(chunks):
        patch = kj.form_patch(pair.vlm, chunk, antecedents=chunks[:i], rank=1000) if i else None
        window = kj.append(window, chunk, patch)
    logits = kj.query(pair.vlm, window, "what colour is the star?")
    assert frobenius(np.asarray(logits)[None, None], prompt.full.logits[None, -1:]).max() <= 2.0**-8
    assert int(np.argmax(logits)) == int(prompt.full.logits[-1].argmax())
