"""`verify` against what it says it computes, against both references, and what it refuses."""

import inspect
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import MissingInputsError, ModelMismatchError
from tests import oracles

PROBES = ("what colour is the star?", "what colour is the moon?", "is the cell red?")


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_full_rank_patches_are_faithful(random_vlm, patched):
    report = kj.verify(random_vlm, patched, PROBES)
    assert report.ok and report.kl <= 1e-6 and report.flips == 0
    assert report.kv_error.shape == (random_vlm.spec.layers,) and report.kv_error.max() <= 1e-4
    assert "within 0.05" in report.reason and "present" in report.reason


def test_figures_are_float64s(random_vlm, blind, chunks):
    full = kj.prefill(random_vlm, chunks)
    report = kj.verify(random_vlm, blind, PROBES, max_kl=1e-9)
    pairs = [[log_softmax(kj.query(random_vlm, window, probe)) for window in (full, blind)] for probe in PROBES]
    kls = np.array([(np.exp(p) * (p - q)).sum() for p, q in pairs])
    assert report.probe_kl == pytest.approx(kls, rel=1e-2, abs=1e-7)
    assert report.kl == pytest.approx(kls.mean(), rel=1e-2, abs=1e-7)
    assert report.flips == sum(p.argmax() != q.argmax() for p, q in pairs)

    def rows(window):
        """Every chunk's KV over valid tokens, side by side f64[L, tokens, F]."""
        return np.concatenate(
            [np.asarray(entry.chunk.kv.features, np.float64)[:, : entry.chunk.length] for entry in window.entries], 1
        )

    assert report.kv_error == pytest.approx(oracles.relative(rows(blind), rows(full)), rel=1e-4, abs=1e-6)
    assert report.kv_error[-1] > 1e-2
    assert not report.ok and "above 1e-09" in report.reason


def test_survivors_of_a_slide_are_histories_own(random_vlm, chunks):
    history = kj.prefill(random_vlm, chunks)
    slid = kj.slide(history, 1)
    past = kj.verify(random_vlm, slid, PROBES, reference="history", history=[each.chunk for each in history.entries])
    present = kj.verify(random_vlm, slid, PROBES)
    assert past.kv_error.max() <= 1e-5 and past.reference == "history"
    assert present.kv_error[-1] > 1e-2

    gone = history.entries[0]
    slots = np.arange(history.capacity)
    seen = np.asarray(history.state.valid) & ~((slots >= gone.slot) & (slots < gone.slot + gone.chunk.length))
    hidden = replace(history, state=replace(history.state, valid=jnp.asarray(seen)))
    pairs = [[log_softmax(kj.query(random_vlm, window, probe)) for window in (hidden, slid)] for probe in PROBES]
    assert past.probe_kl == pytest.approx([(np.exp(p) * (p - q)).sum() for p, q in pairs], rel=1e-2, abs=1e-7)


def test_history_finds_a_repeated_chunk_where_it_stood_last(random_vlm, build, chunks):
    a, b, _ = chunks
    window = build((b, None), (a, None))
    report = kj.verify(random_vlm, window, PROBES, reference="history", history=[a, b, a])
    again = kj.verify(random_vlm, window, PROBES, reference="history", history=[b, a])
    assert report.kv_error[-1] != pytest.approx(again.kv_error[-1], rel=1e-3)


def test_an_in_place_window_is_verified_alike(random_vlm, chunks, blind):
    window = kj.Window.empty(random_vlm, 128, mode="in_place")
    for chunk in chunks:
        window = kj.append(window, chunk)
    here, there = (kj.verify(random_vlm, each, PROBES) for each in (window, blind))
    assert here.probe_kl == pytest.approx(there.probe_kl, rel=1e-2, abs=1e-7)
    assert here.kv_error == pytest.approx(there.kv_error, rel=1e-6)


def test_errors(random_vlm, random_vlm_bf16, build, blind, chunks):
    def refused(match, error=ValueError, vlm=random_vlm, window=blind, probes=PROBES, **options):
        with pytest.raises(error, match=match):
            kj.verify(vlm, window, probes, **options)

    refused("at least one probe", probes=())
    refused("question is empty", probes=("",))
    refused("holds no chunk", window=build())
    with pytest.raises(ValueError, match="reference must be one of"):  # past the annotation, checked under test
        inspect.unwrap(kj.verify)(random_vlm, blind, PROBES, reference="future")
    refused("history= goes with", reference="history")
    refused("history= goes with", history=chunks)
    refused("does not hold", reference="history", history=chunks[:2])
    refused("does not hold", reference="history", history=chunks[::-1])
    refused("belongs to model", error=ModelMismatchError, vlm=random_vlm_bf16)
    bare = build(*((chunk.without_source(), None) for chunk in chunks))
    refused("without its source", error=MissingInputsError, window=bare)
