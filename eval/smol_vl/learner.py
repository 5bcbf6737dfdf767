"""The tower in training: which of all drawable tokens does a picture show?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from models.blocks.params import Params, init_params
from models.ports.smol_vl.tower import Spelling, TowerConfig, codes, spelled, trained_declaration
from models.ports.smol_vl.weights import LETTERS

TAKEN = 6
"""Tokens that a picture is most easily taken for: it is told apart from these in every batch."""

GROUP = 48
"""Tokens of a group, of which at most one is among those."""

RANKED = 50
"""Steps after which it is looked anew which these are."""

DECAY = 0.01
"""Of weights, and of the learning rate in the end."""


class Learner:
    """The tower in training.

    Attributes:
        params: what is trained, as declared by `trained_declaration`, and a scale of scores.
        average: the mean of what they were lately, which is what is kept.
    """

    def __init__(
        self, config: TowerConfig, spelling: Spelling, params: Params, *, rate: float = 2e-3, warm_up: int = 200
    ) -> None:
        """Start from parameters that `trained_declaration` declares; see `random_params`."""
        self.config = config
        self.rate = rate
        self.warm_up = warm_up
        self.params: Params = {**params, "scale": jnp.ones(())}
        self.average = jax.tree.map(jnp.array, self.params)
        self.rows = [jnp.asarray(each) for each in (spelling.front, spelling.back, spelling.apart)]
        self._optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))
        self._state = self._optimiser.init(self.params)
        self._steps = 0
        self._ranked = 0
        self._table = spelled(self.params, *self.rows)
        self._step = jax.jit(self._updated, donate_argnums=(0, 1, 2))
        self._best = jax.jit(lambda params, boxes, table: _best(codes(params, config, boxes) @ table.T, TAKEN))

    def step(self, batch: tuple[Any, ...], done: float) -> tuple[jax.Array, jax.Array]:
        """One step on a batch, where a share of the training is ``done``; its loss, and the share of tokens read."""
        self._steps += 1
        rate = self.rate * min(self._steps / self.warm_up, 1) * max(0.5 + 0.5 * np.cos(np.pi * min(done, 1)), DECAY)
        self.params, self._state, self.average, *measured = self._step(
            self.params,
            self._state,
            self.average,
            batch,
            np.float32(rate),
            np.float32(max(1 / self._steps, 0.005)),
        )
        return measured[0], measured[1]

    def accuracy(self, pictures: np.ndarray, tokens: np.ndarray) -> float:
        """The share of pictures of which the token, a place in the spelling, is read: among all that can be drawn."""
        best = self._taken(self.average, spelled(self.average, *self.rows), pictures)
        return float(np.mean(best[:, 0] == tokens))

    def rank(self, pictures: np.ndarray) -> np.ndarray:
        """The `TAKEN` tokens that each picture is most easily taken for, by the codes of tokens of some steps ago."""
        if self._steps >= self._ranked + RANKED:
            self._ranked = self._steps
            self._table = spelled(self.params, *self.rows)
        return self._taken(self.params, self._table, pictures)

    def _taken(self, params: Params, table: jax.Array, pictures: np.ndarray) -> np.ndarray:
        padded = np.pad(pictures, ((0, -len(pictures) % 256), (0, 0)))
        best = [np.asarray(self._best(params, part, table)) for part in np.split(padded, len(padded) // 256)]
        return np.concatenate(best)[: len(pictures)]

    def kept(self) -> Params:
        """What is stored: the average, with the scale in the letters' vectors."""
        average = dict(self.average)
        scale = average.pop("scale")
        return {name: leaf * scale if name in LETTERS else leaf for name, leaf in average.items()}

    def _updated(
        self, params: Params, state: Any, average: Params, batch: Any, rate: jax.Array, share: jax.Array
    ) -> tuple[Any, ...]:
        (loss, right), gradient = jax.value_and_grad(self.loss, has_aux=True)(params, *batch)
        updates, state = self._optimiser.update(gradient, state)
        params = jax.tree.map(lambda leaf, update: leaf - rate * (update + DECAY * leaf), params, updates)
        average = jax.tree.map(lambda mean, leaf: mean + (leaf - mean) * share, average, params)
        return params, state, average, loss, right

    def loss(
        self,
        params: Params,
        boxes: Float[Array, "n P"],
        targets: Int[Array, " n"],
        candidates: Int[Array, " N"],
        offsets: Float[Array, " N"],
    ) -> tuple[jax.Array, jax.Array]:
        """How badly pictures are told from others, and the share of tokens read; see `eval.smol_vl.words.Batch`."""
        table = spelled(params, *(rows[candidates] for rows in self.rows))
        scores = params["scale"] * codes(params, self.config, boxes) @ table.T + offsets[None]
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()
        return loss, (scores.argmax(-1) == targets).mean()


def random_params(config: TowerConfig, seed: int) -> Params:
    """What a training from scratch starts from."""
    params = init_params(trained_declaration(config), jax.random.key(seed))
    for name in LETTERS:
        params[name] = params[name] * 0.02 * params[name].shape[0] ** 0.5
    return params


def _best(scores: Float[Array, "n V"], count: int) -> Int[Array, "n k"]:
    """The best token of each of the ``count`` best groups, the best one first: sorting all takes far longer."""
    groups = max(scores.shape[1] // GROUP, count)
    padded = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % groups)), constant_values=-jnp.inf)
    grouped = padded.reshape(len(scores), groups, -1)
    chosen = jax.lax.top_k(grouped.max(axis=-1), count)[1]
    within = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).argmax(axis=-1)
    return jnp.minimum(chosen * grouped.shape[-1] + within, scores.shape[1] - 1)
