"""Is the guard right on real text? Patches after drifts, judged with and without a calibration, against what they cost.

python -m benchmarks.guard_text measure --output out/guard-text.jsonl
python -m benchmarks.guard_text report out/guard-text.jsonl --json docs/results/guard-text.json --page docs/guard.md
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import spearmanr

import kamera_jax as kj
from benchmarks.guard_text_page import page
from benchmarks.text_drifts import BEHIND, KINDS, PASSAGES, TOKENS, Case, measure, rounded
from eval.run import metrics
from eval.tasks.text import corpus
from kamera_jax.backbone import forward_flops
from kamera_jax.guard import prior
from models import load

MODEL = "smollm2-135m"
CORPORA = ("pydoc", "docstrings")
"""What is calibrated on, and what is held out; and the other way round."""

MAX_KL = 0.05
HALVES = 3
LAYER = 19
"""Of the sketch: of all layers that whose change ranks the cases of the first corpus about best."""

SAME = ("same", "long, same")


class Cases:
    """Measured cases as arrays."""

    def __init__(self, cases: Sequence[Case]) -> None:
        """Take them apart."""
        self.cases = list(cases)
        self.kl = np.array([case.reuse for case in cases])
        self.blind = np.array([case.blind for case in cases])
        self.corpus = np.array([case.corpus for case in cases])
        self.kinds = np.array([case.kind for case in cases])
        self.texts = np.array([f"{case.corpus} {case.text}" for case in cases])
        self.change = np.array([case.changes[LAYER] for case in cases])
        found = [_difference(case) for case in cases]
        self.shares = np.array([(each.lost, each.added, each.moved) for each in found]).T
        self.estimate = prior.expected_of(*self.shares)
        self.same = np.isin(self.kinds, SAME)
        """Where nothing has changed: reused by definition."""
        self.harmless = self.kl <= MAX_KL

    def by_prior(self) -> np.ndarray:
        """Which are accepted without a calibration."""
        return self.same | np.array([prior.accepted(float(each), MAX_KL) for each in self.estimate])

    def calibrated(self, on: np.ndarray) -> tuple[np.ndarray, kj.Calibration]:
        """Which are accepted with a calibration on the cases ``on`` in which something has changed, and it."""
        used = on & ~self.same
        columns = (self.change, self.kl, *self.shares, self.blind)
        calibration = kj.Calibration(MODEL, kj.SketchSpec((LAYER,)), *(tuple(map(float, x[used])) for x in columns))
        estimates = calibration.estimates(self.change, *self.shares)
        return self.same | (estimates <= calibration.threshold(MAX_KL)), calibration


def _difference(case: Case) -> prior.Difference:
    mass = np.asarray(case.mass)[:, : len(case.formed)]
    before = [name.removesuffix("b") for name in case.before]  # the same chunks, without their patches
    return prior.difference(case.formed, prior.shares_of(mass), before)


def share(of: np.ndarray, among: np.ndarray) -> dict[str, Any]:
    """A share with its interval."""
    successes = int((of & among).sum())
    trials = int(among.sum())
    interval = metrics.clopper_pearson(successes, trials) if trials else (0.0, 1.0)
    return {"share": rounded(successes / max(trials, 1)), "of": trials, "interval_95": [rounded(x) for x in interval]}


def judged(cases: Cases, accepted: np.ndarray, among: np.ndarray) -> dict[str, Any]:
    """How right it is to accept these, all cases and those in which something has changed."""
    changed = among & ~cases.same
    return {
        "cases": int(among.sum()),
        "harmful": rounded((~cases.harmless)[among].mean()),
        "harmless_accepted": share(accepted, cases.harmless & among),
        "accepted_within_budget": share(cases.harmless, accepted & among),
        "changed": {
            "harmless_accepted": share(accepted, cases.harmless & changed),
            "accepted_within_budget": share(cases.harmless, accepted & changed),
        },
    }


def fitted_prior(cases: Cases, on: np.ndarray) -> dict[str, float]:
    """The prior's constants, fitted to the cases as means of exponential distributions."""
    lost, added, moved = cases.shares[:, on]
    rows = np.stack([np.ones_like(lost), lost**2, added**2, moved], axis=1)
    kl = cases.kl[on]

    def unlikely(logs: np.ndarray) -> float:
        mean = rows @ np.exp(logs) + 1e-6
        return float((np.log(mean) + kl / mean).sum())

    start = np.log([prior.KEPT, prior.LOST, prior.ADDED, prior.MOVED])
    best = minimize(unlikely, start, method="Nelder-Mead", options={"maxiter": 4000})
    stranger = on & (cases.kinds != "to the front") & ~cases.same
    names = ("KEPT", "LOST", "ADDED", "MOVED")
    return {name: rounded(x, 2) for name, x in zip(names, np.exp(best.x), strict=True)} | {
        "BARE": rounded(cases.blind[stranger].mean(), 2)
    }


