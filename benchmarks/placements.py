"""Where a patch's bytes may go: choices of components over layers, frames they are fitted in, and what they then keep.

The library has the choices that help (`kamera_jax.patch`); the others are here, to be measured beside them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.weights import frames
from eval.commands.demo import mean_bytes, stage
from eval.run import metrics
from eval.tiny.story import sample_story
from kamera_jax import patch
from kamera_jax.backbone import Output
from kamera_jax.batch.windows import AT_ONCE, BatchRunner, Stack, Windows
from kamera_jax.kv import Factors, Segment, WindowState


@dataclass(frozen=True)
class Components:
    """All components of a page's change, of E episodes: u [E, L, m, T], v [E, L, m, F], energy [E, L, m]."""

    u: np.ndarray
    v: np.ndarray
    energy: np.ndarray


def uniform(energy: np.ndarray, count: int) -> np.ndarray:
    """As many in every layer but the first, whose KV never changes; what is over goes to the last ones."""
    return _spread(energy, count, 1)


def deep(energy: np.ndarray, count: int) -> np.ndarray:
    """The same in the deep half of the layers alone."""
    return _spread(energy, count, energy.shape[1] // 2)


def _spread(energy: np.ndarray, count: int, first: int) -> np.ndarray:
    layers = energy.shape[1] - first
    ranks = np.zeros(energy.shape[:2], np.int32)
    ranks[:, first:] = count // layers
    ranks[:, energy.shape[1] - count % layers :] += count % layers > 0
    return np.minimum(ranks, energy.shape[2])


def by_energy(energy: np.ndarray, count: int) -> np.ndarray:
    """Those of most energy, whatever their layer, but for the first layer's."""
    energy = energy.copy()
    energy[:, 0] = -1
    order = np.sort(energy.reshape(len(energy), -1), axis=-1)[:, ::-1]
    return (energy >= np.maximum(order[:, count - 1], 0.0)[:, None, None]).sum(-1).astype(np.int32)


CHOICES: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], bool, bool]] = {
    "uniform": (uniform, False, False),
    "uniform, int8": (uniform, False, True),
    "global energy": (by_energy, False, False),
    "global energy, int8": (by_energy, False, True),
    "deep half": (deep, False, False),
    "weighted": (uniform, True, False),
    "weighted, global energy": (by_energy, True, False),
}
"""By name: ranks for so many components in all, whether K and V are weighted, whether factors are int8."""

RANKS = (3, 5, 7, 9)
"""Uniform ranks whose bytes every choice is measured against."""

SHARES = {False: (1.0, 0.7), True: (0.4, 0.2)}
"""Of those bytes, in the KV's dtype and as int8. The KV is f32 here: a fifth of f32's bytes is 39 % of bf16's."""


def curves(vlm: Any, seed: int, episodes: int) -> dict[str, Any]:
    """Two-hop accuracy and η of every choice at the bytes of uniform patches, and at 70 % of them.

    The second and third page of the demo's stories are patched, each behind those before it.
    """
    runner = BatchRunner(vlm)
    scene = stage(
        vlm, runner, [sample_story(np.random.default_rng((seed, i))) for i in range(episodes)], lambda *_: None
    )
    trio = scene.trio
    (tails, answers) = scene.two_hop
    full = runner.prefill(trio)
    blind = runner.reuse(trio, [None] * 3)
    reference = runner.ask(full, tails)
    baseline = runner.ask(blind, tails)
    parts = {
        weighted: [
            None
            if i == 0
            else _components(full.conditioned[i], chunk, _frame(vlm, full, trio, i) if weighted else None)
            for i, chunk in enumerate(trio)
        ]
        for weighted in (False, True)
    }
    page_bytes = sum(chunk.length for chunk in trio[1:]) * vlm.spec.token_bytes
    layers = vlm.spec.layers - 1
    itemsize = jnp.dtype(vlm.spec.dtype).itemsize
    size = partial(patch.component_bytes, trio[1].length, vlm.spec.rot_dim + vlm.spec.free_dim)
    rows = []
    for (name, (choose, weighted, int8)), rank in itertools.product(CHOICES.items(), RANKS):
        for share in SHARES[int8] if name != "uniform" else (1.0,):
            count = int(share * rank * layers * size(itemsize) // size(1 if int8 else itemsize))
            factors = [
                None if part is None else _factors(part, choose(part.energy, count), trio[1].kv.rot.shape[2], int8)
                for part in parts[weighted]
            ]
            logits = runner.ask(runner.reuse(trio, factors), tails)
            rows.append(
                {
                    "choice": name,
                    "rank": rank,
                    "of_uniform": share,
                    "bytes": mean_bytes(factors, trio) / page_bytes,
                    "accuracy": metrics.accuracy(logits, answers),
                    "eta": metrics.eta(reference, logits, baseline),
                }
            )
    return {
        "seed": seed,
        "episodes": episodes,
        "full": metrics.accuracy(reference, answers),
        "blind": metrics.accuracy(baseline, answers),
        "rows": rows,
    }


def _components(conditioned: Any, chunk: Any, frame: tuple[np.ndarray, np.ndarray] | None) -> Components:
    delta = np.asarray(conditioned.features, np.float64) - np.asarray(chunk.kv.features, np.float64)
    delta = delta[:, :, : chunk.length]
    u, strengths, v = np.linalg.svd(delta if frame is None else delta @ frame[0], full_matrices=False)
    v = strengths[..., None] * v
    return Components(u.swapaxes(-1, -2), v if frame is None else v @ frame[1], strengths**2)


def _factors(part: Components, ranks: np.ndarray, tokens: int, int8: bool) -> Factors:
    used = max(int(ranks.max()), 1)
    u = np.pad(part.u[:, :, :used], [(0, 0)] * 3 + [(0, tokens - part.u.shape[-1])])
    factors = Factors(jnp.asarray(u, jnp.float32), jnp.asarray(part.v[:, :, :used], jnp.float32), jnp.asarray(ranks))
    return jax.vmap(patch.quantised)(factors) if int8 else factors


def _frame(vlm: Any, windows: Windows, chunks: Sequence[Stack], place: int) -> tuple[np.ndarray, np.ndarray]:
    """A page's weighting of features, and its inverse [E, L, F, F], from the queries it reads the pages before with."""
    base = windows.position - sum(chunk.advance for chunk in chunks[place:])
    before = jnp.arange(windows.state.valid.shape[-1]) < windows.slots[place]
    state = replace(windows.state, valid=windows.state.valid & before[None, :])
    moments = _moments(vlm.params, chunks[place].segment.at(base), state, forward=vlm.forward)
    return frames(vlm, np.asarray(moments, np.float64), windows.conditioned[place], chunks[place].length)


@partial(jax.jit, static_argnames="forward")
def _moments(params: Any, segment: Segment, state: WindowState, *, forward: Callable[..., Output]) -> jax.Array:
    """Second moments of every head's un-rotated, scaled queries over a page's tokens [E, L, N, D, D]."""

    def one(run: tuple[Segment, WindowState]) -> jax.Array:
        queries = forward(params, *run, collect=("queries",)).aux["queries"]
        queries = jnp.where(run[0].valid[None, :, None, None], queries, 0.0)
        return jnp.einsum("ltnd,ltne->lnde", queries, queries) / run[0].length.astype(jnp.float32)

    return jax.lax.map(one, (segment, state), batch_size=AT_ONCE)
