# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/kamera-jax/kamera-jax/blob/main/notebooks/tour.ipynb)
#
# # A tour of the idea
#
# A page is encoded **once, alone, without a position**. Wherever it is needed again its keys are rotated into place, and a small low-rank
# patch gives back what it would have absorbed from the pages before it. This notebook shows what is lost without the patch, why the patch can
# be small, and what moving a page then costs. It runs on CPU, one TPU chip or a GPU, unchanged.

# %%
import os
import subprocess
import sys

CHECKOUT = (
    "/content/kamera-jax"  # on a hosted runtime; run again, and after a restart, this cell does what is left to do
)
if "COLAB_RELEASE_TAG" in os.environ:
    if not os.path.exists(f"{CHECKOUT}/installed"):
        if not os.path.exists(CHECKOUT):
            subprocess.run(
                ["git", "clone", "--quiet", "https://github.com/kamera-jax/kamera-jax", CHECKOUT], check=True
            )
        subprocess.run([sys.executable, f"{CHECKOUT}/notebooks/install.py"], check=True)
        open(f"{CHECKOUT}/installed", "w").close()
    os.chdir(CHECKOUT)
if os.path.basename(os.getcwd()) == "notebooks":
    os.chdir("..")  # the paths below are the checkout's
sys.path.insert(0, os.getcwd())

from importlib.metadata import version

import jax

print(", ".join(f"{name} {version(name)}" for name in ("kamera-jax", "jax", "orbax-checkpoint", "numpy")))
print(jax.devices())

# %% [markdown]
# ## Three pages
#
# The first two show facts: a glyph and its colour. The third refers to them: *a flower is whatever the diamond is*. The embedded model reads
# these pages and nothing else; `load` takes a folder or a hub id of Qwen2.5-VL, Kimi-VL, DeepSeek-VL or LLaVA-1.5 just as well.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import kamera_jax as kj
from models import load

vlm = load("kamera-tiny-gqa")
names = ("first", "second", "third")
pages = [Path(f"examples/pages/{name}.png") for name in names]
plt.rcParams["figure.dpi"] = 144
_, axes = plt.subplots(1, 3, figsize=(7.2, 1.8))
for axis, name, page in zip(axes, names, pages):
    axis.imshow(Image.open(page))
    axis.set_title(name)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Blind reuse answers one hop, and loses two
#
# *Full* prefills the pages together. *Blind* encodes each alone and rotates it into place: no forward.

# %%
first, second, third = (kj.encode(vlm, page) for page in pages)
full = kj.prefill(vlm, pages)


def window_of(*pairs):
    window = kj.Window.empty(vlm, capacity=512)
    for chunk, patch in pairs:
        window = kj.append(window, chunk, patch)
    return window


blind = window_of((first, None), (second, None), (third, None))
one_hop = ["what colour is the apple?", "what colour is the star?"]
two_hops = ["what colour is the flower?", "what colour is the cup?", "what colour is the duck?"]
for question in one_hop + two_hops:
    answers = [kj.generate(vlm, window, question, keep=False).text for window in (full, blind)]
    print(f"{question:32} full: {answers[0]:8} blind: {answers[1]}")

# %% [markdown]
# ## What is lost is low-rank
#
# The difference between the third page's KV behind the others and its KV alone. The first layer's KV does not depend on neighbours at all; in
# the others a few directions hold nearly all of it.

# %%
from kamera_jax.patch.subspace import all_components

change = full.entries[2].chunk.kv.features - third.kv.features
spectrum = np.asarray(all_components(change).energy)
size = np.square(np.asarray(third.kv.features, np.float32)).sum((1, 2))
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3), layout="constrained")
left.bar(range(len(size)), np.sqrt(spectrum.sum(1) / size), color="#0072b2")
left.set(xlabel="layer", ylabel="‖Δ‖ / ‖KV‖", title="(a) what the page takes", xticks=range(len(size)))
for layer, colour, style in zip(
    range(1, len(size)), ("#d55e00", "#e69f00", "#009e73", "#0072b2"), ("-", "--", "-.", ":")
):
    kept = np.cumsum(spectrum[layer]) / spectrum[layer].sum()
    right.plot(range(1, 33), kept[:32], style, color=colour, label=f"layer {layer}")
right.set(xlabel="components", ylabel="share of ‖Δ‖² kept", title="(b) a few directions hold it", ylim=(0, 1.02))
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## A patch gives it back
#
# One forward forms it. From then on it is added while the page is written: no forward.

# %%
from kamera_jax.guard.fidelity import kl

reference = [kj.query(vlm, full, question) for question in two_hops]


def loss(window):
    return float(np.mean([kl(logits, kj.query(vlm, window, q)) for logits, q in zip(reference, two_hops)]))


ranks = [2, 4, 8, 12]
shares = [0.0]
losses = [loss(blind)]
for rank in ranks:
    patch = kj.form_patch(vlm, third, antecedents=[first, second], rank=rank)
    # The second page has nothing to take from the first; a patch of its own would only restore the last digits.
    losses.append(loss(window_of((first, None), (second, None), (third, patch))))
    shares.append(patch.nbytes / third.nbytes)
plt.figure(figsize=(7.2, 3.2))
plt.plot([100 * share for share in shares], losses, marker="o", color="#0072b2")
for rank, share, value in zip([0, *ranks], shares, losses):
    plt.annotate(f"rank {rank}" if rank else "blind", (100 * share, value), xytext=(6, 5), textcoords="offset points")
plt.margins(x=0.12, y=0.16)
plt.xlabel("bytes of the patch, % of the page's KV")
plt.ylabel("KL to full prefill, nats")
plt.show()

# %%
patched = window_of((first, None), (second, None), (third, patch))
for question in two_hops:
    print(f"{question:32} patched: {kj.generate(vlm, patched, question, keep=False).text}")
assert [kj.generate(vlm, patched, q, keep=False).text for q in two_hops] == [
    kj.generate(vlm, full, q, keep=False).text for q in two_hops
]

# %% [markdown]
# ## Moving a page costs a write
#
# The same patch serves another order. `reorder`, `slide`, `recall` and `replace` write again from the canonical KV.

# %%
import time


def seconds(function):
    jax.block_until_ready(function().state)  # compiles
    start = time.perf_counter()
    jax.block_until_ready(function().state)
    return time.perf_counter() - start


swap = seconds(lambda: kj.reorder(patched, [1, 0, 2]))
prefill = seconds(lambda: kj.prefill(vlm, pages))
print(f"reorder {1e3 * swap:.1f} ms, prefill {1e3 * prefill:.1f} ms")
swapped = kj.reorder(patched, [1, 0, 2])
print([kj.generate(vlm, swapped, question, keep=False).text for question in two_hops])

# %% [markdown]
# A model this small makes the forward cheap and the comparison modest; on an 8-layer, 1024-wide decoder a patched page of 1,024 tokens enters a
# window 56 times faster than by being run there (`docs/performance.md`). Go on with `agent.ipynb`, or with `docs/guide.md`.