def halves(cases: Cases) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random halves of the texts of both corpora, and the others."""
    texts = np.unique(cases.texts)
    for seed in range(HALVES):
        chosen = np.random.default_rng(seed).permutation(texts)[: len(texts) // 2]
        on = np.isin(cases.texts, chosen)
        yield on, ~on


def saved(cases: Cases, accepted: np.ndarray, vlm: Any) -> float:
    """The share of the FLOPs of forming a patch for every case that the accepted ones save."""
    before = vlm.preamble.length + np.array([len(case.before) * TOKENS for case in cases.cases])
    flops = np.array([forward_flops(vlm, TOKENS, int(each)) for each in before])
    return rounded(flops[accepted].sum() / flops.sum(), 3)


def summary(cases: Cases, vlm: Any) -> dict[str, Any]:
    """All that is reported."""
    every = np.ones(len(cases.kl), bool)
    by_prior = cases.by_prior()
    of = {name: cases.corpus == name for name in CORPORA}
    changed = ~cases.same
    result: dict[str, Any] = {
        "model": MODEL,
        "max_kl": MAX_KL,
        "tokens": TOKENS,
        "behind": BEHIND,
        "passages": PASSAGES,
        "layer": LAYER,
        "margin": prior.MARGIN,
        "sources": {name: dict(corpus.read(name).sources) for name in CORPORA},
        "texts": {name: len(np.unique(cases.texts[of[name]])) for name in CORPORA},
        "kinds": [_kind(cases, kind, by_prior) for kind in KINDS],
        "prior": {name: judged(cases, by_prior, of[name]) for name in CORPORA}
        | {"both": judged(cases, by_prior, every)},
        "prior_saves": saved(cases, by_prior, vlm),
        "constants": {name: getattr(prior, name) for name in ("KEPT", "LOST", "ADDED", "MOVED", "BARE")},
        "constants_fitted": {name: fitted_prior(cases, of[name]) for name in CORPORA},
        "prior_over_measured": {
            name: rounded(cases.estimate[of[name] & changed].mean() / cases.kl[of[name] & changed].mean(), 3)
            for name in CORPORA
        },
        "rank": {
            "prior": rounded(spearmanr(cases.estimate[changed], cases.kl[changed])[0], 3),
            "change": rounded(spearmanr(cases.change[changed], cases.kl[changed])[0], 3),
        },
        "calibrated": [],
        "halves": [],
    }
    for on, held_out in (CORPORA, CORPORA[::-1]):
        accepted, calibration = cases.calibrated(of[on])
        rank = _rank(cases, calibration, of[held_out] & changed)
        about = {"on": on, "held_out": held_out, "drifts": len(calibration.kls), "rank": rank}
        about["saves"] = saved(Cases([c for c in cases.cases if c.corpus == held_out]), accepted[of[held_out]], vlm)
        result["calibrated"].append(about | judged(cases, accepted, of[held_out]))
    for on, held_out in halves(cases):
        accepted, calibration = cases.calibrated(on)
        rank = _rank(cases, calibration, held_out & changed)
        result["halves"].append({"drifts": len(calibration.kls), "rank": rank} | judged(cases, accepted, held_out))
    result["missed"] = [
        {"corpus": case.corpus, "text": case.text, "kind": case.kind, "kl": case.reuse, "prior": rounded(estimate, 2)}
        for case, estimate, wrong in zip(cases.cases, cases.estimate, by_prior & ~cases.harmless, strict=True)
        if wrong
    ]
    return result


def _rank(cases: Cases, calibration: kj.Calibration, among: np.ndarray) -> float:
    estimates = calibration.estimates(cases.change[among], *cases.shares[:, among])
    return rounded(spearmanr(estimates, cases.kl[among])[0], 3)


def _kind(cases: Cases, kind: str, by_prior: np.ndarray) -> dict[str, Any]:
    of = cases.kinds == kind
    return {
        "kind": kind,
        "cases": int(of.sum()),
        "kl": rounded(cases.kl[of].mean(), 3),
        "blind": rounded(cases.blind[of].mean(), 3),
        "prior": 0.0 if kind in SAME else rounded(cases.estimate[of].mean(), 3),
        "harmful": rounded((~cases.harmless)[of].mean(), 3),
        "worse_than_blind": rounded((cases.kl > cases.blind)[of].mean(), 3),
        "accepted_by_prior": rounded(by_prior[of].mean(), 3),
    }


def read(path: Path) -> list[Case]:
    """The cases of a file, in the order of texts; a line that a killed run left half-written ends it."""
    cases = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cases.append(Case.of(json.loads(line)))
        except json.JSONDecodeError:
            break
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the guard of patches accepts on real text.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="measure cases; goes on where a run was ended")
    one.add_argument("--output", type=Path, required=True, help="JSON lines, a case each")
    one.add_argument("--texts", type=int, default=15, help=f"of each corpus; a text gives {len(KINDS)} cases")
    made = commands.add_parser("report", help="fit and assess, without the device")
    made.add_argument("cases", type=Path)
    made.add_argument("--json", type=Path, required=True)
    made.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    vlm = load(MODEL, dtype="float32")
    if options.command == "report":
        result = summary(Cases(read(options.cases)), vlm)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.page.write_text(page(result), encoding="utf-8")
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    cases = read(options.output) if options.output.exists() else []
    options.output.write_text("".join(json.dumps(case.plain()) + "\n" for case in cases), encoding="utf-8")
    known = {(case.corpus, case.text, case.kind) for case in cases}
    start = time.perf_counter()
    with options.output.open("a", encoding="utf-8") as file:
        for name in CORPORA:
            for case in measure(vlm, name, options.texts, known):
                file.write(json.dumps(case.plain()) + "\n")
                file.flush()
                took = time.perf_counter() - start
                print(
                    f"{name} {case.text}: {case.kind}: {case.reuse:.4f}, blind {case.blind:.4f}; {took:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
