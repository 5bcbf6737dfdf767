"""Is the guard right? Patches after drifts, judged without a forward, against what reusing them really cost.

python -m benchmarks.guard measure --attention gqa --json docs/results/guard-gqa.json
python -m benchmarks.guard draw docs/results/guard-*.json --plot docs/figures/guard.png
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from benchmarks import report
from benchmarks.drifts import KINDS, sample_scene
from benchmarks.measure import PATCH_SHARE, SCENES, Measured, Progress, measure, rank_for
from eval.commands.main import ATTENTIONS, EMBEDDED
from eval.run import metrics
from eval.tiny import pages
from kamera_jax.backbone import Backbone
from models import load

CALIBRATION_SEED = 40_000_000
HELD_OUT_SEED = 60_000_000
"""Far from each other, and from every seed of training, the demo and the assessment."""

SIGNIFICANT = 4
"""Digits kept of what was measured."""


WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Tried for the second layer of a sketch."""


def candidates(layers: int) -> list[kj.SketchSpec]:
    """Every layer, and every two layers with several weights."""
    single = [kj.SketchSpec((layer,)) for layer in range(layers)]
    pairs = [
        kj.SketchSpec(pair, (1.0, weight)) for pair in itertools.combinations(range(layers), 2) for weight in WEIGHTS
    ]
    return [*single, *pairs]


def choose(measured: Measured, model: str, max_kl: float) -> kj.Calibration:
    """The calibration whose sketch lets most harmless drifts be accepted, at its own conservative threshold."""
    kls = (measured.mean, *measured.shares.T, measured.blind)
    columns = [tuple(_rounded(max(float(x), 0.0), SIGNIFICANT) for x in column) for column in kls]

    def accepted(calibration: kj.Calibration) -> int:
        shares = (calibration.lost, calibration.added, calibration.moved)
        estimates = calibration.estimates(calibration.changes, *shares)
        return int((estimates <= calibration.threshold(max_kl)).sum())

    tried = [
        kj.Calibration(model, spec, tuple(_rounded(x, SIGNIFICANT) for x in measured.change(spec)), *columns)
        for spec in candidates(measured.changes.shape[1])
    ]
    return max(tried, key=accepted)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def assess(measured: Measured, calibration: kj.Calibration, max_kl: float) -> dict[str, Any]:
    """What the guard accepts of held-out drifts, and what that costs."""
    changes = measured.change(calibration.sketch)
    estimates = calibration.estimates(changes, *measured.shares.T)
    accepted = estimates <= calibration.threshold(max_kl)
    harmful = measured.mean > max_kl

    def share(of: np.ndarray, among: np.ndarray) -> dict[str, Any]:
        successes = int((of & among).sum())
        trials = int(among.sum())
        interval = metrics.clopper_pearson(successes, trials) if trials else (0.0, 1.0)
        return {"share": successes / max(trials, 1), "of": trials, "interval_95": interval}

    return {
        "drifts": len(harmful),
        "harmful": float(harmful.mean()),
        "accepted_within_budget": share(~harmful, accepted),
        "accepted_within_budget_worst_probe": share(measured.worst <= max_kl, accepted),
        "harmless_accepted": share(accepted, ~harmful),
        "confusion": {
            "accepted": {"harmless": int((accepted & ~harmful).sum()), "harmful": int((accepted & harmful).sum())},
            "refused": {"harmless": int((~accepted & ~harmful).sum()), "harmful": int((~accepted & harmful).sum())},
        },
        "kinds": [
            {
                "kind": kind,
                "drifts": int(of.sum()),
                "harmful": int((harmful & of).sum()),
                "harmless_accepted": share(accepted, ~harmful & of),
                "harmful_accepted": int((accepted & harmful & of).sum()),
            }
            for kind in KINDS
            for of in [measured.kinds == kind]
        ],
        "missed": [
            {"kind": str(measured.kinds[i]), "change": float(changes[i]), "kl": float(measured.mean[i])}
            for i in np.flatnonzero(accepted & harmful)
        ],
        "points": {
            "estimate": [_rounded(value, 3) for value in estimates],
            "kl": [_rounded(max(value, 0.0), 3) for value in measured.mean],
        },
    }


