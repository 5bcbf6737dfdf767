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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/kamera-jax/kamera-jax/blob/main/notebooks/agent.ipynb)
#
# # An agent that looks back
#
# An agent sees one screenshot after another through a window that holds only a few. What no longer fits leaves the window, and stays in host memory; when the
# agent needs to look again, it is recalled by its key, and never encoded a second time. It runs on CPU, one TPU chip or a GPU, unchanged.

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
# ## A stream of screens
#
# Rendered here: each screen shows glyphs in colours of its own. The embedded model reads such screens and nothing else.

# %%
import matplotlib.pyplot as plt
import numpy as np

import kamera_jax as kj
from eval.tiny import pages
from eval.tiny.episodes import question_text
from eval.tiny.glyphs import COLOUR_NAMES
from eval.tiny.story import sample_story
from models import load

vlm = load("kamera-tiny-gqa")
screens = []
questions = []
for seed in range(4):
    story = sample_story(np.random.default_rng((7, seed)))
    for page in (story.first, story.other):
        glyph, (_, colour) = next(iter(page.entries.items()))
        screens.append(pages.render(page.cells))
        questions.append((question_text(glyph), COLOUR_NAMES[colour]))
plt.rcParams["figure.dpi"] = 144
_, axes = plt.subplots(2, 2, figsize=(7.2, 3.6), layout="constrained")
for i, axis in enumerate(axes.flat):
    axis.imshow(screens[i])
    axis.set_title(f"screen {i}")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The loop
#
# `add` encodes what it has not seen and forms a patch on what stands before. When a screen does not fit, the oldest leave.

# %%
session = kj.Session(vlm, capacity=384, memory_bytes=2**26)
keys = []
held = []
for i, screen in enumerate(screens):
    keys.append(session.add(screen))
    question, answer = questions[i]
    said = session.ask(question, keep=False).text
    held.append([keys.index(key) for key in session.keys])
    print(f"screen {i}: {question} {said:8} window: {held[-1]}")

# %% [markdown]
# ## Looking back
#
# The first screens left long ago. Asked about one, the agent recalls it: rotated and patched, not encoded.

# %%
question, answer = questions[0]
print("not in the window:", question, session.ask(question, keep=False).text, "| truth:", answer)
session.recall(keys[0])
held.append([keys.index(key) for key in session.keys])
said = session.ask(question, keep=False).text
print("recalled:         ", question, said)
assert said == answer
print(session.stats)

# %%
plt.figure(figsize=(7.2, 2.8))
for step, window in enumerate(held):
    for place, screen in enumerate(window):
        plt.barh(place, 0.9, left=step, color=plt.cm.cividis(screen / len(screens)), edgecolor="white")
        plt.text(step + 0.45, place, screen, ha="center", va="center", color="white" if screen < 5 else "black")
plt.xlabel("step")
plt.ylabel("place in the window")
plt.title("Which screens the window holds; at the last step one is recalled")
plt.xticks([step + 0.45 for step in range(len(held))], [str(step) for step in range(len(held))])
plt.yticks(range(max(map(len, held))))
plt.show()

# %% [markdown]
# ## Seen before? Not encoded again
#
# A screen is known by its content: the same picture again is a look-up. What is pinned stays.

# %%
before = session.stats.encoded
assert session.add(screens[3]) == keys[3] and session.stats.encoded == before
session.pin(keys[3])
for screen in screens[4:]:
    session.add(screen)
assert keys[3] in session.keys
print(session.stats)

# %% [markdown]
# ## Tomorrow
#
# A session is saved with everything it holds, and goes on where it stood.

# %%
import tempfile

folder = tempfile.mkdtemp()
session.save(folder)
restored = kj.Session.restore(vlm, folder)
assert restored.keys == session.keys
print(restored.ask(questions[3][0], keep=False).text, "| truth:", questions[3][1])

# %% [markdown]
# What a slide loses and what a recall gives back is measured in `docs/window.md`. When a stored patch may be trusted behind other screens is a policy's to say,
# `kj.Session(…, policy=kj.ReusePolicy(max_kl=0.05))`, and `session.last` says what it decided.
