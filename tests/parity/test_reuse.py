"""Rungs 3 to 6: chunks moved, reused blind and patched, against transformers run where they were moved to."""

import numpy as np
import pytest

import kamera_jax as kj
from models.blocks.attention import Latent
from tests.parity.oracle import (
    Run,
    assert_close,
    assert_prefilled,
    assert_same_positions,
    frobenius,
    window_kv,
)

pytestmark = pytest.mark.parity

CAPACITY = 128
QUESTION = "which colour is the cell on the page?"
CHUNKS = ["square", "wide", "tall", "dot", "odd", "two pages show the same glyph."]
PROMPTS = [("wide", "tall"), ("odd", "two pages show the same glyph.", "square"), ("the first is the last.", "dot")]


@pytest.fixture(params=PROMPTS, ids="+".join)
def prompt(pair, request):
    return pair.prompt(pair.items(request.param), QUESTION)


# Rung 3


def assert_equal_there(pair, name, base):
    """A name is an image's, a text, or a tuple of them: one chunk."""
    assert_items_equal_there(pair, pair.items([name]), base)


def assert_items_equal_there(pair, items, base):
    prompt = pair.prompt(items, QUESTION)
    span = prompt.spans[1]
    positions = prompt.positions[:, span] - prompt.positions[:, span.start][:, None]
    there = pair.run(prompt.ids[span], positions + base, prompt.media)
    chunk = kj.encode(pair.vlm, prompt.items[0], preamble=None)
    assert_same_positions(chunk.positions[:, : chunk.length], positions)
    assert_close(pair.rotated(chunk.kv, chunk.positions + base)[:, : chunk.length], there.rot, layers=True)
    assert_close(np.asarray(chunk.kv.free)[:, : chunk.length], there.free, layers=True)


@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_encoded_alone_and_rotated_equals_hf_there(pair, name):
    assert_equal_there(pair, name, 37)


@pytest.mark.parametrize("base", [1000, 100_000])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_rotated_far_equals_hf_there(far_pair, name, base):
    assert_equal_there(far_pair, name, base)


# Rung 4


def blind_hf(prompt, preamble):
    """transformers under a mask that hides the other chunks from each chunk; the tail sees all.

    A chunk encoded with ``preamble=None`` saw nothing before it, so here it sees itself alone.

    A canonical chunk saw the preamble right before it, and keeps that KV where the window puts it, farther from the
    preamble at slot 0. Attention sees relative positions only, so each chunk gets a copy of the preamble of its own,
    right before the place where it stands now, which nothing else sees: that gives the canonical KV, rotated, exactly.

    Returns the run without the copies.
    """
    head, *chunks, tail = prompt.spans
    size = head.stop if preamble else 0
    order = [np.arange(head.stop)]
    positions = [prompt.positions[:, head]]
    owner = [0] * head.stop
    for i, chunk in enumerate(chunks, start=1):
        start = prompt.positions[:, chunk.start][:, None]
        order += [np.arange(size), np.arange(chunk.start, chunk.stop)]
        positions += [prompt.positions[:, :size] + start - size, prompt.positions[:, chunk]]
        owner += [-i] * size + [i] * (chunk.stop - chunk.start)
    order.append(np.arange(tail.start, tail.stop))
    positions.append(prompt.positions[:, tail])
    owner = np.array(owner + [len(chunks) + 1] * (tail.stop - tail.start))

    ghost = owner < 0
    row = owner[:, None]
    column = owner[None, :]
    sees = (abs(row) == abs(column)) | (row == len(chunks) + 1) & (column >= 0)
    mask = sees & np.tri(len(owner), dtype=bool)
    ids = prompt.ids[np.concatenate(order)]
    positions = np.concatenate(positions, axis=1)
    run = prompt.pair.run(ids, positions, prompt.media, mask=mask)
    return Run(run.logits[~ghost], run.rot[:, ~ghost], run.free[:, ~ghost])


