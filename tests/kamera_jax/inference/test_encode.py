"""Rungs 3, 5 and 6 on a random model: relocation, full-rank and rank-m patches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import rope
from kamera_jax.errors import ModelMismatchError
from kamera_jax.forward import run
from kamera_jax.record import Record
from kamera_jax.window import reuse
from tests import oracles

QUESTION = "what colour is the cell ?"


def rows(kv, start=0, stop=None):
    return np.asarray(kv.features, np.float64)[:, start:stop]


@pytest.mark.parametrize("base", [0.0, 1.0, 37.0, 250.0])
@pytest.mark.parametrize("item", [0, 2], ids=["image", "text"])
def test_a_chunk_encoded_alone_is_the_chunk_run_anywhere(random_vlm, items, item, base):
    vlm = random_vlm
    chunk = kj.encode(random_vlm, items[item], preamble=None)
    there = chunk.source.at(base)
    output = run(vlm.params, there, None, forward=vlm.forward)
    rot, free = reuse.relocate(chunk.kv, None, there.positions, chunk.length, vlm.spec.rope)
    heads = output.kv.rot.reshape(*output.kv.rot.shape[:2], vlm.spec.heads, -1)
    rotated = jnp.stack([rope.rotate(layer, there.positions, vlm.spec.rope) for layer in heads]).reshape(rot.shape)
    n = chunk.length
    assert oracles.relative(rot[:, :n], rotated[:, :n]).max() <= 1e-5
    assert oracles.relative(rows(chunk.kv, 0, n), rows(output.kv, 0, n)).max() <= 1e-5
    assert oracles.relative(free[:, :n], output.kv.free[:, :n]).max() <= 1e-5


@pytest.mark.parametrize("item", [0, 1, 2])
def test_canonical_kv_is_that_after_the_preamble(random_vlm, chunks, whole, item):
    chunk = chunks[item]
    kv, _ = whole(random_vlm, random_vlm.preamble, chunk.source)
    start = int(random_vlm.preamble.length)
    assert oracles.relative(rows(chunk.kv, 0, chunk.length), rows(kv, start)).max() <= 1e-5
    assert (np.asarray(chunk.kv.features)[:, chunk.length :] == 0).all()


def test_a_chunk_says_what_it_is(random_vlm, chunks, items):
    spec = random_vlm.spec
    image, _, text = chunks
    assert (image.length, image.advance) == (2 * 3 + 2, 3 + 2)
    assert text.length == text.advance == 9
    for chunk in chunks:
        assert chunk.model == spec.fingerprint and chunk.antecedents == ()
        assert chunk.kv.rot.shape == (spec.layers, 16, spec.rot_dim)
        assert chunk.nbytes == chunk.length * spec.token_bytes
    again = kj.encode(random_vlm, items[0].copy())
    alone = kj.encode(random_vlm, items[0], preamble=None)
    assert again.key == image.key and (again.kv.rot == image.kv.rot).all()
    assert len({chunk.key for chunk in chunks} | {alone.key}) == 4 and alone.preamble is None


def test_prefill_equals_one_forward(random_vlm, items, chunks, whole):
    window = kj.prefill(random_vlm, items)
    kv, _ = whole(random_vlm, random_vlm.preamble, *(chunk.source for chunk in chunks))
    start = int(random_vlm.preamble.length)
    for entry in window.entries:
        stop = start + entry.chunk.length
        given = rows(entry.chunk.kv, 0, entry.chunk.length)
        assert oracles.relative(given, rows(kv, start, stop)).max() <= 1e-5
        start = stop


def test_a_prefilled_windows_chunks_are_marked_and_reusable(random_vlm, items, chunks, build):
    window = kj.prefill(random_vlm, [items[0], chunks[1], items[2]], capacity=128)
    seen = ()
    for entry, canonical in zip(window.entries, chunks, strict=True):
        assert entry.chunk.antecedents == seen and entry.patch is None
        # After nothing but the preamble, conditioned and canonical are one.
        assert (entry.chunk.key == canonical.key) == (not seen)
        seen += (entry.chunk.key,)
    again = build(*((entry.chunk, None) for entry in window.entries))
    assert (kj.query(random_vlm, again, QUESTION) == kj.query(random_vlm, window, QUESTION)).all()
    with pytest.raises(ValueError, match="conditioned on 1 chunks"):
        kj.form_patch(random_vlm, window.entries[1].chunk, antecedents=[chunks[0]])


def states(window):
    valid = np.asarray(window.state.valid)
    return np.concatenate([np.asarray(x)[:, valid] for x in (window.state.rot, window.state.free)], -1)


def test_full_rank_patches_give_back_full_prefill(random_vlm, items, patched, blind):
    full = kj.prefill(random_vlm, items, capacity=patched.capacity)
    assert oracles.relative(states(patched), states(full)).max() <= 1e-5
    logits = [np.asarray(kj.query(random_vlm, window, QUESTION))[None] for window in (patched, full, blind)]
    assert oracles.relative(logits[0], logits[1]).max() <= 1e-5
    # The other way round this would hold of windows that say nothing.
    assert oracles.relative(logits[2], logits[1]).max() > 1e-2


def test_full_rank_patches_give_back_full_prefill_in_bf16(random_vlm_bf16, items):
    vlm = random_vlm_bf16
    chunks = [kj.encode(vlm, item) for item in items]
    assert chunks[0].kv.rot.dtype == jnp.bfloat16
    # One capacity: with another shape the forward itself rounds otherwise, by more than the patch may.
    full = kj.prefill(vlm, items, capacity=128)
    for i, entry in enumerate(full.entries):
        before = kj.prefill(vlm, items[:i], capacity=128)
        patch = kj.form_patch(vlm, chunks[i], context=before, rank=1000)
        given = rows(kj.patch.apply(chunks[i].kv, patch.factors), 0, chunks[i].length)
        assert oracles.relative(given, rows(entry.chunk.kv, 0, chunks[i].length)).max() <= 2.0**-8


def test_residual_falls_with_the_rank(random_vlm, items, chunks):
    full = kj.prefill(random_vlm, items[:2]).entries[1].chunk
    n = chunks[1].length
    errors = []
    residuals = []
    for rank in (1, 2, 4, 8, 1000):
        patch = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], rank=rank)
        given = rows(kj.patch.apply(chunks[1].kv, patch.factors), 0, n)
        errors.append(oracles.relative(given, rows(full.kv, 0, n)))
        residuals.append(np.asarray(patch.residual))
    # The first layer's KV knows nothing of other tokens, so nothing is left to restore there.
    assert (np.array(errors)[:, 0] == 0).all() and (np.array(residuals)[:, 0] == 0).all()
    assert (np.diff(errors, axis=0)[:, 1:] < 0).all() and (np.diff(residuals, axis=0)[:, 1:] < 0).all()
    assert residuals[-1].max() < 1e-10


def test_both_forms_agree(random_vlm, chunks, build):
    exact = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], rank=1000)
    onto = kj.form_patch(random_vlm, chunks[1], context=build((chunks[0], None)), rank=1000)
    assert exact.antecedents == onto.antecedents == (chunks[0].key,)
    assert (exact.chunk, exact.model) == (onto.chunk, onto.model) == (chunks[1].key, chunks[1].model)
    given, wanted = (rows(kj.patch.apply(chunks[1].kv, patch.factors)) for patch in (onto, exact))
    assert oracles.relative(given, wanted).max() <= 1e-5
    np.testing.assert_allclose(onto.mass, exact.mass, rtol=0, atol=1e-5)


def test_the_second_form_sees_the_window_as_it_stands(random_vlm, chunks, patches, patched, build):
    a, b, c = zip(chunks, patches, strict=True)
    window = build(a, b)
    full_rank = kj.form_patch(random_vlm, c[0], context=window, rank=1000)
    given, wanted = (rows(kj.patch.apply(c[0].kv, patch.factors)) for patch in (full_rank, patches[2]))
    assert oracles.relative(given, wanted).max() <= 1e-5
    unpatched = kj.form_patch(random_vlm, c[0], context=build(a, (b[0], None)), rank=1000)
    assert oracles.relative(rows(kj.patch.apply(c[0].kv, unpatched.factors)), wanted).max() > 1e-3


@pytest.mark.parametrize("n", [0, 1, 2])
def test_mass_is_shared_out_among_antecedents_preamble_and_the_chunk(random_vlm, chunks, n):
    patch = kj.form_patch(random_vlm, chunks[2], antecedents=chunks[:n], rank=1)
    assert patch.mass.shape == (random_vlm.spec.layers, n + 2) and (patch.mass > 0).all()
    np.testing.assert_allclose(patch.mass.sum(-1), 1.0, rtol=0, atol=1e-5)
    if not n:
        assert (patch.factors.ranks == 0).all() and patch.nbytes == 0


def test_energy_and_bytes_choose_the_rank(random_vlm, chunks):
    form = {"antecedents": chunks[:1]}
    for energy in (0.5, 0.95):
        patch = kj.form_patch(random_vlm, chunks[1], energy=energy, **form)
        fewer = kj.patch.truncate(patch.factors, int(patch.factors.ranks.max()) - 1)
        assert (patch.residual <= 1 - energy + 1e-5).all() and kj.patch.nbytes(fewer, patch.length) < patch.nbytes
    most = chunks[1].nbytes // 8
    features = random_vlm.spec.rot_dim + random_vlm.spec.free_dim
    for int8, one in ((None, chunks[1].length + features + 4), (False, 4 * (chunks[1].length + features))):
        patch = kj.form_patch(random_vlm, chunks[1], max_bytes=most, int8=int8, **form)
        assert (patch.factors.scale is None) == (int8 is False)
        assert patch.nbytes == int(patch.factors.ranks.sum()) * one and most - one < patch.nbytes <= most
    with pytest.raises(ValueError, match=f"max_bytes={one - 1} is below one component of this chunk, {one} bytes"):
        kj.form_patch(random_vlm, chunks[1], max_bytes=one - 1, int8=False, **form)


def test_a_patch_takes_a_tenth_of_its_chunk_by_default(random_vlm, chunks):
    default = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1])
    same = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], max_bytes=chunks[1].nbytes // 10)
    assert 0.08 * chunks[1].nbytes < default.nbytes <= 0.1 * chunks[1].nbytes
    assert default.factors.u.dtype == jnp.int8 and (default.factors.ranks == same.factors.ranks).all()
    assert default.factors.ranks[0] == 0 and (np.asarray(default.residual)[1:] > 0).all()


def test_one_prefill_forms_the_patches_of_its_chunks(random_vlm, items, chunks):
    given = [chunks[0], items[1], chunks[2]]
    window, patches = kj.form_patches(random_vlm, given, capacity=128, rank=1000)
    full = kj.prefill(random_vlm, items, capacity=128)
    assert len(window.entries) == 3 and (states(window) == states(full)).all()
    # The first changes nothing, the second was never encoded alone, and the third stands behind what the window has.
    assert patches[1] is None and (patches[0].factors.ranks == 0).all() and patches[0].antecedents == ()
    assert patches[2].antecedents == (chunks[0].key, window.keys[1])
    alone = kj.form_patch(random_vlm, chunks[2], context=kj.prefill(random_vlm, items[:2], capacity=128), rank=1000)
    n = chunks[2].length
    given, wanted = (rows(kj.patch.apply(chunks[2].kv, patch.factors), 0, n) for patch in (patches[2], alone))
    assert oracles.relative(given, wanted).max() <= 1e-5
    np.testing.assert_allclose(patches[2].mass, alone.mass, rtol=0, atol=1e-5)
    # Kept as it is, and with the patch: full prefill again.
    again = kj.append(kj.Window.empty(random_vlm, 128), chunks[0], patches[0])
    again = kj.append(kj.append(again, window.entries[1].chunk), chunks[2], patches[2])
    assert patches[2].match(again.keys[:2]) is kj.Match.EXACT
    assert oracles.relative(states(again), states(full)).max() <= 1e-5


def test_a_window_of_patches_refuses_what_a_patch_would(random_vlm, random_vlm_bf16, chunks, items):
    conditioned = kj.prefill(random_vlm, items[:2]).entries[1].chunk
    with pytest.raises(ValueError, match="conditioned on 1 chunks"):
        kj.form_patches(random_vlm, [chunks[0], conditioned])
    with pytest.raises(ValueError, match="one of rank, energy and max_bytes"):
        kj.form_patches(random_vlm, chunks, rank=2, energy=0.5)
    with pytest.raises(ModelMismatchError):
        kj.form_patches(random_vlm_bf16, chunks)
    window, patches = kj.form_patches(random_vlm, [])
    assert window.keys == () and patches == ()


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_int8_patches_stand_in_windows_as_the_floats_they_mean(random_vlm, chunks, mode):
    patch = kj.form_patch(random_vlm, chunks[1], antecedents=chunks[:1], rank=6, int8=True)
    u, v = patch.factors.floats(jnp.float32)
    same = replace(patch, factors=kj.Factors(u, v, patch.factors.ranks))
    logits = []
    for each in (patch, same):
        window = kj.append(kj.Window.empty(random_vlm, 128, mode=mode), chunks[0])
        logits.append(kj.query(random_vlm, kj.append(window, chunks[1], each), QUESTION))
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-6)
    # And as one that was packed and unpacked.
    chunk, unpacked = Record.of(chunks[1], patch).unpacked()
    assert chunk.key == chunks[1].key and unpacked.nbytes == patch.nbytes
    leaves = [jax.tree.leaves(each.factors) for each in (patch, unpacked)]
    assert len(leaves[0]) == 4 and all((a == b).all() and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))
    bare = Record.of(chunks[1], same).unpacked()[1]
    assert bare.factors.scale is None and (bare.factors.u == u).all()


def test_match(patches):
    patch = replace(patches[1], antecedents=("a", "b"))
    assert patch.match(("a", "b")) is kj.Match.EXACT
    assert patch.match(("b", "a")) is kj.Match.PERMUTED
    assert patch.match(("a",)) is kj.Match.PARTIAL
    assert patch.match(("x", "b", "a")) is kj.Match.PARTIAL
    assert patch.match(()) is patch.match(("x",)) is kj.Match.MISS
