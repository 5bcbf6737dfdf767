"""What the paper claims of reuse over several hops (arXiv 2606.23581), against what a run of `binding` measured."""

from collections.abc import Callable

import numpy as np

from eval.tasks.base import Finding
from eval.tasks.comparison import EQUAL_COST, SHARES, SLACK, Scores, best, main_score, patches, recomputing


def findings(scores: Scores) -> list[Finding]:
    """Every claim, each with what the run measured."""
    return [claim(scores) for claim in CLAIMS]


def _one_hop(scores: Scores) -> Finding:
    full, blind = (main_score(scores, name, 1) for name in ("full", "blind"))
    return Finding("blind reuse keeps one hop: ≥ 0.97 × full", f"{blind:.3f} of {full:.3f}", blind >= 0.97 * full)


def _two_hops(scores: Scores) -> Finding:
    full, blind = (main_score(scores, name, 2) for name in ("full", "blind"))
    return Finding("blind reuse loses two hops: ≤ 0.6 × full", f"{blind:.3f} of {full:.3f}", blind <= 0.6 * full)


def _patched(scores: Scores) -> Finding:
    claim = f"a patch of ≤ {EQUAL_COST:.0%} of the bytes keeps two hops: ≥ 0.97 × full"
    name = best(scores, patches(scores, EQUAL_COST))
    if name is None:
        return Finding(claim, "no such patch was run", None)
    ours, full = (main_score(scores, each, 2) for each in (name, "full"))
    share = scores["methods"][name]["cost"]["bytes_share"]
    return Finding(claim, f"{ours:.3f} of {full:.3f} (`{name}`, {share:.1%})", ours >= 0.97 * full)


def _tokens(scores: Scores) -> Finding:
    claim = f"recomputing ≤ {EQUAL_COST:.0%} of the tokens does not recover as many flipped answers"
    name = best(scores, patches(scores, EQUAL_COST))
    other = best(scores, recomputing(scores, EQUAL_COST))
    if name is None or other is None or not scores["flips"]:
        return Finding(claim, "such methods were not run, or no answer flipped", None)
    ours, theirs = (scores["methods"][each]["recovered"] for each in (name, other))
    return Finding(claim, f"{theirs:.1%} (`{other}`) against {ours:.1%} (`{name}`)", theirs < ours)


def _same_work(scores: Scores) -> Finding:
    claim = (
        f"recomputing within {EQUAL_COST:.0%} of full prefill's FLOPs does not recover as many flipped answers either"
    )
    patch = best(scores, patches(scores, EQUAL_COST))
    methods = scores["methods"]
    affordable = [
        name for name in recomputing(scores, 1.0) if methods[name]["cost"]["flops_share"] <= EQUAL_COST * SLACK
    ]
    if patch is None or not affordable or not scores["flips"]:
        return Finding(claim, "such methods were not run, or no answer flipped", None)
    other = max(affordable, key=lambda name: methods[name]["recovered"])
    ours, theirs = (methods[name]["recovered"] for name in (patch, other))
    share, own = (methods[name]["cost"]["flops_share"] for name in (other, patch))
    measured = f"{theirs:.1%} (`{other}`, {share:.1%} of the FLOPs) against {ours:.1%} (`{patch}`, {own:.1%})"
    return Finding(claim, measured, theirs < ours)


def _oracle(scores: Scores) -> Finding:
    claim = "even an oracle needs about half the tokens: ≤ 0.97 × full with a quarter of them"
    name = f"oracle-tokens:{EQUAL_COST:g}"
    if name not in scores["methods"]:
        return Finding(claim, "it was not run", None)
    ours, full = (main_score(scores, each, 2) for each in (name, "full"))
    return Finding(claim, f"{ours:.3f} of {full:.3f}", ours <= 0.97 * full)


def _low_rank(scores: Scores) -> Finding:
    components, tokens = (share_for(scores, name, 0.9) for name in ("components", "tokens"))
    measured = f"90 % of its energy is in {components:.0%} of the components, in {tokens:.0%} of the tokens"
    return Finding("the change is low-rank over features, diffuse over tokens", measured, components < tokens)


def _deep(scores: Scores) -> Finding:
    error = scores["methods"]["blind"]["kv_error"]
    first = next((i for i, value in enumerate(error) if value > 1e-4), len(error) - 1)
    measured = f"relative change {error[first]:.2f} in layer {first}, {error[-1]:.2f} in the last"
    return Finding("the change grows with depth", measured, error[-1] > error[first])


def _deep_half(scores: Scores) -> Finding:
    claim = "the deep half of the layers explains the loss, the shallow half little of it"
    if not {"patch:deep", "patch:shallow"} <= scores["methods"].keys():
        return Finding(claim, "it was not run", None)
    deep, shallow = (scores["methods"][name]["eta"] for name in ("patch:deep", "patch:shallow"))
    if deep is None:
        return Finding(claim, "blind reuse lost nothing", None)
    return Finding(claim, f"η {deep:.2f} with the deep half repaired, {shallow:.2f} with the shallow", deep > shallow)


def _text(scores: Scores) -> Finding:
    claim = "facts that stand in text alone: no claim"
    cells = {name: scores["methods"][name]["conditions"].get("text facts", {}).get("2") for name in ("full", "blind")}
    if None in cells.values():
        return Finding(claim, "none were asked", None)
    full, blind = (cells[name]["accuracy"] for name in ("full", "blind"))
    return Finding(claim, f"full {full:.3f}, blind {blind:.3f} over two hops", None)


CLAIMS: tuple[Callable[[Scores], Finding], ...] = (
    _one_hop,
    _two_hops,
    _patched,
    _tokens,
    _same_work,
    _oracle,
    _low_rank,
    _deep,
    _deep_half,
    _text,
)


def share_for(scores: Scores, name: str, energy: float) -> float:
    """The share of components, or of tokens, that has this much of the change, averaged over layers that change."""
    layers = [np.asarray(layer) for layer in scores["absorbed"][name] if layer[-1] > 0.5]
    crossed = [np.interp(energy, np.concatenate([[0.0], layer]), np.concatenate([[0.0], SHARES])) for layer in layers]
    return float(np.mean(crossed)) if crossed else float("nan")
