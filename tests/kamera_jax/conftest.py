"""A tiny model with random weights, its chunks, and a forward of the whole text to hold everything against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny import checkpoint
from eval.tiny.backbones import BACKBONES
from kamera_jax.forward import run
from kamera_jax.kv import Segment
from models import load
from models.blocks.params import is_info
from tests.kamera_jax.texts import TEXTS

CAPACITY = 128
TINY = BACKBONES["gqa"]
CELL = 28


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A hub folder; norms and biases are random too, so that none of them can be left out unseen."""
    rng = np.random.default_rng(0)

    def leaf(info):
        # numpy, so that not every shape is compiled first.
        scale = {"fan_in": info.shape[-2] ** -0.5 if len(info.shape) > 1 else 0.0, "embedding": 0.05}.get(
            info.init, 0.02
        )
        return np.float32(info.init == "ones") + scale * rng.standard_normal(info.shape, np.float32)

    params = jax.tree.map(leaf, TINY.architecture.declaration(TINY.config), is_leaf=is_info)
    folder = tmp_path_factory.mktemp("random") / "model"
    checkpoint.write(folder, TINY, params)
    return folder


@pytest.fixture(scope="session")
def random_vlm(folder):
    return load(folder)


@pytest.fixture(scope="session")
def random_vlm_bf16(folder):
    return load(folder, dtype="bfloat16")


def image(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows * CELL, columns * CELL, 3), dtype=np.uint8)


ITEMS = (image(2, 3), image(3, 4, seed=1), "the page is red and the cell is blue")
"""Two images and a text, each of one bucket of 16 tokens, no two of one length or advance."""


@pytest.fixture(scope="session")
def make_image():
    return image


@pytest.fixture(scope="session")
def items():
    return ITEMS


@pytest.fixture(scope="session")
def chunks(random_vlm):
    return tuple(kj.encode(random_vlm, item) for item in ITEMS)


@pytest.fixture(scope="session")
def texts(random_vlm):
    return [kj.encode(random_vlm, text) for text in TEXTS]


@pytest.fixture(scope="session")
def stored(texts, tmp_path_factory):
    """The texts as a library gives them back from eight bits."""
    with kj.ChunkLibrary.open(tmp_path_factory.mktemp("stored") / "lib", mode="a") as lib:
        return lib.get_many(lib.put_many(texts, storage="int8"))


@pytest.fixture(scope="session")
def two_windows(random_vlm, build, texts):
    """The same two chunks, the second with its patch and without."""
    patch = kj.form_patch(random_vlm, texts[1], antecedents=texts[:1], rank=1000)
    return build((texts[0], None), (texts[1], patch)), build((texts[0], None), (texts[1], None))


@pytest.fixture(scope="session")
def patches(random_vlm, chunks):
    """Full-rank patches: each chunk's after all before it."""
    return tuple(
        kj.form_patch(random_vlm, chunk, antecedents=chunks[:i], rank=1000) if i else None
        for i, chunk in enumerate(chunks)
    )


@pytest.fixture(scope="session")
def build(random_vlm):
    """A window of (chunk, patch) pairs, appended one by one, or put back ``as_it_stood``."""

    def build(*pairs, capacity=CAPACITY, vlm=random_vlm, mode="materialise", as_it_stood=False):
        window = kj.Window.empty(vlm, capacity, mode=mode)
        for chunk, patch in pairs:
            window = kj.append(window, chunk, patch, as_it_stood=as_it_stood)
        return window

    return build


@pytest.fixture(scope="session")
def patched(build, chunks, patches):
    """All chunks with their full-rank patches."""
    return build(*zip(chunks, patches, strict=True))


@pytest.fixture(scope="session")
def blind(build, chunks):
    return build(*((chunk, None) for chunk in chunks))


@pytest.fixture(scope="session")
def whole():
    """One forward of segments as one text: no window, no slots, no cache. Gives (KV, logits after the last token)."""

    def whole(vlm, *segments, padded=CAPACITY):
        width = vlm.params["text"]["embed"]["w"].shape[-1]
        rows = {"tokens": [], "media": [], "is_media": [], "positions": []}
        base = 0.0
        for segment in segments:
            length = int(segment.length)
            rows["tokens"].append(np.asarray(segment.inputs["tokens"])[:length])
            rows["positions"].append(np.asarray(segment.positions)[:, :length].T + np.float32(base))
            is_media = np.asarray(segment.inputs.get("is_media", np.zeros(length, bool)))[:length]
            media = np.asarray(segment.inputs.get("media", np.zeros((length, width), np.float32)), np.float32)[:length]
            rows["media"].append(media)
            rows["is_media"].append(is_media)
            base += segment.advance
        joined = {name: np.concatenate(parts) for name, parts in rows.items()}
        length = len(joined["tokens"])
        joined = {
            name: jnp.asarray(np.pad(array, [(0, padded - length)] + [(0, 0)] * (array.ndim - 1)))
            for name, array in joined.items()
        }
        positions = joined.pop("positions").T
        segment = Segment(joined, positions, jnp.int32(length))
        output = run(vlm.params, segment, None, jnp.array([length - 1]), forward=vlm.forward)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, :length], output.kv), np.asarray(output.logits[0])

    return whole
