"""What the paper claims of reuse over several hops (arXiv 2606.23581), against what a run of `binding` measured."""

from collections.abc import Callable

import numpy as np

from eval.tasks.comparison import EQUAL_COST, SHARES, SLACK, Scores, best, main_score, patches, recomputing
from eval.tasks.finding import Finding


def findings(scores: Scores) -> list[Finding]:
    """Every claim, each with what the run measured."""
    return [claim(scores) for claim in CLAIMS]


def _beside_full(
    scores: Scores, claim: str, name: str, hops: int, holds: Callable[[float, float], bool], note: str = ""
) -> Finding:
    """A method's score beside full prefill's; no claim where full prefill is right in nothing that was asked."""
    ours, full = (main_score(scores, each, hops) for each in (name, "full"))
    if not full > 0:
        return Finding(claim, "full prefill is right in none of them, or none were asked", None)
    return Finding(claim, f"{ours:.3f} of {full:.3f}{note}", holds(ours, full))


def _one_hop(scores: Scores) -> Finding:
    claim = "blind reuse keeps one hop: ≥ 0.97 × full"
    return _beside_full(scores, claim, "blind", 1, lambda blind, full: blind >= 0.97 * full)


def _two_hops(scores: Scores) -> Finding:
    claim = "blind reuse loses two hops: ≤ 0.6 × full"
    return _beside_full(scores, claim, "blind", 2, lambda blind, full: blind <= 0.6 * full)


def _patched(scores: Scores) -> Finding:
    claim = f"a patch of ≤ {EQUAL_COST:.0%} of the bytes keeps two hops: ≥ 0.97 × full"
    name = best(scores, patches(scores, EQUAL_COST))
    if name is None:
        return Finding(claim, "no such patch was run", None)
    note = f" (`{name}`, {scores['methods'][name]['cost']['bytes_share']:.1%})"
    return _beside_full(scores, claim, name, 2, lambda ours, full: ours >= 0.97 * full, note)


def _missing(scores: Scores, patch: str | None, other: str | None) -> str:
    """What two methods cannot be compared for by the flipped answers that they recover; empty if they can."""
    if patch is None:
        return f"no patch of ≤ {EQUAL_COST:.0%} of the bytes was run"
    if other is None:
        return "no method that recomputes so few tokens was run"
    return "" if scores["flips"] else "blind reuse changed no answer"


def _tokens(scores: Scores) -> Finding:
    claim = f"recomputing ≤ {EQUAL_COST:.0%} of the tokens does not recover as many flipped answers"
    name = best(scores, patches(scores, EQUAL_COST))
    other = best(scores, recomputing(scores, EQUAL_COST))
    if missing := _missing(scores, name, other):
        return Finding(claim, missing, None)
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
    other = max(affordable, key=lambda name: methods[name]["recovered"] or 0.0, default=None)
    if missing := _missing(scores, patch, other):
        return Finding(claim, missing, None)
    ours, theirs = (methods[name]["recovered"] for name in (patch, other))
    share, own = (methods[name]["cost"]["flops_share"] for name in (other, patch))
    measured = f"{theirs:.1%} (`{other}`, {share:.1%} of the FLOPs) against {ours:.1%} (`{patch}`, {own:.1%})"
    return Finding(claim, measured, theirs < ours)


def _oracle(scores: Scores) -> Finding:
    claim = "even an oracle needs about half the tokens: ≤ 0.97 × full with a quarter of them"
    name = f"oracle-tokens:{EQUAL_COST:g}"
    if name not in scores["methods"]:
        return Finding(claim, f"{name} was not run", None)
    return _beside_full(scores, claim, name, 2, lambda ours, full: ours <= 0.97 * full)


def _low_rank(scores: Scores) -> Finding:
    claim = "the change is low-rank over features, diffuse over tokens"
    components, tokens = (share_for(scores, name, 0.9) for name in ("components", "tokens"))
    if np.isnan(components) or np.isnan(tokens):
        return Finding(claim, "nothing changed", None)
    measured = f"90 % of its energy is in {components:.0%} of the components, in {tokens:.0%} of the tokens"
    return Finding(claim, measured, components < tokens)


def _deep(scores: Scores) -> Finding:
    claim = "the change grows with depth"
    error = scores["methods"]["blind"]["kv_error"]
    first = next((i for i, value in enumerate(error) if value > 1e-4), None)
    if first is None or first == len(error) - 1:
        return Finding(claim, "nothing changed" if first is None else "the last layer alone changed", None)
    measured = f"relative change {error[first]:.2f} in layer {first}, {error[-1]:.2f} in the last"
    return Finding(claim, measured, error[-1] > error[first])


def _deep_half(scores: Scores) -> Finding:
    claim = "the deep half of the layers explains the loss, the shallow half little of it"
    if not {"patch:deep", "patch:shallow"} <= scores["methods"].keys():
        return Finding(claim, "patch:deep and patch:shallow were not both run", None)
    deep, shallow = (scores["methods"][name]["eta"] for name in ("patch:deep", "patch:shallow"))
    if deep is None or shallow is None:
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
