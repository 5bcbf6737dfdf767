"""Drifts by the hundred: what attention changes by, and what reusing a patch really costs against a full prefill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks.drifts import KINDS, MOST_PAGES, Drift, Scene, sample_drift, sample_scene
from eval.run import metrics
from eval.tiny import pages
from eval.tiny.episodes import question_text
from kamera_jax.backbone import Backbone, Output
from kamera_jax.batch.windows import BatchRunner, Stack, fit
from kamera_jax.guard import staleness as lineage
from kamera_jax.kv import KV, Factors, Segment, WindowState
from kamera_jax.window.window import aligned

SCENES = 10
"""Episodes that share the shapes of a group; each goes through every kind of drift once."""

PAGES = 4 + MOST_PAGES
"""Most pages in a window; the most passages take less."""

PATCH_SHARE = 0.5
"""Bytes of a patch, at most, as a share of its chunk's KV: enough for a KL to be the drift's, not the rank's."""


@dataclass(frozen=True)
class Measured:
    """Drifts with what they changed and what reuse then cost.

    Attributes:
        kinds: of `KINDS`, for each of n drifts.
        mean, worst: KL(present reference ‖ reuse) over the multi-hop probes, in nats [n].
        changes: how far attention outputs have moved in every layer [n, L]; see `change`.
    """

    kinds: np.ndarray
    mean: np.ndarray
    worst: np.ndarray
    changes: np.ndarray

    def change(self, spec: kj.SketchSpec) -> np.ndarray:
        """`kamera_jax.Staleness.change` of a sketch with as many tokens as were measured [n]."""
        return (self.changes[:, list(spec.layers)] * np.asarray(spec.weights)).max(1)


Progress = Callable[[str, int, int], None]


def measure(vlm: Backbone, seed: int, groups: int, progress: Progress = lambda *_: None) -> Measured:
    """Draw ``groups`` groups of `SCENES` episodes and put each through every kind of drift.

    Args:
        vlm: a model that reads the tiny pages.
        seed: of the episodes.
        groups: how many groups; each gives ``SCENES * len(KINDS)`` drifts.
        progress: told how far it is.
    """
    runner = BatchRunner(vlm, capacity=_capacity(vlm))
    rows = []
    for group in range(groups):
        rng = np.random.default_rng((seed, group))

        formed = Formed.of(vlm, runner, [sample_scene(rng) for _ in range(SCENES)])
        for number, kind in enumerate(KINDS):
            drifts = [
                sample_drift(rng, np.random.default_rng((seed, group, number)), scene, kind) for scene in formed.scenes
            ]
            kl, changes = drifted(vlm, runner, formed, drifts)
            probed = np.array([drift.probed(scene) for drift, scene in zip(drifts, formed.scenes, strict=True)])
            # Such that every episode has a probe: an unanswerable one, if all its references wait for a page.
            probed |= ~probed.any(1, keepdims=True)
            mean = (kl * probed).sum(1) / probed.sum(1)
            rows.append(([kind] * SCENES, mean, np.where(probed, kl, 0.0).max(1), changes))
        progress("drifts", group + 1, groups)
    kinds, mean, worst, changes = zip(*rows, strict=True)
    return Measured(
        np.concatenate(kinds),
        np.concatenate(mean),
        np.concatenate(worst),
        np.concatenate(changes),
    )


def _capacity(vlm: Backbone) -> int:
    page = vlm.prepare(pages.render(sample_scene(np.random.default_rng(0)).cells["judged"]))
    return aligned(int(vlm.preamble.length)) + PAGES * aligned(int(page.length))


