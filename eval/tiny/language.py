"""The tiny language model in training: symbolic cells, one mask for all questions of an episode."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eval.tiny import pages
from eval.tiny.backbones import TinyBackbone
from eval.tiny.batches import Batch, Words, sample_batch
from eval.tiny.episodes import Recipe
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from models.blocks.decoder import DecoderConfig, decoder, logits
from models.blocks.layers import rms_norm
from models.blocks.params import ParamInfo, Params
from models.blocks.softmax import grouped_attention


@dataclass(frozen=True)
class Stage:
    """Part of the curriculum.

    Attributes:
        recipe: what episodes look like.
        steps: optimiser steps.
        batch: episodes per step.
        gap: largest jump of the position before a chunk.
        probes: weight of the loss at cells that bind, beside that of the answers.
    """

    recipe: Recipe
    steps: int
    batch: int
    gap: int = 0
    probes: float = 0.5


def cell_declaration(width: int) -> Params:
    """What cells need besides the words: backgrounds, a mark for facts and one for references, and padding."""
    return {
        "background": ParamInfo((pages.BACKGROUNDS, width), "embedding"),
        "kind": ParamInfo((2, width), "embedding"),
        "padding": ParamInfo((1, width), "embedding"),
    }


def cell_table(cells: Params, words: Words, embeddings: jax.Array) -> jax.Array:
    """Embeddings of all cells and of padding [N_CELLS + 1, E], by id: what the tower learns to produce.

    They are sums of word embeddings, so that the same circuit serves names and pictures: a fact is its glyph and its
    colour, a reference its glyph and, in the other half of the features, its target.
    """
    width = embeddings.shape[-1]
    glyphs = embeddings[jnp.array([words.ids[name] for name in NAMES])]
    colours = embeddings[jnp.array([words.ids[name] for name in COLOUR_NAMES])]
    targets = jnp.roll(glyphs, width // 2, axis=-1)
    facts = cells["kind"][None, :1] + glyphs[:, None] + colours[None]
    references = cells["kind"][None, 1:] + glyphs[:, None] + targets[None]
    return jnp.concatenate(
        [cells["background"], facts.reshape(-1, width), references.reshape(-1, width), cells["padding"]]
    )


def visible(chunk: jax.Array, tail: jax.Array, hidden: jax.Array) -> jax.Array:
    """Who sees whom, bool[S, S]: causal, tails apart from each other, hidden chunks not at all; see `Batch`."""
    slots = chunk.shape[0]
    order = jnp.arange(slots)
    sees = (order[None, :] <= order[:, None]) & (tail >= 0)[None, :]
    sees &= (tail[None, :] == 0) | (tail[None, :] == tail[:, None])
    return sees & ~hidden[tail[:, None], chunk[None, :]]


def answer_logits(text: Params, table: jax.Array, config: DecoderConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits where answers are predicted [B, Q, 3, V], and at the probes after every layer [L, B, R, V].

    The episodes lie end to end as one sequence, so that everything but attention is one large matrix product.
    """
    count, slots = batch.ids.shape
    mask = jax.vmap(visible)(batch.chunk, batch.tail, batch.hidden)

    def attend(q: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, None]:
        q, k, v = (x.reshape(count, slots, *x.shape[1:]) for x in (q, *parts[0]))
        out = jax.vmap(partial(grouped_attention, scale=config.attention.scale))(q, k, v, mask).out
        return out.reshape(count * slots, -1), None

    def rows(places: jax.Array) -> jax.Array:
        return (jnp.arange(count)[:, None] * slots + places.reshape(count, -1)).reshape(-1)

    def read(x: jax.Array) -> jax.Array:
        return logits(text, rms_norm(x[rows(batch.probe)], text["norm"], config.rms_norm_eps))

    embeds = jnp.concatenate([text["embed"]["w"], table])[batch.ids.reshape(-1)]
    positions = batch.positions.swapaxes(0, 1).reshape(batch.positions.shape[1], -1)
    decoded = decoder(text, config, embeds, positions, attend, observe=read)
    answers = logits(text, decoded.hidden[rows(batch.ask)]).reshape(*batch.ask.shape, -1)
    return answers, decoded.observed.reshape(-1, *batch.probe.shape, answers.shape[-1])


