"""The guard's benchmark measures what the library's own calls say, on drifts that are what they are called."""

import json

import numpy as np
import pytest

import kamera_jax as kj
from benchmarks import guard, measure, report
from benchmarks.drifts import FORMED, KINDS, sample_drift, sample_scene
from eval.tiny import pages
from eval.tiny.episodes import question_text
from kamera_jax.batch.windows import BatchRunner
from kamera_jax.guard.calibration import difference_of
from models import load


def group(seed, count=6):
    """Episodes that stack, and a drift of every kind for each."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    drifts = {
        kind: [sample_drift(rng, np.random.default_rng((seed, 1)), scene, kind) for scene in scenes] for kind in KINDS
    }
    return scenes, drifts


@pytest.mark.parametrize("seed", range(2))
def test_drifts_stack_and_are_what_they_are_called(seed):
    scenes, drifts = group(seed)
    for kind, rows in drifts.items():
        shapes = {tuple(name == "passage" for name in [*drift.before, "judged", *drift.after]) for drift in rows}
        assert len(shapes) == 1
        for scene, drift in zip(scenes, rows, strict=True):
            assert tuple(drift.before) != scene.formed
            gone = set(scene.formed) - set(drift.before)
            come = set(drift.before) - set(scene.formed)
            if kind == "order":
                assert not gone and not come
            elif kind == "moved behind":
                assert gone == set(drift.after) and not come
            elif kind == "deletion":
                assert len(gone) == 1 and not come and not drift.after
            elif kind == "insertion":
                assert not gone and len(come) == 1
            elif kind == "edit":
                assert gone <= set(FORMED) and come == {"edited"} and drift.edited is not None
            elif kind == "distance":
                assert not gone and len(drift.before) > 3


def test_references_lead_to_a_page_or_to_nothing_there():
    scenes, drifts = group(50)
    for scene, drift in zip(scenes, drifts["deletion"], strict=True):
        for (glyph, target), probed in zip(scene.references, drift.probed(scene), strict=True):
            assert scene.entries["judged"][glyph] == ("reference", target)
            assert probed == (target not in scene.entries["missing"])


@pytest.mark.soak
def test_what_is_measured_is_what_the_library_says():
    vlm = load("kamera-tiny-gqa")
    spec = kj.SketchSpec((0, 2), (1.0, 2.0))
    scenes, drifts = group(60, count=2)
    runner = BatchRunner(vlm, capacity=512)
    formed = measure.Formed.of(vlm, runner, scenes)
    kl, blind, changes = measure.drifted(vlm, runner, formed, drifts["deletion"])

    scene = scenes[1]
    drift = drifts["deletion"][1]
    chunks = {name: kj.encode(vlm, pages.render(cells)) for name, cells in scene.cells.items()}
    chunks["passage"] = kj.encode(vlm, scene.passage)
    judged = chunks["judged"]
    rank = measure.rank_for(vlm, judged)
    patch = kj.form_patch(vlm, judged, antecedents=[chunks[name] for name in scene.formed], rank=rank, sketch=spec)
    assert patch.nbytes - patch.sketch.nbytes <= measure.PATCH_SHARE * judged.nbytes
    window = kj.Window.empty(vlm, 512)
    for name in drift.before:
        window = kj.append(window, chunks[name])
    assert kj.staleness(window, judged, patch).change == pytest.approx((changes[1, [0, 2]] * [1, 2]).max(), rel=1e-3)
    probes = [question_text(glyph) for glyph, _ in scene.references]
    report = kj.verify(vlm, kj.append(window, judged, patch), probes)
    assert report.probe_kl == pytest.approx(kl[1], rel=1e-2, abs=1e-3)
    bare = kj.verify(vlm, kj.append(window, judged), probes)
    assert bare.probe_kl == pytest.approx(blind[1], rel=1e-2, abs=1e-3)
    found = difference_of(patch, window.keys)
    assert formed.shares(1, drift.before) == pytest.approx((found.lost, found.added, found.moved), abs=1e-4)


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path):
    drawn, _ = measured(50)
    drawn.save(tmp_path / "gqa-calibration.npz")
    again = guard._measured(None, "calibration", 20, print, tmp_path / "gqa")
    for name in ("kinds", "mean", "worst", "changes", "shares", "blind"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))


def measured(count=2000, seed=0):
    """Drifts whose cost a threshold at 1 tells apart with one sketch, and nothing tells apart with another."""
    rng = np.random.default_rng(seed)
    change = rng.uniform(0, 2, count)
    mean = np.where(change > 1, 1.0, 0.001)
    kinds = rng.choice(KINDS, count)
    changes = np.stack([rng.uniform(0, 2, count), change], axis=1)
    shares = np.tile([0.2, 0.1, 0.0], (count, 1))
    return measure.Measured(kinds, mean, 2 * mean, changes, shares, mean), kj.SketchSpec((1,))


def test_the_best_sketch_is_chosen_and_its_shares_are_counted(tmp_path):
    drawn, good = measured()
    calibration = guard.choose(drawn, "model", 0.05)
    limit = calibration.threshold(0.05)
    assert calibration.sketch == good
    assert calibration.estimate(0.98, 0.2, 0.1) < limit < calibration.estimate(1.03, 0.2, 0.1)
    held_out, _ = measured(seed=1)
    result = guard.assess(held_out, calibration, 0.05)
    accepted = calibration.estimates(held_out.change(good), *held_out.shares.T) <= limit
    harmful = held_out.mean > 0.05
    assert result["accepted_within_budget"]["of"] == accepted.sum()
    assert result["accepted_within_budget"]["share"] == pytest.approx((~harmful)[accepted].mean())
    assert result["harmless_accepted"]["share"] == pytest.approx(accepted[~harmful].mean())
    assert sum(row["drifts"] for row in result["kinds"]) == 2000
    assert len(result["missed"]) == (accepted & harmful).sum() == result["confusion"]["accepted"]["harmful"]

    cost = {"sketch_bytes": 1, "chunk_bytes": 10, "verdict_ms": 1.0}
    row = {"model": "tiny", "max_kl": 0.05, "threshold": 1.0, "cost": cost, **json.loads(json.dumps(result))}
    assert "| `tiny` | 2000 |" in report.table([row])
    report.plot([row, row], tmp_path / "guard.png")
    assert (tmp_path / "guard.png").stat().st_size > 10_000
