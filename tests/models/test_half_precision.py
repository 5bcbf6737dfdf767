"""A checkpoint stored in float16, as LLaVA-1.5's is: everything a window can do, held against the same weights in f32.

float16 rounds by 2⁻¹¹ and ends at 65504, so sums and scores have to be wider inside.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from models.blocks.attention import MASKED, grouped_attention
from models.blocks.layers import rms_norm
from models.blocks.vit import ACTIVATIONS, layer_norm
from tests.models import tiny_llava

WHOLE = 1000
"""A rank that leaves nothing out."""
KV = 2.0**-9
LOGITS = 2.0**-8
"""Relative errors (Frobenius) that three layers of float16 stay below; bfloat16, which rounds by 2⁻⁸, does not."""
QUESTION = "what colour is the star?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava.write(tmp_path_factory.mktemp("hub") / "half", np.float16, dtype="float16")


@pytest.fixture(scope="module")
def half(folder):
    vlm = load(folder)
    assert vlm.spec.dtype == "float16" and {leaf.dtype.name for leaf in jax.tree.leaves(vlm.params)} == {"float16"}
    return vlm


@pytest.fixture(scope="module")
def full(folder):
    return load(folder, dtype="f32")


def items():
    rng = np.random.default_rng(3)
    return [*(rng.integers(0, 256, (12, side, 3), np.uint8) for side in (20, 12)), "the page is red"]


def relative(given, expected):
    given, expected = (np.asarray(x).astype(np.float64) for x in (given, expected))
    assert np.isfinite(given).all()
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


def encoded(vlm):
    """Three chunks, each but the first with the patch that makes it what full prefill gives."""
    chunks = [kj.encode(vlm, item) for item in items()]
    patches = [
        kj.form_patch(vlm, chunk, antecedents=chunks[:i], rank=WHOLE) if i else None for i, chunk in enumerate(chunks)
    ]
    return chunks, patches


@pytest.fixture(scope="module")
def both(half, full):
    return encoded(half), encoded(full)


def test_chunks_and_patches_are_those_of_f32(both):
    (chunks, patches), (wide, wide_patches) = both
    for chunk, other in zip(chunks, wide, strict=True):
        assert chunk.kv.rot.dtype == chunk.kv.free.dtype == jnp.float16 and chunk.nbytes * 2 == other.nbytes
        for name in ("rot", "free"):
            assert relative(getattr(chunk.kv, name), getattr(other.kv, name)) <= KV
    for chunk, patch, other, wide_patch in zip(chunks, patches, wide, wide_patches, strict=True):
        if patch is not None:
            assert patch.factors.u.dtype == patch.factors.v.dtype == jnp.float16
            ours = kj.patch.apply(chunk.kv, patch.factors)
            theirs = kj.patch.apply(other.kv, wide_patch.factors)
            assert relative(ours.features, theirs.features) <= KV


def windows(vlm, encoding, mode):
    """A window and what changes make of it, by name."""
    chunks, patches = encoding
    window = kj.Window.empty(vlm, 128, mode=mode)
    for chunk, patch in zip(chunks, patches, strict=True):
        window = kj.append(window, chunk, patch)
    slid = kj.slide(window, drop=1)
    return {
        "appended": window,
        "reordered": kj.reorder(window, [1, 2, 0]),
        "slid": slid,
        "recalled": kj.recall(slid, chunks[0], None, at=0),
        "replaced": kj.replace(window, 1, chunks[0], None),
    }


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_every_change_of_a_window_answers_as_in_f32(half, full, both, mode):
    ours, theirs = (windows(vlm, each, mode) for vlm, each in zip((half, full), both, strict=True))
    for name, window in ours.items():
        logits = kj.query(half, window, QUESTION)
        assert logits.dtype == jnp.float32
        assert relative(logits, kj.query(full, theirs[name], QUESTION)) <= LOGITS, name


def test_in_place_answers_as_materialised(half, both):
    written, lying = (windows(half, both[0], mode) for mode in ("materialise", "in_place"))
    for name, window in written.items():
        assert relative(kj.query(half, lying[name], QUESTION), kj.query(half, window, QUESTION)) <= LOGITS, name


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_full_rank_patches_are_full_prefill(half, both, mode):
    window = windows(half, both[0], mode)["appended"]
    reference = kj.query(half, kj.prefill(half, both[0][0]), QUESTION)
    assert relative(kj.query(half, window, QUESTION), reference) <= LOGITS


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_answers_are_generated_and_kept(half, full, both, mode):
    answers = []
    for vlm, each in zip((half, full), both, strict=True):
        window = windows(vlm, each, mode)["appended"]
        answer = kj.generate(vlm, window, QUESTION, max_new_tokens=4)
        again = kj.query(vlm, answer.window, QUESTION)
        assert answer.window.entries[-1].chunk.kv.rot.dtype == jnp.dtype(vlm.spec.dtype)
        answers.append((answer.tokens, again))
    # Random weights: the first token is clear, and those that follow it need not be.
    assert answers[0][0][0] == answers[1][0][0]
    assert np.isfinite(np.asarray(answers[0][1])).all()


def test_patches_of_every_size_and_storage(half, both):
    """By energy, by bytes, int8 and of a context: each is a value in float16's range, and the more the better."""
    (chunks, _), _ = both
    window = kj.append(kj.Window.empty(half, 128), chunks[0])
    exact = kj.form_patch(half, chunks[1], antecedents=chunks[:1], rank=WHOLE)
    wanted = kj.patch.apply(chunks[1].kv, exact.factors).features
    for options in ({"energy": 0.999}, {"max_bytes": 10**6}, {"rank": 12, "int8": True}, {"rank": 12}):
        patch = kj.form_patch(half, chunks[1], antecedents=chunks[:1], **options)
        assert relative(kj.patch.apply(chunks[1].kv, patch.factors).features, wanted) <= 0.03, options
    formed = kj.form_patch(half, chunks[1], context=window, rank=WHOLE)
    assert relative(kj.patch.apply(chunks[1].kv, formed.factors).features, wanted) <= KV
    report = kj.verify(half, kj.append(window, chunks[1], formed), [QUESTION])
    assert report.ok and report.kl < 1e-4 and (report.kv_error <= 2 * KV).all()


