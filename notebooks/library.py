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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/kamera-jax/kamera-jax/blob/main/notebooks/library.ipynb)
#
# # A library of chunks
#
# Encode once, and reuse in every notebook: on a TPU today and a GPU tomorrow. A library finds chunks by what they show, holds what it reads against its
# checksum, and survives a runtime that is taken away in the middle of a write.

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
# ## Where it lies
#
# A folder. On Colab, put it on Drive and it is there tomorrow; from a bucket, copy it with `gsutil -m rsync -r gs://BUCKET/lib lib` and back: commits rename folders, which
# object stores cannot do at once, so a library is written on a file system.

# %%
import tempfile
from pathlib import Path

DRIVE = False  # True on Colab: asks for access to your Drive
if DRIVE:
    from google.colab import drive

    drive.mount("drive")
    folder = Path("drive/MyDrive/kamera-library")
else:
    folder = Path(tempfile.mkdtemp()) / "library"

# %% [markdown]
# ## Build
#
# Three images and a PDF file, made here of the same pages. `kamera encode` does this from the command line, with progress, and goes on after a kill.

# %%
from PIL import Image

import kamera_jax as kj
from models import load
from models.media.pdf import pdf_pages

names = ("first", "second", "third")
images = [Path(f"examples/pages/{name}.png") for name in names]
document = folder.parent / "pages.pdf"
first, *rest = (Image.open(image).convert("RGB") for image in images)
first.save(document, save_all=True, append_images=rest, resolution=72)

vlm = load("kamera-tiny-gqa")
library = kj.ChunkLibrary.open(folder, mode="a")
chunks = [kj.encode(vlm, item) for item in (*images, *pdf_pages(document, dpi=72))]
keys = library.put_many(chunks)
print(library.stats())

# %% [markdown]
# A patch is kept beside its chunk, under the chunks it was formed behind.

# %%
patch = kj.form_patch(vlm, chunks[2], antecedents=chunks[:2])
library.put(patch)
print(f"a chunk has {chunks[2].nbytes} bytes of KV, its patch {patch.nbytes}")

# %% [markdown]
# ## Tomorrow
#
# Another process, perhaps another machine: nothing is encoded. A chunk of another model, or of another revision of it, cannot be put into a window: the error says
# what differs.

# %%
library = kj.ChunkLibrary.open(folder)
window = kj.Window.empty(vlm, capacity=512)
for key in keys[:3]:
    stored = library.patches(key)
    window = kj.append(window, library.get(key), stored[0] if stored else None)
answer = kj.generate(vlm, window, "what colour is the flower?").text
print(answer)
assert answer == kj.generate(vlm, kj.prefill(vlm, images), "what colour is the flower?").text

# %% [markdown]
# ## What a disk does to bytes
#
# Flip one bit of what is stored. It is found before it reaches a window.

# %%
broken = max((path for path in (folder / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
data = bytearray(broken.read_bytes())
data[len(data) // 2] ^= 1
broken.write_bytes(data)
found = 0
for key in keys:
    try:
        kj.ChunkLibrary.open(folder).get(key)
    except ValueError as error:
        found += 1
        print(type(error).__name__, "-", str(error)[:120])
data[len(data) // 2] ^= 1
broken.write_bytes(data)
assert library.verify().ok