def cost(vlm: Backbone, calibration: kj.Calibration) -> dict[str, Any]:
    """Milliseconds of a verdict, a fresh patch and a full prefill, on one window; bytes of a sketch and a patch."""
    scene = sample_scene(np.random.default_rng(HELD_OUT_SEED))
    chunks = {name: kj.encode(vlm, pages.render(cells)) for name, cells in scene.cells.items()}
    chunks["passage"] = kj.encode(vlm, scene.passage)
    context = [chunks[name] for name in scene.formed]
    rank = rank_for(vlm, chunks["judged"])
    patch = kj.form_patch(vlm, chunks["judged"], antecedents=context, rank=rank, sketch=calibration.sketch)
    window = kj.Window.empty(vlm, 1024)
    for chunk in context[::-1]:
        window = kj.append(window, chunk)
    policy = kj.ReusePolicy(calibration=calibration)
    assert patch.sketch is not None

    def milliseconds(run: Callable[[], Any], times: int = 5) -> float:
        jax.block_until_ready(jax.tree.leaves(run()))
        start = time.perf_counter()
        for _ in range(times):
            jax.block_until_ready(jax.tree.leaves(run()))
        return 1e3 * (time.perf_counter() - start) / times

    return {
        "verdict_ms": milliseconds(lambda: policy.judge(window, chunks["judged"], patch).accept),
        "fresh_patch_ms": milliseconds(lambda: kj.form_patch(vlm, chunks["judged"], context=window, rank=rank).factors),
        "prefill_ms": milliseconds(lambda: kj.prefill(vlm, [*context, chunks["judged"]]).state),
        "sketch_bytes": patch.sketch.nbytes,
        "patch_bytes": patch.nbytes - patch.sketch.nbytes,
        "chunk_bytes": chunks["judged"].nbytes,
    }


def run(
    vlm: Any, *, calibration_groups: int, groups: int, max_kl: float, progress: Progress, kept: Path | None = None
) -> tuple[Any, ...]:
    """Calibrate on some seeds and assess on others; gives the calibration and what ``--json`` writes.

    Args:
        vlm: the model.
        calibration_groups, groups: of drifts, to calibrate on and held out.
        max_kl: the budget in nats.
        progress: told how far it is.
        kept: files of these names, with an ending of their own, keep what was measured, and are not measured again.
    """
    drifts = _measured(vlm, "calibration", calibration_groups, progress, kept)
    calibration = choose(drifts, vlm.fingerprint, max_kl)
    held_out = _measured(vlm, "held-out", groups, progress, kept)
    result = {
        "max_kl": max_kl,
        "patch_share": PATCH_SHARE,
        "sketch": {"layers": calibration.sketch.layers, "weights": calibration.sketch.weights},
        "threshold": calibration.threshold(max_kl),
        "calibration_drifts": len(calibration.changes),
        **assess(held_out, calibration, max_kl),
        "cost": cost(vlm, calibration),
    }
    return calibration, result


def _measured(vlm: Any, what: str, groups: int, progress: Progress, kept: Path | None) -> Measured:
    path = None if kept is None else kept.with_name(f"{kept.name}-{what}.npz")
    if path is not None and path.exists():
        return Measured.read(path)
    found = measure(vlm, CALIBRATION_SEED if what == "calibration" else HELD_OUT_SEED, groups, progress)
    if path is not None:
        found.save(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the guard of patches accepts, and what that costs.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="calibrate and assess one embedded model")
    one.add_argument("--attention", choices=ATTENTIONS, default=ATTENTIONS[0])
    one.add_argument("--calibration-groups", type=int, default=20, help=f"groups of {SCENES * len(KINDS)} drifts")
    one.add_argument("--groups", type=int, default=15, help="held-out groups")
    one.add_argument("--max-kl", type=float, default=0.05, help="budget in nats")
    one.add_argument("--json", type=Path, required=True, help="write the result there")
    one.add_argument("--calibration", type=Path, help="write the calibration there")
    one.add_argument("--measured", type=Path, help="keep what was measured in this folder, and do not measure it again")
    drawn = commands.add_parser("draw", help="draw results, and print them as a table")
    drawn.add_argument("results", type=Path, nargs="+")
    drawn.add_argument("--plot", type=Path, help="PNG or SVG by the ending")
    options = parser.parse_args()
    if options.command == "draw":
        results = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
        print(report.table(results))
        if options.plot:
            report.plot(results, options.plot)
        return
    name = EMBEDDED + options.attention
    start = time.perf_counter()

    def progress(what: str, done: int, whole: int) -> None:
        print(f"{name}: {what} {done}/{whole}, {time.perf_counter() - start:.0f} s", flush=True)

    calibration, result = run(
        load(name),
        calibration_groups=options.calibration_groups,
        groups=options.groups,
        max_kl=options.max_kl,
        progress=progress,
        kept=options.measured and options.measured / options.attention,
    )
    if options.calibration:
        options.calibration.write_text(calibration.to_json() + "\n", encoding="utf-8")
    options.json.write_text(json.dumps({"model": name, **result}, indent=1) + "\n", encoding="utf-8")
    print(report.table([{"model": name, **result}]))


if __name__ == "__main__":
    main()
