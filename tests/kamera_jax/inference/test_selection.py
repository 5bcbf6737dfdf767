"""Chunks that keep the rows that are worth most: which these are, where they go, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.compress import scores
from kamera_jax.compress.rows import select
from kamera_jax.errors import BackboneError, CodecError, MissingInputsError, PatchMismatchError
from kamera_jax.inference.evidence import queries_of, row_scores
from kamera_jax.inference.selection import always_kept
from kamera_jax.merging import merged
from models import load
from tests.kamera_jax import toy
from tests.kamera_jax.inference.repeats import MODES, QUESTION, near, window_of
from tests.kamera_jax.kept import keep

NAMES = ("kvzip:0.5", "keydiff:0.5", "leverage:0.5", "knorm:0.5", "knorm:0.5:small", "expected:0.5", "tri:0.5")


def rows_of(small):
    """Which tokens a chunk has rows of, by their positions."""
    places = [tuple(each) for each in np.asarray(small.source.positions).T.tolist()]
    return [places.index(tuple(each)) for each in np.asarray(small.positions).T[: small.length].tolist()]


def wanted_rows(vlm, chunk, name):
    """The tokens around media, then those that score highest in the mean over layers and heads."""
    worth = np.asarray(row_scores(vlm, chunk, select(*name.split(":"))), np.float64).mean((0, 1))[: chunk.length]
    worth[always_kept(chunk.source)] = np.inf
    return sorted(np.argsort(-worth, kind="stable")[: round(0.5 * chunk.length)].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_worth_most_are_kept(random_vlm, chunks, name):
    image = chunks[1]
    packed = kj.compress(random_vlm, image, name)
    small = packed.restore()
    rows = wanted_rows(random_vlm, image, name)
    assert rows_of(small) == rows and {0, image.length - 1} <= set(rows)
    assert small.codec == packed.codec == name and small.key == packed.key == image.key
    assert small.length == packed.length == round(0.5 * image.length) and small.advance == image.advance
    assert int(small.source.length) == image.length and small.source.content == image.content
    assert packed.nbytes == small.nbytes + 2 * small.length  # and which rows they are
    for ours, theirs in zip(jax.tree.leaves(small.kv), jax.tree.leaves(keep(image, rows).kv), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    whole = kj.compress(random_vlm, image, name.replace("0.5", "1")).restore()
    assert whole.keeps_all_rows and whole.length == image.length
    np.testing.assert_array_equal(whole.kv.rot, image.kv.rot)


def test_a_replay_is_run_right_behind_the_chunk(random_vlm, chunks):
    """Its queries are those of a second copy that the window ends with."""
    image = chunks[0]
    window = window_of(random_vlm, "materialise", image)
    _, output = kj.inference.encode.run_chunk(random_vlm, window, image, ("queries",))
    ours = queries_of(random_vlm, image, "replay")
    near(ours[:, : image.length], output.aux["queries"][:, : image.length])
    own = queries_of(random_vlm, image, "own")
    assert np.abs(np.asarray(own - ours)[:, : image.length]).max() > 1e-3


def test_media_alone_are_chosen_from_by_lookm(random_vlm, chunks, texts):
    image = chunks[1]
    small = kj.compress(random_vlm, image, "lookm:0.25").restore()
    assert small.codec == "lookm:0.25" and small.length == 2 + round(0.25 * (image.length - 2))
    rows = np.asarray(rows_of(small))
    full = np.full(len(small.positions[0]), -1, np.int32)
    full[: len(rows)] = rows
    wanted = merged(image.kv, full, image.length, heads=random_vlm.spec.heads, how="pivot")
    near(small.kv.rot, wanted.rot)
    near(small.kv.free, wanted.free)
    text = kj.compress(random_vlm, texts[0], "lookm:0.25").restore()
    assert text.keeps_all_rows and text.codec == "lookm:0.25"


@pytest.mark.parametrize("mode", MODES)
def test_a_window_has_the_rows_that_were_kept(random_vlm, chunks, mode):
    """Held against the chunks with these rows by hand."""
    name = "keydiff:0.5"
    ours = [kj.compress(random_vlm, chunk, name).restore() for chunk in chunks]
    theirs = [keep(chunk, rows_of(small)) for chunk, small in zip(chunks, ours, strict=True)]
    mine, other = (window_of(random_vlm, mode, *each) for each in (ours, theirs))
    near(kj.query(random_vlm, mine, QUESTION), kj.query(random_vlm, other, QUESTION), 1e-6)
    mine, other = (kj.recall(kj.slide(window), each[0], None, at=0) for window, each in ((mine, ours), (other, theirs)))
    near(kj.query(random_vlm, mine, QUESTION), kj.query(random_vlm, other, QUESTION), 1e-6)


@pytest.mark.parametrize("name", ["kvzip:0.5", "kvzip:0.5+merge:average", "keydiff:0.5+kivi:2", "lookm:0.5"])
def test_a_patch_gives_the_rows_of_full_prefill(random_vlm, chunks, name):
    """Of full rank; where rows took in others, it is what full prefill's rows make of the same rule."""
    first, second = chunks[:2]
    served = kj.compress(random_vlm, second, name).restore()
    assert served.codec == name
    patch = kj.form_patch(random_vlm, served, antecedents=[first], rank=1000)
    assert patch.codec == name and patch.length == served.length
    before = kj.prefill(random_vlm, [first], capacity=128)
    conditioned = kj.inference.encode.run_chunk(random_vlm, before, second)[0].kv
    rows = np.full(served.kv.rot.shape[1], -1, np.int32)
    rows[: served.length] = rows_of(served)
    if "merge" in name or "lookm" in name:
        how = "average" if "average" in name else "pivot"
        wanted = merged(conditioned, rows, second.length, heads=random_vlm.spec.heads, how=how)
    else:
        wanted = jax.tree.map(lambda leaf: leaf[:, rows], conditioned)
    patched = kj.patch.apply(served.kv, patch.factors)
    for ours, theirs in zip(jax.tree.leaves(patched), jax.tree.leaves(wanted), strict=True):
        near(ours[:, : served.length], np.asarray(theirs)[:, : served.length])
    window = window_of(random_vlm, "materialise", first)
    kj.append(window, served, patch)
    other = kj.compress(random_vlm, second, "leverage:0.5").restore()
    with pytest.raises(PatchMismatchError, match="they stand for other tokens"):
        kj.append(window, other, patch)


