"""Chunks of items that differ from earlier ones in a few tokens: what is run, what that gives, and its name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from benchmarks.renewal import flops
from eval.tiny import pages
from kamera_jax.errors import (
    BackboneError,
    DonatedError,
    MissingInputsError,
    MissingKeyError,
    ModelMismatchError,
    PreambleMismatchError,
    RenewalError,
)
from kamera_jax.forward import run
from kamera_jax.inference import renewing
from kamera_jax.inference.renewing import deviations, with_rows_run
from kamera_jax.kv import Segment
from models import load
from tests.kamera_jax.programs import compilations
from tests.kamera_jax.toy import Toy

REGION = (slice(1, 3), slice(4, 6))
"""Rows and columns of a page that change: four cells."""


def screens(seed=0):
    """A page, and the same page with other cells in a region."""
    rng = np.random.default_rng(seed)
    before = rng.integers(pages.BACKGROUNDS, pages.N_CELLS, (6, 10))
    after = before.copy()
    after[REGION] = rng.integers(pages.BACKGROUNDS, pages.N_CELLS, (2, 2))
    return before, after


def error(ours, theirs):
    return max(
        float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / np.linalg.norm(np.asarray(b)))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def one_by_one(vlm, chunk, segment, rows):
    """The oracle: each token alone, behind a window of all that stands before it, by public operations alone."""
    kv = chunk.kv
    for row in rows:
        window = kj.Window.empty(vlm, 256)
        base = window.next_position
        if row:
            window = kj.append(window, dataclasses.replace(chunk, kv=kv, length=int(row), source=None))
        inputs = {name: np.asarray(value)[row : row + 1] for name, value in segment.inputs.items()}
        place = np.asarray(segment.positions)[:, row : row + 1] + np.float32(base)
        fresh = run(vlm.params, Segment(inputs, place, np.int32(1)), window.state, forward=vlm.forward).kv
        kv = jax.tree.map(lambda old, new, row=row: old.at[:, row].set(new[:, 0]), kv, fresh)
    return kv


@pytest.fixture(scope="module", params=["gqa", "mla", "mha"])
def vlm(request):
    """One of each attention and rope: three axes in halves, one axis in pairs, one in halves."""
    return load(f"kamera-tiny-{request.param}")


@pytest.fixture(scope="module")
def pair(vlm):
    """The chunks of both pages, encoded."""
    return tuple(kj.encode(vlm, pages.render(cells)) for cells in screens())


@pytest.fixture(scope="module")
def renewed(vlm, pair):
    return kj.renew(vlm, pair[0], pages.render(screens()[1]), extra=0)


def test_with_all_rows_run_it_is_the_encoded_chunk(vlm, pair):
    """And what stood there before does not matter."""
    old, new = pair
    kv = with_rows_run(vlm, old, new.source, np.arange(old.length))
    assert error(kv, new.kv) < 1e-5
    assert not any(np.asarray(leaf)[:, old.length :].any() for leaf in jax.tree.leaves(kv))


def test_rows_that_changed_are_run_behind_what_is_kept(vlm, pair, renewed):
    old, new = pair
    media = np.flatnonzero(np.asarray(new.source.inputs["is_media"])[: new.length])
    grid = np.arange(len(media)).reshape(-1, 10)
    grid = grid[(len(grid) - 6) // 2 :]  # some towers see pages padded to a square
    wanted = media[grid[REGION].reshape(-1)]
    np.testing.assert_array_equal(renewed.rows, wanted)
    oracle = one_by_one(vlm, old, new.source, wanted)
    assert error(renewed.chunk.kv, oracle) < 1e-5
    kept = np.setdiff1d(np.arange(old.kv.rot.shape[1]), wanted)
    for ours, theirs in zip(jax.tree.leaves(renewed.chunk.kv), jax.tree.leaves(old.kv), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[:, kept], np.asarray(theirs)[:, kept])
    assert error(renewed.chunk.kv, new.kv) < error(old.kv, new.kv)
    assert renewed.deviations.shape == (old.length,) and (renewed.deviations[wanted] > 1).all()


def test_rows_of_largest_deviation_are_run_too(vlm, pair, renewed):
    """They are those that the second layer of an encoded chunk differs in; up to there all are as encoded."""
    old, new = pair
    more = kj.renew(vlm, old, pages.render(screens()[1]), extra=0.1)
    count = round(0.1 * old.length)
    changed = np.zeros(old.length)
    for a, b in zip(jax.tree.leaves(old.kv), jax.tree.leaves(new.kv), strict=True):
        changed += np.square(np.asarray(a[1], np.float64) - np.asarray(b[1], np.float64)).sum(-1)[: old.length]
    changed[renewed.rows] = -1
    wanted = np.union1d(renewed.rows, np.argsort(-changed)[:count])
    np.testing.assert_array_equal(more.rows, wanted)
    mixed = jax.tree.map(lambda a, b: a.at[:2].set(b[:2]), old.kv, new.kv)
    oracle = one_by_one(vlm, old.keeping(kv=mixed), new.source, wanted)
    assert error(more.chunk.kv, oracle) < 1e-5
    assert error(jax.tree.map(lambda leaf: leaf[:2], more.chunk.kv), jax.tree.map(lambda leaf: leaf[:2], new.kv)) < 1e-5
    assert error(more.chunk.kv, new.kv) < error(renewed.chunk.kv, new.kv)
    assert len({more.chunk.key, renewed.chunk.key, new.key, old.key}) == 4
    assert more.flops > renewed.flops > 0


def test_its_name_is_no_encoded_chunk_s(vlm, pair, renewed, tmp_path):
    old, new = pair
    chunk = renewed.chunk
    assert chunk.codec == f"renewed:{renewing.TOLERANCE!r}" and not renewed.exact
    assert chunk.content == new.content and chunk.key not in (old.key, new.key)
    assert chunk.preamble == old.preamble and not chunk.conditioned and chunk.keeps_all_rows
    again = kj.renew(vlm, old, pages.render(screens()[1]), extra=0)
    assert again.chunk == chunk
    assert renewed.made_from == old.key and old.key[:12] in renewed.note and "approximate" in renewed.note
    assert f"{len(renewed.rows)} of {old.length} tokens" in renewed.note
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put(chunk, origin=kj.Origin("screen.png", note=renewed.note))
        lib.put(chunk, storage="exact")
        assert not lib.has(new.key) and lib.find(new.key) is None
        back = lib.get(chunk.key)
        assert back == chunk and back.codec == chunk.codec
        assert error(back.kv, chunk.kv) == 0
        assert lib.info(chunk.key).origin.note == renewed.note
    packed = kj.compress(vlm, chunk, "kivi:8")
    assert packed.codec == f"{chunk.codec}+kivi:8"


def test_a_full_rank_patch_gives_back_what_was_not_run(random_vlm, texts, make_image):
    """A patch is fitted to the rows that there are, so at full rank it is the item itself behind its antecedent."""
    after = make_image(4, 5)
    after[:28, :56] = 0
    part = kj.renew(random_vlm, kj.encode(random_vlm, make_image(4, 5)), after, extra=0)
    assert len(part.rows) == 2
    patch = kj.form_patch(random_vlm, part.chunk, antecedents=texts[:1], rank=1000)
    assert patch.codec == part.chunk.codec and patch.chunk == part.chunk.key
    window = kj.append(kj.append(kj.Window.empty(random_vlm, 128), texts[0]), part.chunk, patch)
    wanted = kj.prefill(random_vlm, [texts[0], after])
    assert error(*(kj.query(random_vlm, each, "what colour is it?") for each in (window, wanted))) < 1e-5


def test_an_item_that_did_not_change_is_the_chunk_itself(vlm, pair):
    before, _ = screens()
    same = kj.renew(vlm, pair[0], pages.render(before), tolerance=0, extra=0.5)
    assert same.chunk is pair[0] and same.exact and not len(same.rows) and "nothing had changed" in same.note


def test_within_the_tolerance_the_old_rows_stay(vlm, pair):
    loose = kj.renew(vlm, pair[0], pages.render(screens()[1]), tolerance=100, extra=0)
    assert not len(loose.rows) and not loose.exact
    assert error(loose.chunk.kv, pair[0].kv) == 0
    assert loose.chunk.key not in (pair[0].key, pair[1].key) and loose.chunk.content == pair[1].content


def test_where_most_changed_the_item_is_encoded(vlm, pair):
    other = pages.render(screens(seed=5)[0])
    whole = kj.renew(vlm, pair[0], other, extra=0.5)
    wanted = kj.encode(vlm, other)
    assert whole.exact and whole.chunk == wanted and len(whole.rows) == wanted.length
    assert error(whole.chunk.kv, wanted.kv) == 0 and "encoded" in whole.note
    most = kj.renew(vlm, pair[0], pages.render(screens()[1]), extra=1)
    assert most.exact and most.chunk == pair[1]


def test_renewed_chunks_are_renewed(vlm, pair, renewed):
    before, after = screens()
    third = after.copy()
    third[5, 9] = pages.fact(0, 0)
    chain = kj.renew(vlm, renewed.chunk, pages.render(third), extra=0)
    assert len(chain.rows) == 1 and chain.made_from == renewed.chunk.key
    oracle = one_by_one(vlm, renewed.chunk, vlm.prepare(pages.render(third)), chain.rows)
    assert error(chain.chunk.kv, oracle) < 1e-5
    back = kj.renew(vlm, renewed.chunk, pages.render(before))
    assert back.chunk.key != pair[0].key and not back.exact


def test_a_chunk_behind_nothing_is_renewed_behind_nothing(random_vlm, make_image):
    images = [make_image(4, 5), make_image(4, 5)]
    images[1][:28, :28] = 0
    old, new = (kj.encode(random_vlm, image, preamble=None) for image in images)
    kv = with_rows_run(random_vlm, old, new.source, np.arange(old.length))
    assert error(kv, new.kv) < 1e-5
    part = kj.renew(random_vlm, old, images[1], extra=0)
    assert len(part.rows) == 1 and part.chunk.preamble is None
    whole = kj.renew(random_vlm, old, images[1], extra=1)
    assert whole.chunk == new and error(whole.chunk.kv, new.kv) == 0


def test_a_word_of_a_text(random_vlm, texts):
    """Token ids have no distance: another token always counts."""
    part = kj.renew(random_vlm, texts[0], "the cell is red", tolerance=1000)
    np.testing.assert_array_equal(part.rows, [1])
    assert part.deviations[1] == np.inf and not part.deviations[[0, 2, 3]].any()
    oracle = one_by_one(random_vlm, texts[0], texts[3].source, [1])
    assert error(part.chunk.kv, oracle) < 1e-5


def test_half_precision(random_vlm_bf16, make_image):
    images = [make_image(4, 5), make_image(4, 5)]
    images[1][:28, :28] = 0
    old, new = (kj.encode(random_vlm_bf16, image) for image in images)
    kv = with_rows_run(random_vlm_bf16, old, new.source, np.arange(old.length))
    assert kv.rot.dtype == jnp.bfloat16
    assert error(kv, new.kv) < 2**-7


def test_deviations_are_shares_of_lengths():
    rng = np.random.default_rng(3)
    media = rng.standard_normal((16, 8)).astype(np.float32)
    deep = rng.standard_normal((16, 2, 8)).astype(np.float32)
    deep[4] = 0
    inputs = {"tokens": np.arange(16, dtype=np.int32), "media": media, "deep": deep}
    other = {name: value.copy() for name, value in inputs.items()}
    other["tokens"][0] = 99
    other["media"][1] *= 1.25
    other["deep"][2, 1] *= 1.5
    other["media"][2] *= 1.25
    other["media"][3] = np.nan
    other["deep"][4, 1] = 1
    place = np.zeros((1, 16), np.float32)
    found = deviations(*(Segment(each, place, np.int32(6)) for each in (inputs, other)))
    np.testing.assert_allclose(found, [np.inf, 0.25, 0.5, np.inf, np.inf, 0], rtol=1e-6)


def test_one_program_for_counts_of_a_bucket(random_vlm, make_image):
    image = make_image(8, 8)
    old = kj.encode(random_vlm, image)

    def renewed(cells):
        changed = image.copy()
        changed[:28, : 28 * cells] = 255 - changed[:28, : 28 * cells]
        return kj.renew(random_vlm, old, changed, extra=0.05)

    renewed(2)
    with compilations() as seen:
        assert [len(renewed(cells).rows) for cells in (3, 5, 8)] == [6, 8, 11]
    assert not seen


def test_it_takes_fewer_flops(random_vlm, make_image):
    """As compiled: 16 of 128 rows, each behind as many slots as there are."""
    chunk = kj.encode(random_vlm, make_image(8, 8))
    ratio = flops(random_vlm, chunk, 5) / flops(random_vlm, chunk, chunk.length)
    assert 0.1 < ratio < 0.2


def test_what_cannot_be_renewed_is_named(random_vlm, chunks, texts, make_image, random_vlm_bf16):
    chunk = chunks[0]
    image = make_image(2, 3, seed=9)
    turn = kj.generate(random_vlm, kj.Window.empty(random_vlm, 128), "page", max_new_tokens=1).window.entries[-1].chunk
    beside = kj.prefill(random_vlm, [texts[0], image]).entries[1].chunk
    several = kj.encode(random_vlm, kj.Video(np.stack([make_image(2, 3)] * 4), [0.0, 0.5, 1.0, 1.5]))
    donated = chunk.copied()
    jax.tree.map(lambda leaf: leaf.delete(), donated.kv)
    cases = {
        "another size": (chunk, make_image(3, 3), RenewalError, "8 tokens and takes .* and the item has 11"),
        "another grid": (chunk, make_image(3, 2), RenewalError, "at other positions, as in another grid"),
        "a text": (chunk, "red " * 8, RenewalError, "encode this one"),
        "packed": (kj.compress(random_vlm, chunk, "int8").restore(), image, RenewalError, "has codec 'int8'"),
        "chosen rows": (kj.compress(random_vlm, chunk, "knorm:0.5").restore(), image, RenewalError, "'knorm:0.5'"),
        "shared": (kj.share_rows(random_vlm, several), image, RenewalError, "has codec 'shared:0.95'"),
        "conditioned": (beside, image, RenewalError, "conditioned on other chunks"),
        "a turn": (turn, "x", RenewalError, "is a turn"),
        "no source": (chunk.without_source(), image, MissingInputsError, "kept without its source"),
        "no key": (jax.tree.map(lambda leaf: leaf, chunk), image, MissingKeyError, "without a key"),
        "another preamble": (chunk.keeping(preamble="0" * 64), image, PreambleMismatchError, "another|after preamble"),
        "donated": (donated, image, DonatedError, "was donated"),
    }
    for name, (given, item, kind, match) in cases.items():
        with pytest.raises(kind, match=match):
            kj.renew(random_vlm, given, item)
            pytest.fail(name)
    with pytest.raises(ModelMismatchError, match="dtype"):
        kj.renew(random_vlm_bf16, chunk, image)
    with pytest.raises(ModelMismatchError, match="encode it with this window's model"):
        kj.renew(load("kamera-tiny-mla"), chunk, image)
    with pytest.raises(BackboneError, match="fills_slots = True"):
        kj.renew(Toy(), kj.encode(Toy(), "abc"), "abd")
    for wrong in ({"tolerance": -1}, {"extra": -0.1}, {"extra": 1.5}, {"extra": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kj.renew(random_vlm, chunk, image, **wrong)
    with pytest.raises(RenewalError, match="inside a JAX transformation"):
        jax.jit(lambda given: kj.renew(random_vlm, given, image).chunk.kv)(chunk)


def test_a_model_that_is_not_cut_runs_no_extra_rows(make_image):
    class Whole(Toy):
        fills_slots = True

    toy = Whole()
    toy.spec = dataclasses.replace(toy.spec, layers=3)
    with pytest.raises(BackboneError, match="is not cut off after 2"):
        renewing._leading(toy)
