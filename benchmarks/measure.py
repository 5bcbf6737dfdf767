"""Drifts by the hundred: what attention changes by, and what reusing a patch really costs against a full prefill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
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
from kamera_jax.guard import prior
from kamera_jax.kv import KV, Factors, Segment, Sketch, WindowState
from kamera_jax.patch import sketch
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
        shares: what is lost, added and moved of attention [n, 3]; see `kamera_jax.guard.prior.Difference`.
        blind: as ``mean``, of the chunk without its patch.
    """

    kinds: np.ndarray
    mean: np.ndarray
    worst: np.ndarray
    changes: np.ndarray
    shares: np.ndarray
    blind: np.ndarray

    def save(self, path: Path) -> None:
        """Write it to a file, for `read`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """What `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

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
            kl, blind, changes = drifted(vlm, runner, formed, drifts)
            probed = np.array([drift.probed(scene) for drift, scene in zip(drifts, formed.scenes, strict=True)])
            # Such that every episode has a probe: an unanswerable one, if all its references wait for a page.
            probed |= ~probed.any(1, keepdims=True)
            mean, bare = ((each * probed).sum(1) / probed.sum(1) for each in (kl, blind))
            worst = np.where(probed, kl, 0.0).max(1)
            shares = [formed.shares(i, drift.before) for i, drift in enumerate(drifts)]
            rows.append(([kind] * SCENES, mean, worst, changes, shares, bare))
        progress("drifts", group + 1, groups)
    return Measured(*(np.concatenate(column) for column in zip(*rows, strict=True)))


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
        sketches: of all layers, of what they read there.
        mass: attention to each antecedent, [SCENES, L, 3].
        tails: a question for every reference [SCENES, REFERENCES, ·].
    """

    scenes: list[Scene]
    chunks: dict[str, list[kj.Chunk]]
    judged: Stack
    factors: Factors
    sketches: Sketch
    mass: np.ndarray
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
        every = kj.SketchSpec(tuple(range(vlm.spec.layers)))
        at = jnp.float32(context.position)
        own = (output.aux["queries"], judged.kv, factors, judged.segment)
        sketches = _sketches(*own, context.state, at, which=every, spec=vlm.spec)
        slots = [
            range(slot, slot + kv.rot.shape[2]) for slot, kv in zip(context.slots, context.conditioned, strict=True)
        ]
        received = np.asarray(output.aux["attention_mass"])
        mass = np.stack([received[..., list(here)].sum(-1) for here in slots], axis=-1)
        tails = runner.tails([[question_text(glyph) for glyph, _ in scene.references] for scene in scenes])
        return Formed(scenes, chunks, judged, factors, sketches, mass, tails)

    def shares(self, scene: int, before: Sequence[str]) -> tuple[float, float, float]:
        """What is lost, added and moved of the attention of an episode's judged page."""
        names = self.scenes[scene].formed
        found = prior.difference(names, prior.shares_of(self.mass[scene]), before)
        return found.lost, found.added, found.moved


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL of every probe with the patch and without it [SCENES, REFERENCES], and every layer's change [SCENES, L].

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
    blind = runner.reuse(chunks, [None] * len(chunks))
    wanted = runner.ask(full, formed.tails)
    kl, bare = (metrics.kl(wanted, runner.ask(windows, formed.tails)) for windows in (reuse, blind))
    context = runner.reuse(before, [None] * place)
    judged = formed.judged
    changes = _changes(
        formed.sketches,
        judged.kv,
        formed.factors,
        judged.segment,
        context.state,
        jnp.float32(context.position),
        spec=vlm.spec,
    )
    return np.asarray(kl), np.asarray(bare), np.asarray(changes)


def _stacks(rows: Sequence[Sequence[kj.Chunk]]) -> list[Stack]:
    return [Stack.of(place) for place in zip(*rows, strict=True)]


COLLECTED = ("queries", "attention_mass")


@partial(jax.jit, static_argnames="forward")
def _collect(params: Any, segment: Segment, state: WindowState, *, forward: Callable[..., Output]) -> Output:
    return jax.lax.map(lambda run: forward(params, *run, collect=COLLECTED), (segment, state), batch_size=SCENES)


@partial(jax.jit, static_argnames=("which", "spec"))
def _sketches(
    queries: jax.Array,
    kv: KV,
    factors: Factors,
    segment: Segment,
    state: WindowState,
    base: jax.Array,
    *,
    which: kj.SketchSpec,
    spec: kj.KVSpec,
) -> Sketch:
    def one(queries: jax.Array, kv: KV, factors: Factors, segment: Segment, state: WindowState) -> Sketch:
        context = (state.rot, state.free, state.valid, base)
        own = (kv, factors, segment.positions, segment.length)
        return sketch.take(queries, *own, *context, which=which, spec=spec)

    return jax.vmap(one)(queries, kv, factors, segment, state)


@partial(jax.jit, static_argnames="spec")
def _changes(
    kept: Sketch,
    kv: KV,
    factors: Factors,
    segment: Segment,
    state: WindowState,
    base: jax.Array,
    *,
    spec: kj.KVSpec,
) -> jax.Array:
    def one(kept: Sketch, kv: KV, factors: Factors, segment: Segment, state: WindowState) -> jax.Array:
        context = (state.rot, state.free, state.valid, base)
        now, _ = sketch.reread(kept, kv, factors, segment.positions, *context, spec=spec)
        return sketch.changes(kept.outputs, now)

    return jax.vmap(one)(kept, kv, factors, segment, state)