def test_a_library_keeps_chosen_rows(random_vlm, chunks, tmp_path):
    image = chunks[1]
    name = "kvzip:0.5+merge:pivot"
    small = kj.compress(random_vlm, image, name).restore()
    packed = kj.compress(random_vlm, image, f"{name}+kivi:4")
    with kj.ChunkLibrary.open(tmp_path / "library", mode="a") as library:
        library.put(small, storage="kivi:4")
        back = library.get(image.key)
        with pytest.raises(CodecError, match="takes its model"):
            library.put(chunks[0], storage="kvzip:0.5")
        with pytest.raises(CodecError, match="kamera_jax.compress"):
            library.put(chunks[0], storage=f"{name}+kivi:4")
    assert back == packed.restore() and back.codec == f"{name}+kivi:4" == packed.codec
    assert rows_of(back) == rows_of(small) and int(back.source.length) == image.length
    near(back.kv.rot, packed.restore().kv.rot)
    patch = kj.form_patch(random_vlm, back, antecedents=[chunks[0]], rank=2)
    assert patch.length == small.length
    assert packed.nbytes < 0.5 * small.nbytes


def test_in_sixteen_bits(random_vlm_bf16, items):
    image = kj.encode(random_vlm_bf16, items[1])
    small = kj.compress(random_vlm_bf16, image, "kvzip:0.5+merge:weighted+saw:4").restore()
    assert small.kv.rot.dtype == jnp.bfloat16 and small.length == round(0.5 * image.length)
    assert np.isfinite(np.asarray(small.kv.free, np.float32)).all()


