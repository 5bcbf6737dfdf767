"""Near-duplicate frames share rows in every port that reads videos: one rule says which tokens stand at one place."""

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import SharedRowsError
from models import load
from tests.models import tiny_internvl, tiny_qwen3_vl

PORTS = ["qwen2_5_vl", "qwen3_vl", "kimi_vl", "internvl"]
QUESTION = "which cell is red ?"


@pytest.fixture(scope="module", params=PORTS)
def vlm(request, tmp_path_factory):
    made = {"qwen3_vl": tiny_qwen3_vl.write, "internvl": tiny_internvl.write}
    if request.param in made:
        return load(made[request.param](tmp_path_factory.mktemp(request.param) / "model"))
    return load("kamera-tiny-gqa" if request.param == "qwen2_5_vl" else "kamera-tiny-mla")


def frames(*seeds, size=(56, 84)):
    """Pictures, two frames of each: a temporal patch of the Qwen models."""
    drawn = [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed in seeds]
    return np.repeat(np.stack(drawn), 2, axis=0)


def times(count):
    return np.arange(count) / 2


def test_frames_that_are_equal_share_their_rows(vlm):
    shown = frames(1, 1, 2, 2)
    chunk = kj.encode(vlm, kj.Video(shown, times(8)))
    media = int(np.asarray(chunk.source.inputs["is_media"]).sum())
    small = kj.share_rows(vlm, chunk, 1.0)
    counts = np.asarray(small.counts)[: small.length]
    patches = 4 if vlm.architecture.name.startswith("qwen") else 8  # what the tower sees at once: two frames, or one
    each = media // patches
    assert chunk.length - small.length == media - 2 * each  # of two pictures
    assert sorted(counts[counts > 1].tolist()) == [patches // 2] * 2 * each and counts.sum() == chunk.length
    is_media = np.asarray(chunk.source.inputs["is_media"])[: chunk.length]
    first = np.flatnonzero(is_media)[:each]
    picture = np.flatnonzero(is_media).reshape(patches, each)[: patches // 2]
    free = np.asarray(chunk.kv.free, np.float64)
    np.testing.assert_allclose(np.asarray(small.kv.free)[:, first], free[:, picture].mean(1), atol=1e-5)
    for mode in ("materialise", "in_place"):
        window = kj.append(kj.Window.empty(vlm, 256, mode=mode), small)
        again = kj.append(kj.slide(kj.append(window, small)), small)
        assert np.isfinite(kj.query(vlm, again, QUESTION)).all()
    text = kj.encode(vlm, "the page is red")
    patch = kj.form_patch(vlm, small, antecedents=[text], rank=2)
    assert patch.length == small.length and patch.codec == small.codec == "shared:1.0"


def test_frames_that_differ_keep_theirs(vlm):
    chunk = kj.encode(vlm, kj.Video(frames(1, 2, 3, 4)[::2], times(4)))
    small = kj.share_rows(vlm, chunk, 1.0)
    assert small.length == chunk.length and (np.asarray(small.counts) == 1).all()


def test_an_image_has_no_frames(vlm):
    image = frames(1, size=(112, 168))[0]
    with pytest.raises(SharedRowsError, match="one temporal patch, as an image has"):
        kj.share_rows(vlm, kj.encode(vlm, image))
    with pytest.raises(SharedRowsError, match="it is text"):
        kj.share_rows(vlm, kj.encode(vlm, "the page is red"))