@dataclass(frozen=True)
class Formed:
    """A group of episodes whose judged pages have been given patches.

    Attributes:
        scenes: the episodes.
        chunks: canonical chunks of every page and passage, by name, a list over episodes.
        judged: the judged pages.
        factors: their patches.
        output: what the forming forward collected.
        tails: a question for every reference [SCENES, REFERENCES, ·].
    """

    scenes: list[Scene]
    chunks: dict[str, list[kj.Chunk]]
    judged: Stack
    factors: Factors
    output: Output
    tails: Segment

    @staticmethod
    def of(vlm: Backbone, runner: BatchRunner, scenes: list[Scene]) -> "Formed":
        """Encode every page once, and form the patches behind their antecedents by full prefill."""
        items = [
            {name: pages.render(cells) for name, cells in scene.cells.items()} | {"passage": scene.passage}
            for scene in scenes
        ]
        chunks = {name: [kj.encode(vlm, item[name]) for item in items] for name in items[0]}
        judged = Stack.of(chunks["judged"])
        context = runner.prefill(_stacks([[chunks[name][i] for name in s.formed] for i, s in enumerate(scenes)]))
        output = _collect(vlm.params, judged.segment.at(context.position), context.state, forward=vlm.forward)
        factors = fit(output.kv, judged.kv, judged.length, rank=rank_for(vlm, chunks["judged"][0]))
        tails = runner.tails([[question_text(glyph) for glyph, _ in scene.references] for scene in scenes])
        return Formed(scenes, chunks, judged, factors, output, tails)


def rank_for(vlm: Backbone, chunk: kj.Chunk) -> int:
    """The largest rank whose patch takes at most `PATCH_SHARE` of the chunk's bytes."""
    return kj.patch.rank_for_bytes(
        int(PATCH_SHARE * chunk.nbytes),
        layers=vlm.spec.layers,
        length=chunk.length,
        features=vlm.spec.rot_dim + vlm.spec.free_dim,
        itemsize=chunk.kv.rot.dtype.itemsize,
    )


def drifted(
    vlm: Backbone, runner: BatchRunner, formed: Formed, drifts: Sequence[Drift]
) -> tuple[np.ndarray, np.ndarray]:
    """KL of every probe [SCENES, REFERENCES], and the change of attention in every layer [SCENES, L].

    The other chunks stand there as encoded, without patches: they show facts alone.
    """

    def named(names: list[str], i: int) -> list[kj.Chunk]:
        edited = drifts[i].edited
        now = {} if edited is None else {"edited": kj.encode(vlm, pages.render(edited))}
        return [now[name] if name in now else formed.chunks[name][i] for name in names]

    before = _stacks([named(drift.before, i) for i, drift in enumerate(drifts)])
    after = _stacks([named(drift.after, i) for i, drift in enumerate(drifts)])
    chunks = [*before, formed.judged, *after]
    place = len(before)
    patches = [formed.factors if i == place else None for i in range(len(chunks))]
    full = runner.prefill(chunks)
    reuse = runner.reuse(chunks, patches)
    kl = metrics.kl(runner.ask(full, formed.tails), runner.ask(reuse, formed.tails))
    context = runner.reuse(before, [None] * place)
    judged = formed.judged
    changes = _changes(
        formed.output,
        judged.kv,
        formed.factors,
        judged.segment,
        context.state,
        jnp.float32(context.position),
        which=kj.SketchSpec(tuple(range(vlm.spec.layers))),
        spec=vlm.spec,
    )
    return np.asarray(kl), np.asarray(changes)


def _stacks(rows: Sequence[Sequence[kj.Chunk]]) -> list[Stack]:
    return [Stack.of(place) for place in zip(*rows, strict=True)]


@partial(jax.jit, static_argnames="forward")
def _collect(params: Any, segment: Segment, state: WindowState, *, forward: Callable[..., Output]) -> Output:
    return jax.lax.map(lambda run: forward(params, *run, collect=("queries",)), (segment, state), batch_size=SCENES)


@partial(jax.jit, static_argnames=("which", "spec"))
def _changes(
    formed: Output,
    kv: KV,
    factors: Factors,
    segment: Segment,
    state: WindowState,
    base: jax.Array,
    *,
    which: kj.SketchSpec,
    spec: kj.KVSpec,
) -> jax.Array:
    def one(formed: Output, kv: KV, factors: Factors, segment: Segment, state: WindowState) -> jax.Array:
        sketch = lineage.take(formed.aux["queries"], formed.aux["attended"], segment.length, spec=which)
        now, _ = lineage.reread(
            sketch, kv, factors, segment.positions, state.rot, state.free, state.valid, base, spec=spec
        )
        return lineage.changes(sketch.outputs, now)

    return jax.vmap(one)(formed, kv, factors, segment, state)
