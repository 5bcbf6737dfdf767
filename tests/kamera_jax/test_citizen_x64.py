"""Under ``jax_enable_x64`` experts and latents give the bits that they give without; `test_strict` has the rest."""

import jax
import numpy as np

import kamera_jax as kj
from models import load


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
