"""What a run's scores say: a method's main score, methods within a budget, and the best of them.

Scores are what ``results.json`` has under ``scores``; `eval.run.scores.score` makes them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the components, and of the tokens, whose energy is given under ``absorbed``."""

EQUAL_COST = 0.25
"""The share of bytes, or of tokens, at which methods are compared."""

SLACK = 1.02
"""By how much a budget may be exceeded, as methods are rounded to whole tokens."""

_PATCH = re.compile(r"patch(:(?!deep|shallow)[^+]+)?")
_RECOMPUTING = re.compile(r"(blind\+)?(cacheblend|epic|mpic|vlcache):[^+]+")

Scores = Mapping[str, Any]
"""A run's scores, as read from JSON."""


def measures(scores: Scores) -> list[str]:
    """Names of the task's scores, the main one first."""
    return scores.get("measures", ["accuracy"])


def hops_of(scores: Scores) -> list[str]:
    """The numbers of hops that questions marked as learned have, ascending."""
    return sorted(scores["methods"]["full"]["hops"], key=int)


def compared_hops(scores: Scores) -> int:
    """The hops that methods are compared on: two where there are such questions, else the most there are."""
    known = [int(hops) for hops in hops_of(scores)]
    return 2 if 2 in known else max(known, default=1)


def main_score(scores: Scores, method: str, hops: int | None = None) -> float:
    """A method's main score, over samples that are marked as learned; NaN where there are none.

    Args:
        scores: of the run.
        method: its name.
        hops: of the questions; `compared_hops` by default.
    """
    hops = compared_hops(scores) if hops is None else hops
    cell = scores["methods"].get(method, {}).get("hops", {}).get(str(hops))
    return float("nan") if cell is None else cell[measures(scores)[0]]


def best(scores: Scores, names: Sequence[str]) -> str | None:
    """The method of the highest main score, the first among equals; None if there are no names."""
    return max(names, key=lambda name: main_score(scores, name), default=None)


def patches(scores: Scores, share: float) -> list[str]:
    """Methods that patch all layers, and do no more, within a share of the bytes."""
    return [
        name
        for name, own in scores["methods"].items()
        if _PATCH.fullmatch(name) and own["cost"]["bytes_share"] <= share * SLACK
    ]


def recomputing(scores: Scores, share: float) -> list[str]:
    """Methods that recompute tokens behind blind reuse, and no more than a share of them."""
    return [
        name
        for name, own in scores["methods"].items()
        if _RECOMPUTING.fullmatch(name) and own["cost"]["recomputed_share"] <= share * SLACK
    ]
