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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/kamera-jax/kamera-jax/blob/main/notebooks/evaluate.ipynb)
#
# # Is reuse right for your model?
#
# Two ways to find out. On your own images and questions: `kj.verify` holds a window against re-prefill. On a task with a known answer: `kamera eval` runs every method on
# the same samples.

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
# ## Your images, your questions
#
# Set `MODEL` to a folder or a hub id of Qwen2.5-VL, Kimi-VL, DeepSeek-VL or LLaVA-1.5, and the images and questions to your own. Ask what needs **two** images: questions that read
# the answer off one do not see what reuse loses.

# %%
from pathlib import Path

import kamera_jax as kj
from models import load

MODEL = "kamera-tiny-gqa"
IMAGES = [Path(f"examples/pages/{name}.png") for name in ("first", "second", "third")]
PROBES = ["what colour is the flower?", "what colour is the cup?", "what colour is the duck?"]

vlm = load(MODEL)
chunks = [kj.encode(vlm, image) for image in IMAGES]


def reuse(rank):
    window = kj.Window.empty(vlm, capacity=sum(chunk.length + 16 for chunk in chunks) + 512)
    for i, chunk in enumerate(chunks):
        patch = kj.form_patch(vlm, chunk, antecedents=chunks[:i], rank=rank) if rank and i else None
        window = kj.append(window, chunk, patch)
    return window


# %%
import matplotlib.pyplot as plt
import numpy as np

plt.rcParams["figure.dpi"] = 144
plt.figure(figsize=(7.2, 3.2))
reports = {
    name: kj.verify(vlm, reuse(rank), PROBES) for name, rank in (("blind", None), ("patch:4", 4), ("patch:12", 12))
}
for name, report in reports.items():
    print(f"{name:9} KL {report.kl:7.4f}  flips {report.flips}  {'ok' if report.ok else 'NOT ok'}: {report.reason}")
for (name, report), colour, marker in zip(reports.items(), ("#d55e00", "#e69f00", "#0072b2"), "os^"):
    plt.plot(np.asarray(report.kv_error), marker=marker, color=colour, label=name)
plt.xlabel("layer")
plt.ylabel("error of the KV, relative")
plt.xticks(range(len(reports["blind"].kv_error)))
plt.legend(frameon=False)
plt.show()
assert reports["patch:12"].ok and not reports["blind"].ok

# %% [markdown]
# The KV of a patched window still differs by some percent: most of that the answers never read. What counts is the KL.
#
# ## Every method on one task
#
# `kamera eval` from the command line; the same here. A run that is stopped goes on where it was. Raise `--limit` for figures that mean something.

# %%
import tempfile

from eval.commands.main import main

folder = tempfile.mkdtemp()
run = f"{folder}/run"
methods = "full,blind,patch:12,cacheblend:0.15,epic:8"
assert main(["eval", "binding", "--methods", methods, "--seeds", "0", "--limit", "2", "--output", run]) == 0

# %%
assert main(["eval", "report", run, "--figures", f"{folder}/figures"]) == 0
import IPython

for figure in sorted(Path(folder, "figures").glob("*.png")):
    IPython.display.display(IPython.display.Image(figure.read_bytes(), width=720))

# %% [markdown]
# ## Pages of real text
#
# A page and a second one that begins a copy of it, both as pictures, read by a real language model (SmolLM2, from a package of its own): how does the copy go on?

# %%
from eval.commands import demo_text
from eval.report.demo_text import plot_text, print_text
from models.hub.refusals import UnknownModelError

try:
    reader = load("kamera-smol-vl")
except UnknownModelError as error:
    print(error)  # what to install
else:
    shown = demo_text.run(reader, cases=4, pages=True, methods=("full", "blind", "patch:1", "patch:8"))
    shown["model"] = {"name": "kamera-smol-vl"}
    print_text(shown)
    plot_text(shown, Path(folder, "pages.png"))
    IPython.display.display(IPython.display.Image(Path(folder, "pages.png").read_bytes(), width=720))

# %% [markdown]
# To add a task of your own, or a method: `docs/howto/`.
