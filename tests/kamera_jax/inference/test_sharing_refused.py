"""What cannot share rows, and who cannot read that it does, is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import planning
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.errors import (
    BackboneError,
    LibraryCorruptError,
    MissingInputsError,
    ModelMismatchError,
    SharedRowsError,
)
from kamera_jax.inference.encode import run_chunk
from tests.kamera_jax.inference.repeats import MODES, POLICY, QUESTION, clip, window_of
from tests.kamera_jax.toy import Toy


class Reads(Toy):
    reads_bias = True


def counted(vlm, text="abcdef"):
    chunk = kj.encode(vlm, text)
    return chunk.keeping(counts=jnp.full(chunk.positions.shape[1], 2.0), codec="shared:0.95")


def test_a_backbone_that_does_not_read_the_bias_is_refused(tmp_path):
    toy = Toy()
    chunk = counted(toy)
    match = "Toy does not say reads_bias = True"
    for mode in MODES:
        window = window_of(toy, mode, chunk)
        for work in (
            lambda window=window: kj.query(toy, window, "x"),
            lambda window=window: kj.generate(toy, window, "x"),
            lambda window=window: kj.form_patch(toy, kj.encode(toy, "b"), context=window, rank=1),
            lambda window=window: kj.verify(toy, window, ["x"]),
            lambda window=window: run_chunk(toy, window, kj.encode(toy, "b")),
        ):
            with pytest.raises(BackboneError, match=match):
                work()
    empty = kj.Window.empty(toy, 64)
    patch = kj.form_patch(toy, chunk, antecedents=[kj.encode(toy, "x")], rank=1)
    for work in (
        lambda: kj.append_checked(toy, empty, chunk, patch, POLICY),
        lambda: planning.plan(toy, empty, planning.Append(chunk), policy=POLICY),
        lambda: kj.Session(toy, 64).add(chunk),
        lambda: BatchRunner(toy).reuse([Stack.of([chunk])], [None]),
        lambda: kj.share_rows(toy, chunk.keeping(counts=None, codec="exact"), 0.9),
    ):
        with pytest.raises(BackboneError, match=match):
            work()
    reads = Reads()
    assert np.isfinite(kj.query(reads, window_of(reads, "materialise", counted(reads)), "x")).all()
    with pytest.raises(BackboneError, match="reads_bias is 'yes'; expected True or False"):
        kj.encode(type("Wrong", (Toy,), {"reads_bias": "yes"})(), "x")


def test_what_cannot_share_rows_is_named(random_vlm, chunks, clips, shared, make_image):
    chunk = clips[0]
    for threshold in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            kj.share_rows(random_vlm, chunk, threshold)
    turn = kj.generate(random_vlm, window_of(random_vlm, "materialise", chunk), QUESTION).window.entries[-1].chunk
    cases = {
        "text": (chunks[2], SharedRowsError, "has no media, it is text"),
        "an image": (chunks[0], SharedRowsError, "has one temporal patch, as an image has"),
        "one pair of frames": (
            kj.encode(random_vlm, clip().between(0, 2)),
            SharedRowsError,
            "has one temporal patch, as an image has",
        ),
        "a turn": (turn, SharedRowsError, "is a turn"),
        "shared": (shared[0], SharedRowsError, "its rows are shared already"),
        "shared and stored": (
            shared[0].keeping(codec="shared:1.0+int8", counts=None),
            SharedRowsError,
            "its rows are shared already",
        ),
        "some rows": (chunk.keeping(length=chunk.length - 1, source=chunk.source), SharedRowsError, "keeps .* rows of"),
        "no source": (chunk.without_source(), MissingInputsError, "without its source"),
        "another model": (chunk.keeping(model="other"), ModelMismatchError, "encoded by model other"),
        "images of two sizes": (
            kj.encode(random_vlm, [make_image(2, 3), make_image(3, 4, 1)]),
            SharedRowsError,
            "blocks of media tokens that differ in size",
        ),
        "a video and an image": (
            kj.encode(random_vlm, [clip(), make_image(3, 2)]),
            SharedRowsError,
            "blocks of media tokens that differ in size .* or grid",
        ),
        "frames within a tick": (
            kj.encode(random_vlm, kj.Video(clip(changes=()).frames, np.arange(8) / 60)),
            SharedRowsError,
            "temporal patches that stand at one position",
        ),
    }
    for what, (given, error, match) in cases.items():
        with pytest.raises(error, match=match):
            kj.share_rows(random_vlm, given)
        assert what
    with pytest.raises(SharedRowsError, match="inside a JAX transformation"):
        jax.jit(lambda each: kj.share_rows(random_vlm, each))(chunk)


def test_of_what_eight_bits_gave_the_codec_says_both(random_vlm, clips, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(clips[0], storage="int8")
        stored = lib.get(clips[0].key)
    small = kj.share_rows(random_vlm, stored, 1.0)
    assert small.codec == "int8+shared:1.0" and small.length == clips[0].length - 12


def test_a_stored_row_without_its_counts_is_not_read(shared, tmp_path, monkeypatch):
    from kamera_jax.library import rows

    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(shared[0])
        row = rows.row_of(shared[0], "exact")
    leaves = {name: leaf for name, leaf in row.leaves.items() if name != "counts"}
    with pytest.raises(LibraryCorruptError, match="counts are missing"):
        rows.chunk_of(row.about, row.spec, leaves)