def loss_and_hits(text: Params, table: jax.Array, config: DecoderConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy of answers and probes, and whether each answer's colour was right, bool[B, Q].

    The probes ask a reference cell itself what it leads to, from the earliest layer that can know: the model learns to
    bind inside the chunk, and soon enough for the next hop to follow.
    """
    predicted, probed = answer_logits(text, table, config, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(predicted, batch.answer).mean(axis=(0, 1))
    layers = jnp.arange(len(probed))[:, None, None]
    asked = (layers >= batch.probe_layer[None]) & (batch.probe_answer >= 0)[None]
    answers = jnp.broadcast_to(jnp.maximum(batch.probe_answer, 0)[None], asked.shape)
    probe_losses = jnp.where(asked, optax.softmax_cross_entropy_with_integer_labels(probed, answers), 0.0)
    probe_loss = probe_losses.sum() / jnp.maximum(asked.sum(), 1).astype(jnp.float32)
    scored = jnp.argmax(batch.weight)
    hits = jnp.take(predicted, scored, axis=2).argmax(-1) == jnp.take(batch.answer, scored, axis=2)
    return jnp.sum(losses * batch.weight) + batch.probe_weight * probe_loss, hits


def batches(stages: Sequence[Stage], words: Words, model: str, seed: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """(stage, batch) for every step, sampled ahead in worker processes; the same for any number of workers."""
    plan = [(i, stage) for i, stage in enumerate(stages) for _ in range(stage.steps)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending: list[Any] = []
        for step in range(len(plan) + 4 * workers):
            if step < len(plan):
                number, stage = plan[step]
                job = pool.submit(
                    sample_batch,
                    (seed, step),
                    stage.recipe,
                    words,
                    stage.batch,
                    model,
                    max_gap=stage.gap,
                    probe_weight=stage.probes,
                )
                pending.append((number, job))
            if step >= 4 * workers:
                number, job = pending.pop(0)
                yield number, job.result()


def by_hops(hits: np.ndarray, hops: np.ndarray) -> dict[int, float]:
    """Accuracy per hop count."""
    return {int(h): round(float(hits[hops == h].mean()), 4) for h in np.unique(hops)}


def train_language(
    params: Params,
    backbone: TinyBackbone,
    stages: Sequence[Stage],
    words: Words,
    *,
    learning_rate: float,
    seed: int,
    workers: int,
    table: Callable[[Params], jax.Array],
    log: Callable[[dict[str, Any]], None],
    every: int = 50,
) -> Params:
    """Train ``params`` (with ``text`` and whatever ``table`` needs) through the stages.

    Args:
        table: cell embeddings [N_CELLS + 1, E] from the parameters.
        log: called every ``every`` steps with what was measured since.
    """
    steps = sum(stage.steps for stage in stages)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(200, steps // 5 + 1), steps, learning_rate / 30
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return loss_and_hits(params["text"], table(params), backbone.config.text, batch)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, batch: Batch) -> tuple[Any, Any, jax.Array, jax.Array]:
        (value, hits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, hits

    state = optimiser.init(params)
    start = time.time()
    seen = []
    for number, (stage, batch) in enumerate(batches(stages, words, backbone.key, seed, workers), start=1):
        params, state, value, hits = step(params, state, batch)
        seen.append((value, hits, batch.hops))
        if number % every == 0 or number == steps:
            right = np.concatenate([np.asarray(h).ravel() for _, h, _ in seen])
            hops = np.concatenate([h.ravel() for _, _, h in seen])
            record = {
                "step": number,
                "stage": stage,
                "loss": float(np.mean([v for v, _, _ in seen])),
                **by_hops(right, hops),
            }
            log({**record, "seconds": round(time.time() - start, 1)})
            seen = []
    return params
