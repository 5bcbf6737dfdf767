"""The vision tower in training: from the pixels of single cells to their embeddings."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eval.tiny import pages
from models.media import ImageConfig, preprocess_image
from models.params import Params
from models.qwen2_5_vl import vision
from models.qwen2_5_vl.config import VisionConfig


def cell_patches(images: ImageConfig) -> np.ndarray:
    """Patches of every cell, f32[N_CELLS, 4, C]."""
    return np.stack([preprocess_image(pixels, images).patches for pixels in pages.all_cells()])


def embed_cells(params: Params, config: VisionConfig, patches: jax.Array) -> jax.Array:
    """The tower's embeddings [n, E] of n cells, patches [n, 4, C], laid out as one column of cells."""
    layout = vision.plan(config.spatial_merge_size * len(patches), config.spatial_merge_size, config, bucket=1)
    return vision.encode_image(params, config, patches.reshape(-1, patches.shape[-1]), layout)


def tower_table(params: Params, config: VisionConfig, patches: np.ndarray) -> jax.Array:
    """The tower's embeddings of all cells [N_CELLS, E]."""
    return jax.jit(lambda params, patches: embed_cells(params, config, patches))(params, jnp.asarray(patches))


def train_tower(
    params: Params,
    config: VisionConfig,
    patches: np.ndarray,
    table: jax.Array,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    log: Callable[[dict[str, Any]], None],
) -> Params:
    """Fit the tower to a table of cell embeddings [N_CELLS, E] by least squares.

    Args:
        params: of the tower.
        config: of the tower.
        patches: of every cell, f32[N_CELLS, 4, C].
        table: where they should come out.
        steps, batch, learning_rate, seed: of the training; a batch is so many cells.
        log: called ten times with what was measured.
    """
    optimiser = optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 20 + 1, steps, learning_rate / 100)
    )
    scale = jnp.mean(jnp.square(table))

    def loss(params: Params, pixels: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(embed_cells(params, config, pixels) - target)) / scale

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, pixels: jax.Array, target: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, pixels, target)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, rng, start = optimiser.init(params), np.random.default_rng(seed), time.time()
    losses: list[jax.Array] = []
    for number in range(1, steps + 1):
        cells = _draw(rng, batch)
        params, state, value = step(params, state, patches[cells], table[cells])
        losses.append(value)
        if number % max(steps // 10, 1) == 0:
            log(
                {
                    "step": number,
                    "relative_error": float(np.sqrt(np.mean(losses))),
                    "seconds": round(time.time() - start, 1),
                }
            )
            losses = []
    return params


def _draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Cells of every kind: references are most of the table, and facts carry as much."""
    facts = pages.fact(0, 0)
    references = pages.reference(0, 0)
    cells = rng.integers(references, pages.N_CELLS, count)
    cells[: count // 3] = rng.integers(facts, references, count // 3)
    cells[: count // 30] = rng.integers(0, pages.BACKGROUNDS, count // 30)
    return cells
