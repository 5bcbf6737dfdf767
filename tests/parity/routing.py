"""Where tokens are sent to other experts: found, measured against how close the choice was, and what they reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from kamera_jax.forward import chunk_of, run
from models.blocks.moe import Experts
from tests.parity.oracle import Run

ROUTES = ("experts", "router_margin")


@dataclass(frozen=True)
class Routes:
    """Where a port sent S tokens: experts [layers, S, k] in order of their number, and margins [layers, S]."""

    experts: np.ndarray
    margin: np.ndarray


def margins(scores: np.ndarray, config: Experts) -> np.ndarray:
    """`models.blocks.moe.Routing.margin` of scores [..., X], in f64 and with sorting alone."""
    scores = scores.astype(np.float64)
    margin = np.full(scores.shape[:-1], np.inf)
    if config.groups > 1:
        grouped = scores.reshape(*scores.shape[:-1], config.groups, -1)
        best = np.sort(grouped)[..., -2:].sum(-1)
        ranked = np.sort(best)[..., ::-1]
        if config.groups_per_token < config.groups:
            margin = ranked[..., config.groups_per_token - 1] - ranked[..., config.groups_per_token]
        in_use = best >= ranked[..., config.groups_per_token - 1, None]
        scores = np.where(in_use[..., None], grouped, -np.inf).reshape(scores.shape)
    ranked = np.sort(scores)[..., ::-1]
    if config.per_token == config.count:
        return margin
    return np.minimum(margin, ranked[..., config.per_token - 1] - ranked[..., config.per_token])


def tolerance(config: Experts) -> int:
    """How many times the largest change of a score a margin can shrink: a group's score is the sum of two."""
    return 4 if config.groups > 1 else 2


def assert_same_routes(aux: Mapping[str, jax.Array], theirs: Run, config: Experts) -> None:
    """Every token is sent where transformers sends it, and no choice is so close that rounding could have decided."""
    assert theirs.experts is not None and theirs.scores is not None
    tokens = theirs.experts.shape[1]
    experts, margin = (np.asarray(aux[name]) for name in ROUTES)
    assert (experts[:, tokens:] == -1).all() and np.isinf(margin[:, tokens:]).all()
    np.testing.assert_array_equal(np.sort(experts[:, :tokens]), theirs.experts)
    noise = np.abs(margin[:, :tokens] - margins(theirs.scores, config)).max()
    assert noise <= 1e-5 and margin.min() > 10 * noise, (noise, margin.min())


def differs(experts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which tokens are sent elsewhere: bool[layers, S] of [layers, S, k], in any order."""
    return (np.sort(experts) != np.sort(others)).any(-1)


def of_themselves(differing: np.ndarray, layers: int) -> np.ndarray:
    """Those of the tokens sent elsewhere that no other one can have sent there: bool[layers, S]."""
    return differing & ~reached(differing, layers)[-len(differing) :]


def reached(differing: np.ndarray, layers: int) -> np.ndarray:
    """Which rows of KV tokens that were sent elsewhere can have changed: bool[L, S].

    The token's own in the layers after it, and those of later tokens, which see it.

    Args:
        differing: of the layers with experts, the last ones [layers, S].
        layers: L.
    """
    cone = np.zeros((layers + 1, differing.shape[1]), bool)
    cone[layers + 1 - len(differing) :] = np.logical_or.accumulate(np.logical_or.accumulate(differing, 1), 0)
    return cone[:layers]


def comparable(exact: Run, runs: Sequence[np.ndarray | None], layers: int, tokens: int) -> np.ndarray:
    """Rows of KV [L, tokens, 1] that no token sent elsewhere than in ``exact`` can have changed, in any of the runs."""
    kept = np.ones((layers, tokens), bool)
    for experts in runs:
        if experts is not None:
            assert exact.experts is not None
            kept &= ~reached(differs(experts[:, :tokens], exact.experts[:, :tokens]), layers)
    assert kept.any(1).all()
    return kept[..., None]


def prefill_with_routes(vlm: Any, items: Sequence[Any], capacity: int) -> tuple[kj.Window, Routes | None]:
    """`kamera_jax.prefill`, and where it sent the tokens, the preamble's first."""
    if vlm.config.text.experts is None:
        return kj.prefill(vlm, items, capacity=capacity), None
    window = kj.Window.empty(vlm, capacity)
    seen = [(vlm.preamble, run(vlm.params, vlm.preamble, None, forward=vlm.forward, collect=ROUTES))]
    for segment in map(vlm.prepare, items):
        there = segment.at(window.next_position)
        output = run(vlm.params, there, window.state, forward=vlm.forward, collect=ROUTES)
        seen.append((segment, output))
        window = kj.append(window, chunk_of(vlm, segment, output, window.preamble.chunk.key, window.entries))
    experts, margin = (
        np.concatenate([np.asarray(output.aux[name])[:, : int(segment.length)] for segment, output in seen], axis=1)
        for name in ROUTES
    )
    return window, Routes(np.sort(experts), margin)