def test_a_library_keeps_them_bit_for_bit_or_in_int8(half, both, tmp_path):
    (chunks, patches), _ = both
    library = kj.ChunkLibrary.open(tmp_path / "lib", mode="a")
    exact = library.put(chunks[0])
    rounded = library.put(chunks[1], storage="int8")
    key = library.put(patches[1])
    library.close()
    library = kj.ChunkLibrary.open(tmp_path / "lib")
    assert library.verify().ok
    again = library.get(exact)
    assert again.spec == half.spec and again.kv.rot.dtype == jnp.float16
    for name in ("rot", "free"):
        np.testing.assert_array_equal(getattr(again.kv, name), getattr(chunks[0].kv, name))
        near = getattr(library.get(rounded).kv, name)
        assert near.dtype == jnp.float16 and relative(near, getattr(chunks[1].kv, name)) <= 0.01
    patch = library.get_patch(key)
    for name in ("u", "v"):
        np.testing.assert_array_equal(getattr(patch.factors, name), getattr(patches[1].factors, name))
    together = [stacked for pack in library.packs() for stacked in library.restore(pack)]
    restored = {stacked.keys[row]: stacked.chunk(row) for stacked in together for row in range(len(stacked.keys))}
    assert restored.keys() == {exact, rounded} and {each.kv.rot.dtype.name for each in restored.values()} == {"float16"}
    np.testing.assert_array_equal(restored[exact].kv.rot, chunks[0].kv.rot)
    window = kj.append(kj.append(kj.Window.empty(half, 64, mode="in_place"), again), library.get(rounded), patch)
    assert np.isfinite(np.asarray(kj.query(half, window, QUESTION))).all()


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_session_goes_on_where_it_was_saved(half, tmp_path, mode):
    session = kj.Session(half, capacity=128, mode=mode)
    keys = [session.add(item) for item in items()]
    session.ask(QUESTION, max_new_tokens=3)
    session.save(tmp_path / "session")
    again = kj.Session.restore(half, tmp_path / "session")
    np.testing.assert_array_equal(kj.query(half, again.window, QUESTION), kj.query(half, session.window, QUESTION))
    again.recall(keys[0])
    assert np.isfinite(np.asarray(kj.query(half, again.window, QUESTION))).all()


@pytest.mark.parametrize("name", ["kamera-tiny-gqa", "kamera-tiny-mla", "kamera-tiny-mha"])
@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_every_attention_runs_in_float16(name, mode):
    """GQA with M-RoPE, latent attention with experts, and MHA."""
    logits = []
    for dtype in ("fp16", "f32"):
        vlm = load(name, dtype=dtype)
        first = kj.encode(vlm, "a red star.")
        second = kj.encode(vlm, "a blue moon.")
        patch = kj.form_patch(vlm, second, antecedents=[first], rank=WHOLE)
        window = kj.append(kj.append(kj.Window.empty(vlm, 64, mode=mode), first), second, patch)
        logits.append(kj.query(vlm, window, QUESTION))
    assert relative(*logits) <= LOGITS


def test_norms_square_in_f32():
    """300² is beyond float16, and 1e-4² below it."""
    for size in (300.0, 6e4, 1e-4):
        x = jnp.asarray(size * np.random.default_rng(0).uniform(0.5, 1.0, (2, 64)), jnp.float16)
        wide = np.asarray(x, np.float64)
        ones = jnp.ones(64, jnp.float16)
        wanted = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-12)
        assert relative(rms_norm(x, ones, 1e-12), wanted) <= 2.0**-10
        centred = wide - wide.mean(-1, keepdims=True)
        wanted = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-12)
        assert relative(layer_norm({"w": ones, "b": 0 * ones}, x, 1e-12), wanted) <= 2.0**-10


def test_scores_are_f32():
    """A score of 250000, and a mask of -1e30, are beyond float16."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(scale * rng.uniform(0.5, 1, (5, 2, 64)), jnp.float16) for scale in (100, 100, 1))
    mask = jnp.tril(jnp.ones((5, 5), bool))
    out, probabilities, lse = grouped_attention(q, k, v, mask, 1.0)
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    scores = np.where(mask[None], np.einsum("qnd,snd->nqs", *wide[:2]), MASKED)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    assert scores.max() > 65504 and lse.dtype == probabilities.dtype == jnp.float32
    assert relative(out.reshape(5, 2, 64), np.einsum("nqs,snd->qnd", weights, wide[2])) <= 2.0**-10


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_stay_finite_to_the_end_of_float16(name):
    x = jnp.asarray([-65504, -300, -45, -2, 2, 45, 300, 65504], jnp.float16)
    wanted = np.asarray(ACTIVATIONS[name](x.astype(jnp.float32)))
    np.testing.assert_allclose(np.asarray(ACTIVATIONS[name](x), np.float32), wanted, rtol=2.0**-9, atol=1e-3)
