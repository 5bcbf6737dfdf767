"""Findings of the tasks on real text: what a run measured, against statements about reuse on natural language."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.tasks.comparison import SLACK, Scores, patches, recomputing
from eval.tasks.finding import Finding

NOTHING_LOST = "blind reuse lost nothing"
"""Why nothing can be said of what gives it back."""

ABLE = 0.3
"""The accuracy of full prefill from which on a model is said to be able to do a task."""

FEW_BYTES = 0.02
"""The share of a chunk's bytes within which a patch is called small."""

PATCH = re.compile(r"patch:(\d+)")
"""A patch of so many components in every layer."""


def cells(scores: Scores, method: str, condition: str | None = None) -> list[Mapping[str, Any]]:
    """A method's cells of one condition, or of all."""
    own = scores["methods"][method]["conditions"]
    chosen = own.values() if condition is None else [own.get(condition, {})]
    return [cell for by_hops in chosen for cell in by_hops.values()]


def mean(scores: Scores, method: str, measure: str, condition: str | None = None) -> float:
    """A method's mean of a measure, over all samples of a condition, or of all; NaN where there are none."""
    own = cells(scores, method, condition)
    count = sum(cell["samples"] for cell in own)
    return sum(cell[measure] * cell["samples"] for cell in own) / count if count else float("nan")


def eta(scores: Scores, method: str, condition: str | None = None) -> float | None:
    """η of a condition, or of all samples; None where blind reuse loses nothing, or there are none."""
    blind = mean(scores, "blind", "kl", condition)
    return 1 - mean(scores, method, "kl", condition) / blind if blind > 0 else None


def _closest(scores: Scores, names: Sequence[str], condition: str | None) -> str | None:
    """The method of the lowest KL."""
    return min(names, key=lambda name: mean(scores, name, "kl", condition), default=None)


def _where(condition: str | None) -> str:
    return "" if condition is None else f" ({condition})"


def patch_closes(scores: Scores, share: float, least: float, condition: str | None = None) -> Finding:
    """A patch within a share of the bytes closes at least so much of the KL of blind reuse."""
    claim = f"a patch of ≤ {share:.0%} of the bytes gives back what blind reuse loses{_where(condition)}: η ≥ {least:g}"
    name = _closest(scores, patches(scores, share), condition)
    if name is None:
        return Finding(claim, "no such patch was run", None)
    closed = eta(scores, name, condition)
    if closed is None:
        return Finding(claim, "blind reuse lost nothing, or nothing was asked", None)
    blind, ours = (mean(scores, each, "kl", condition) for each in ("blind", name))
    return Finding(claim, f"η {closed:.2f}, KL {ours:.4f} of {blind:.4f} (`{name}`)", closed >= least)


def tokens_close_less(scores: Scores, tokens: float, share: float) -> Finding:
    """Recomputing a share of the tokens closes less of the KL than a patch within a share of the bytes."""
    claim = f"recomputing ≤ {tokens:.0%} of the tokens gives back less than a patch of ≤ {share:.0%} of the bytes"
    names = [_closest(scores, some, None) for some in (recomputing(scores, tokens), patches(scores, share))]
    if names[0] is None or names[1] is None:
        return Finding(claim, "such methods were not run", None)
    theirs, ours = (eta(scores, name) for name in names if name is not None)
    if theirs is None or ours is None:
        return Finding(claim, NOTHING_LOST, None)
    return Finding(claim, f"η {theirs:.2f} (`{names[0]}`) against {ours:.2f} (`{names[1]}`)", theirs < ours)


def of_components(scores: Scores, most: int) -> list[str]:
    """Patches of at most so many components in every layer."""
    return [name for name in scores["methods"] if (found := PATCH.fullmatch(name)) and int(found[1]) <= most]


