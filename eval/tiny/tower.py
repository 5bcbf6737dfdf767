"""The vision tower in training: from the pixels of pages to the embeddings of their cells."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eval.tiny import pages
from eval.tiny.backbones import TinyBackbone
from eval.tiny.episodes import Recipe
from models.blocks.params import Params
from models.blocks.vit import pad_patches

_PAGE = (Recipe().rows, Recipe().columns)


class Tower:
    """The vision tower of an embedded model, over pages of one size."""

    def __init__(self, backbone: TinyBackbone) -> None:
        """Lay out a page of 6 x 10 cells."""
        self.backbone = backbone
        blank = self._preprocess(np.zeros(_PAGE, int))
        _, rows, columns = blank.grid
        self._plan = backbone.images.plan(rows, columns, backbone.config.vision)

    def pixels(self, cells: np.ndarray) -> np.ndarray:
        """Patches f32[n, P, C] of n pages of cells [n, rows, columns], from their images."""
        return np.stack([pad_patches(self._preprocess(page).patches, self._plan) for page in cells])

    def seen(self, cells: np.ndarray) -> np.ndarray:
        """The cell that each of the tower's embeddings shows [n, M]."""
        return np.stack([self.backbone.seen(page).reshape(-1) for page in cells])

    def embed(self, params: Params, pixels: jax.Array) -> jax.Array:
        """The embeddings of n pages [n, M, E], as the model would get them."""
        encode = self.backbone.images.encode
        config = self.backbone.config.vision
        plan = self._plan
        return jax.vmap(lambda each: jnp.asarray(encode(params, config, each, plan).rows)[: int(plan.tokens)])(pixels)

    def table(self, params: Params) -> jax.Array:
        """The embeddings of all cells and of padding [N_CELLS + 1, E], as they come out somewhere on a page."""
        count = -(-pages.N_CELLS // (_PAGE[0] * _PAGE[1]))
        cells = np.arange(count * _PAGE[0] * _PAGE[1]) % pages.N_CELLS
        cells = np.random.default_rng(0).permutation(cells).reshape(count, *_PAGE)
        embedded = np.asarray(jax.jit(self.embed)(params, self.pixels(cells)))
        table = np.zeros((pages.N_CELLS + 1, embedded.shape[-1]), np.float32)
        table[self.seen(cells).reshape(-1)] = embedded.reshape(-1, embedded.shape[-1])
        return jnp.asarray(table)

    def _preprocess(self, page: np.ndarray) -> Any:
        return self.backbone.images.preprocess(pages.render(page), self.backbone.settings)


def train_tower(
    params: Params,
    tower: Tower,
    table: jax.Array,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    log: Callable[[dict[str, Any]], None],
) -> Params:
    """Fit a tower to a table of cell embeddings [N_CELLS + 1, E] by least squares.

    Args:
        params: of the tower.
        tower: what they are of.
        table: where the cells should come out, whatever stands around them.
        steps, batch, learning_rate, seed: of the training; a batch is so many pages.
        log: called ten times with what was measured.
    """
    optimiser = optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 20 + 1, steps, learning_rate / 100)
    )
    scale = jnp.mean(jnp.square(table))

    def loss(params: Params, pixels: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(tower.embed(params, pixels) - target)) / scale

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, pixels: jax.Array, target: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, pixels, target)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    rng = np.random.default_rng(seed)
    start = time.time()
    losses: list[jax.Array] = []
    for number in range(1, steps + 1):
        cells = _draw(rng, batch)
        params, state, value = step(params, state, tower.pixels(cells), table[tower.seen(cells)])
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
    """Pages of every density, of cells of every kind: facts are fewer than references, and as many are shown.

    A tower that sees whole pages must know the empty ones too, or what surrounds a cell changes its embedding.
    """
    facts = pages.fact(0, 0)
    references = pages.reference(0, 0)
    shape = (count, _PAGE[0] * _PAGE[1])
    cells = np.where(
        rng.random(shape) < 0.4, rng.integers(facts, references, shape), rng.integers(references, pages.N_CELLS, shape)
    )
    empty = rng.random(shape) < rng.uniform(0.0, 0.9, (count, 1))
    return np.where(empty, rng.integers(0, pages.BACKGROUNDS, shape), cells).reshape(count, *_PAGE)