@pytest.mark.soak
@pytest.mark.parametrize("attention", ["gqa", "mla", "mha"])
def test_every_attention(attention):
    vlm = load(f"kamera-tiny-{attention}")
    image = kj.encode(vlm, np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8))
    for name in (*NAMES, "kvzip:0.5+merge:values", "lookm:0.5"):
        small = kj.compress(vlm, image, name).restore()
        assert small.length < image.length and np.isfinite(np.asarray(small.kv.free)).all()
        patch = kj.form_patch(vlm, small, antecedents=[image], rank=4)
        assert np.isfinite(kj.query(vlm, kj.append(window_of(vlm, "materialise", image), small, patch), QUESTION)).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kvzip", "needs a share of rows above 0 and of 1 at most, as in kvzip:0.5"),
        ("kvzip:0", "needs a share of rows"),
        ("keydiff:1.5", "needs a share of rows"),
        ("kvzip:nan", "needs a share of rows"),
        ("kvzip:0.5:large", "options that kvzip does not know; it has none"),
        ("knorm:0.5:middle", "there are small, large"),
        ("merge:pivot", "nothing to merge"),
        ("merge:pivot+kivi:4", "nothing to merge"),
        ("kvzip:0.5+merge:pivots", "did you mean merge:pivot"),
        ("lookm:0.5+merge:pivot", "lookm merges by pivot itself"),
        ("kivi:4+kvzip:0.5", "cannot stand behind"),
        ("kvzip:0.5+keydiff:0.5", "cannot stand behind"),
        ("kvzp:0.5", "did you mean kvzip"),
    ],
)
def test_names_that_cannot_be(random_vlm, chunks, name, message):
    with pytest.raises(CodecError, match=message):
        kj.compress(random_vlm, chunks[0], name)


def test_chunks_of_which_no_rows_are_chosen(random_vlm, chunks, shared):
    small = kj.compress(random_vlm, chunks[1], "keydiff:0.5").restore()
    for chunk in (small, shared[0]):
        with pytest.raises(CodecError, match="compress the chunk as encoded"):
            kj.compress(random_vlm, chunk, "keydiff:0.5")
    with pytest.raises(MissingInputsError, match="without its source"):
        kj.compress(random_vlm, chunks[1].without_source(), "keydiff:0.5")
    with pytest.raises(CodecError, match="inside a JAX transformation"):
        jax.jit(lambda chunk: kj.compress(random_vlm, chunk, "keydiff:0.5"))(chunks[1])
    ambiguous = chunks[1].keeping(source=None)
    source = kj.Segment(
        chunks[1].source.inputs, jnp.zeros_like(chunks[1].positions), chunks[1].source.length, chunks[1].advance
    )
    ambiguous = chunks[1].keeping(positions=source.positions, source=source)
    with pytest.raises(CodecError, match="several tokens at one position"):
        kj.compress(random_vlm, ambiguous, "keydiff:0.5")


def test_a_model_that_does_not_say_its_queries():
    """Keys alone then choose."""
    vlm = toy.Toy()
    chunk = kj.encode(vlm, "a red star in a cell")
    small = kj.compress(vlm, chunk, "keydiff:0.5").restore()
    assert small.length == 10
    keys, _ = scores.heads_of(chunk.kv, vlm.spec.heads)
    worth = scores.one_choice(scores.key_difference(keys, chunk.length))
    assert rows_of(small) == sorted(np.argsort(-np.asarray(worth), kind="stable")[:10].tolist())
    with pytest.raises(BackboneError, match="queries"):
        kj.compress(vlm, chunk, "kvzip:0.5")