def lost_and_restored(
    scores: Scores,
    condition: str,
    what: str,
    *,
    oracle: bool,
    measure: str = "accuracy",
    able: float = ABLE,
    components: int | None = None,
) -> list[Finding]:
    """What blind reuse loses of something that full prefill does, and what restores it.

    Args:
        scores: of the run.
        condition: whose answers are compared.
        what: it is, in words.
        oracle: whether it is also stated that an oracle's half of the tokens does not restore it.
        measure: by which they are compared.
        able: what full prefill has to reach for anything to be said.
        components: of patches that may restore it, in every layer, where chunks are so short that few components take
            many bytes; by default patches are counted by bytes.
    """

    def right(name: str) -> float:
        return mean(scores, name, measure, condition)

    full, blind = (right(name) for name in ("full", "blind"))
    if not cells(scores, "full", condition):
        return [Finding(f"blind reuse loses {what}: ≤ 0.5 × full", f"nothing was asked of {condition}", None)]
    if not full >= able:
        return [Finding(f"{what}: no claim, as this model cannot do it", f"full prefill is right in {full:.3f}", None)]
    found = [Finding(f"blind reuse loses {what}: ≤ 0.5 × full", f"{blind:.3f} of {full:.3f}", blind <= 0.5 * full)]
    size = f"≤ {FEW_BYTES:.0%} of the bytes" if components is None else f"≤ {components} components"
    claim = f"a patch of {size} gives it back: ≥ 0.9 × full"
    small = patches(scores, FEW_BYTES) if components is None else of_components(scores, components)
    if blind >= full:
        found.append(Finding(claim, NOTHING_LOST, None))
    elif small:
        name = max(small, key=right)
        share = scores["methods"][name]["cost"]["bytes_share"]
        measured = f"{right(name):.3f} of {full:.3f} (`{name}`, {share:.1%})"
        found.append(Finding(claim, measured, right(name) >= 0.9 * full))
    else:
        found.append(Finding(claim, "no such patch was run", None))
    if oracle:
        claim = "the true KV of half of the tokens, chosen by an oracle, does not: ≤ 0.8 × full"
        name = "oracle-tokens:0.5"
        if blind >= full:
            found.append(Finding(claim, NOTHING_LOST, None))
        elif name not in scores["methods"]:
            found.append(Finding(claim, f"{name} was not run", None))
        else:
            found.append(Finding(claim, f"{right(name):.3f} of {full:.3f}", right(name) <= 0.8 * full))
    return found


def _unable(scores: Scores, condition: str, measure: str) -> str:
    """Why nothing can be claimed of a condition; empty if full prefill can do it."""
    full = mean(scores, "full", measure, condition)
    if full != full:
        return f"nothing was asked of {condition}"
    return "" if full >= ABLE else f"this model cannot do it: full prefill is right in {full:.3f}"


def at_most(scores: Scores, name: str, condition: str, most: float, what: str, measure: str = "accuracy") -> Finding:
    """A method is right in at most a share of the questions of a condition, of a model that can do the task."""
    claim = f"{what}: `{name}` is right in ≤ {most:g}"
    if name not in scores["methods"]:
        return Finding(claim, f"{name} was not run", None)
    if unable := _unable(scores, condition, measure):
        return Finding(claim, unable, None)
    right = mean(scores, name, measure, condition)
    return Finding(claim, f"{right:.3f}", right <= most)


def components_reach(scores: Scores, components: int, condition: str, least: float, what: str) -> Finding:
    """A patch of a few components in every layer is right in at least a share of the questions of a condition."""
    claim = f"{what}: a patch of ≤ {components} components is right in ≥ {least:g}"
    names = of_components(scores, components)
    name = max(names, key=lambda each: mean(scores, each, "accuracy", condition), default=None)
    if name is None:
        return Finding(claim, "no such patch was run", None)
    if unable := _unable(scores, condition, "accuracy"):
        return Finding(claim, unable, None)
    right = mean(scores, name, "accuracy", condition)
    share = scores["methods"][name]["cost"]["bytes_share"]
    return Finding(claim, f"{right:.3f} (`{name}`, {share:.1%} of the bytes)", right >= least)


def tokens_close_at_most(scores: Scores, kind: str, title: str, most: float) -> Finding:
    """What one way to recompute tokens gives back of the KL at most."""
    claim = f"{title} gives back little of what blind reuse loses: η ≤ {most:g}"
    name = _closest(scores, [each for each in recomputing(scores, 1.0) if each.startswith(kind)], None)
    closed = None if name is None else eta(scores, name)
    if name is None or closed is None:
        return Finding(claim, f"{kind} was not run" if name is None else NOTHING_LOST, None)
    share = scores["methods"][name]["cost"]["recomputed_share"]
    return Finding(claim, f"η {closed:.2f} (`{name}`, {share:.0%} of the tokens)", closed <= most)


