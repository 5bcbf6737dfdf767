"""Under ``jax_enable_x64`` everything runs, and gives the bits and the keys that it gives without."""

import jax
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from tests.kamera_jax.story import same, story
from tests.kamera_jax.toy import Toy


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_backbone(mode):
    with jax.enable_x64(True):
        wide = story(Toy(), mode)
    same(wide, story(Toy(), mode))


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_an_embedded_model(mode):
    vlm = load("kamera-tiny-gqa", dtype="float32")
    with jax.enable_x64(True):
        wide = story(load("kamera-tiny-gqa", dtype="float32"), mode)
    same(wide, story(vlm, mode))


def test_experts_and_latents():
    def asked(vlm):
        a, b = (kj.encode(vlm, text) for text in ("the sky is blue", "a star"))
        window = kj.append(kj.append(kj.Window.empty(vlm, 256), a), b, kj.form_patch(vlm, b, antecedents=[a], rank=4))
        return {"chunk": b, "window": window, "logits": kj.query(vlm, window, "what colour?")}

    with jax.enable_x64(True):
        wide = jax.tree.map(np.asarray, asked(load("kamera-tiny-mla")))
    for ours, theirs in zip(jax.tree.leaves(wide), jax.tree.leaves(asked(load("kamera-tiny-mla"))), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == np.asarray(theirs).tobytes()