def assert_blind_equals_hf(pair, prompt, preamble, capacity=CAPACITY):
    window = kj.Window.empty(pair.vlm, capacity)
    for item in prompt.items:
        window = kj.append(window, kj.encode(pair.vlm, item, preamble=preamble))
    tail = prompt.spans[-1]
    blind = blind_hf(prompt, preamble)
    rot, free = window_kv(window)
    assert_close(rot, blind.rot[:, : tail.start], layers=True)
    assert_close(free, blind.free[:, : tail.start], layers=True)
    assert_close(prompt.tail_logits(window), blind.logits[tail])
    assert_close(kj.query(pair.vlm, window, QUESTION), blind.logits[-1])
    # What the chunks do not see shows: the mask is no formality.
    assert np.abs(blind.logits[tail] - prompt.full.logits[tail]).max() > 1e-2


@pytest.mark.parametrize("preamble", ["pinned", None])
def test_blind_reuse_equals_hf_under_a_mask(pair, prompt, preamble):
    assert_blind_equals_hf(pair, prompt, preamble)


# Rung 5


def patched(vlm, items, form, capacity=CAPACITY):
    """A window of canonical chunks, each with the full-rank patch formed after those before it."""
    window = kj.Window.empty(vlm, capacity)
    chunks = []
    for item in items:
        chunk = kj.encode(vlm, item)
        before = {"antecedents": chunks, "context": window}[form]
        patch = kj.form_patch(vlm, chunk, **{form: before}, rank=10_000) if chunks else None
        window = kj.append(window, chunk, patch)
        chunks = [*chunks, chunk]
    return window


@pytest.mark.parametrize("form, names", [("antecedents", PROMPTS[0]), ("context", PROMPTS[1])])
def test_full_rank_patches_give_back_hf_s_prefill(pair, form, names):
    prompt = pair.prompt(pair.items(names), QUESTION)
    window = patched(pair.vlm, prompt.items, form)
    assert_prefilled(window, prompt)
    assert_close(kj.query(pair.vlm, window, QUESTION), prompt.full.logits[-1])


def test_full_rank_patches_give_back_the_prefill_in_bf16(pair, low):
    items = pair.items(("large", "wide"))
    reference = kj.prefill(low, items, capacity=CAPACITY)
    if isinstance(low.config.text.attention, Latent):
        # The form in which latents are attended to follows from the shapes, and the forms round differently; rounding
        # may send a token to other experts. So chunks are conditioned in the shapes of the reference, the first too.
        window = kj.Window.empty(low, CAPACITY)
        for i, item in enumerate(items):
            chunk = kj.encode(low, item)
            before = kj.prefill(low, items[:i], capacity=CAPACITY)
            window = kj.append(window, chunk, kj.form_patch(low, chunk, context=before, rank=10_000))
    else:
        window = patched(low, items, "antecedents")
    for ours, prefilled in zip(window_kv(window), window_kv(reference), strict=True):
        assert (frobenius(ours, prefilled) <= 2**-8).all()


# Rung 6


def test_the_residual_of_a_patch_falls_with_its_rank(pair):
    prompt = pair.prompt(pair.items(("wide", "tall")), QUESTION)
    chunks = [kj.encode(pair.vlm, item) for item in prompt.items]
    window = kj.Window.empty(pair.vlm, CAPACITY)
    span = prompt.spans[2]
    residuals = []
    errors = []
    for rank in (1, 2, 4, 10_000):
        patch = kj.form_patch(pair.vlm, chunks[1], antecedents=chunks[:1], rank=rank)
        assert patch.factors.ranks.max() <= rank
        residuals.append(np.asarray(patch.residual))
        rot, free = window_kv(kj.append(kj.append(window, chunks[0]), chunks[1], patch))
        given = np.concatenate([rot[:, span], free[:, span]], axis=-1)
        full = np.concatenate([prompt.full.rot[:, span], prompt.full.free[:, span]], axis=-1)
        errors.append(frobenius(given, full))
    # The first layer's KV knows nothing of other tokens, so nothing is left to restore there.
    assert not np.array(residuals)[:, 0].any()
    assert (np.diff(residuals, axis=0)[:, 1:] < 0).all() and (np.diff(errors, axis=0)[:, 1:] < 0).all()
    assert residuals[0][1:].max() < 1 and residuals[-1].max() < 1e-10 and errors[-1].max() <= 1e-5