def near(scores: Scores, share: float, most: float, reference: str) -> Finding:
    """A patch within a share of the bytes leaves at most so many nats of KL to the run's reference."""
    claim = f"what survives a slide stays near {reference}: KL ≤ {most:g} with a patch of ≤ {share:.0%} of the bytes"
    name = _closest(scores, patches(scores, share), None)
    if name is None:
        return Finding(claim, "no such patch was run", None)
    ours, blind, full = (mean(scores, each, "kl") for each in (name, "blind", "full"))
    if not blind > 0:
        return Finding(claim, NOTHING_LOST, None)
    measured = f"KL {ours:.4f} (`{name}`); blind {blind:.4f}, re-prefill of what is in the window {full:.4f}"
    return Finding(claim, measured, ours <= most)


def boundary(scores: Scores, condition: str) -> Finding:
    """How far the first tokens of each chunk, run again, restore what a border cut."""
    claim = "it is a boundary effect: what running the first tokens of each chunk again gives back"
    if unable := _unable(scores, condition, "accuracy"):
        return Finding(claim, unable, None)
    full = mean(scores, "full", "accuracy", condition)
    own = [name for name in scores["methods"] if name.startswith(("epic:", "mpic:"))]
    measured = ", ".join(f"{mean(scores, name, 'accuracy', condition):.3f} (`{name}`)" for name in own)
    return Finding(claim, f"{measured} of {full:.3f}" if own else "neither epic nor mpic was run", None)


def needed_tokens(scores: Scores, condition: str) -> list[Finding]:
    """What methods keep of the tokens that full prefill gets right because of one chunk alone."""
    claim = "of natural tokens that need an earlier chunk, a patch of ≤ 5 % of the bytes keeps more than blind reuse"
    count = sum(cell["samples"] for cell in cells(scores, "full", condition))
    if not count:
        return [Finding(claim, "no token needed one", None)]
    name = max(patches(scores, 0.05), key=lambda each: mean(scores, each, "accuracy", condition), default=None)
    if name is None:
        return [Finding(claim, "no such patch was run", None)]
    ours, blind = (mean(scores, each, "accuracy", condition) for each in (name, "blind"))
    return [Finding(claim, f"{ours:.3f} (`{name}`) against {blind:.3f}, of {count} tokens", ours > blind)]


def last_against_first(scores: Scores) -> Finding:
    """Whether what patches leave grows while a window slides."""
    claim = "what the patches leave does not grow while the window slides: KL of the last third ≤ 1.5 × the first's"
    steps = [name for name in scores["methods"]["full"]["conditions"] if name.startswith("steps")]
    name = _closest(scores, patches(scores, 0.1), None)
    if name is None or len(steps) < 2:
        return Finding(claim, "too few steps, or no patch of ≤ 10 % of the bytes, were run", None)
    first, last = (mean(scores, name, "kl", condition) for condition in (steps[0], steps[-1]))
    if not mean(scores, "blind", "kl") > 0:
        return Finding(claim, NOTHING_LOST, None)
    return Finding(claim, f"{last:.4f} against {first:.4f} (`{name}`)", last <= 1.5 * first)


def worse_than(scores: Scores, share: float, condition: str, other: str) -> Finding:
    """Whether patches of a condition leave more KL than those of another one do."""
    claim = f"an old patch harms where none is needed: KL {condition} above {other}"
    name = next(iter(patches(scores, share * SLACK)), None)
    if name is None:
        return Finding(claim, "no such patch was run", None)
    if not (cells(scores, name, condition) and cells(scores, name, other)):
        return Finding(claim, "nothing was asked of one of them", None)
    ours, theirs = (mean(scores, name, "kl", each) for each in (condition, other))
    return Finding(claim, f"{ours:.4f} against {theirs:.4f} (`{name}`)", ours > theirs)
