"""Train the tower of kamera-smol-vl from scratch: `make train-smol-vl`.

The language model takes no part in it: the tower learns which of all drawable tokens a picture shows, from its code
among the codes of others, of which each batch has a few thousand: those spelled alike, those that the pictures are most
easily taken for, and some drawn at random.
"""

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from eval.smol_vl.words import HELD_OUT, Batch, Words
from models.blocks.params import Params, init_params
from models.hub.fields import Fields, read_json
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.packaged import packaged
from models.hub.tokenizers import load_tokenizer
from models.hub.weights import save_params
from models.media.typeset import Piece
from models.ports.smol_vl.config import tower_config
from models.ports.smol_vl.folder import pieces
from models.ports.smol_vl.tower import Spelling, TowerConfig, codes, spelled, trained_declaration
from models.ports.smol_vl.weights import trained_table
from models.registry import CHECKPOINTS

STEPS = 4500
"""Half an hour of one core. The embedded tower had 1,500 steps, a third of these."""

TAKEN = 6
"""Tokens that a picture is most easily taken for: it is told apart from these in every batch."""

GROUP = 48
"""Tokens of a group, of which at most one is among those."""

RANKED = 50
"""Steps after which it is looked anew which these are."""

WARM_UP = 200
DECAY = 0.01
"""Of weights, and of the learning rate in the end."""


class Learner:
    """The tower in training.

    Attributes:
        params: what is trained, as declared by `trained_declaration`, and a scale of scores.
        average: the mean of what they were lately, which is what is kept.
    """

    def __init__(self, config: TowerConfig, spelling: Spelling, *, rate: float = 2e-3, seed: int = 0) -> None:
        """Start from random parameters."""
        self.config = config
        self.rate = rate
        params = init_params(trained_declaration(config), jax.random.key(seed))
        for name in ("front", "back", "apart"):
            params[name] = params[name] * 0.02 * params[name].shape[0] ** 0.5
        self.params: Params = {**params, "scale": jnp.ones(())}
        self.average = jax.tree.map(jnp.array, self.params)
        self._rows = [jnp.asarray(each) for each in (spelling.front, spelling.back, spelling.apart)]
        self._optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))
        self._state = self._optimiser.init(self.params)
        self._steps = 0
        self._ranked = 0
        self._table = spelled(self.params, *self._rows)
        self._step = jax.jit(self._updated, donate_argnums=(0, 1, 2))
        self._best = jax.jit(lambda params, boxes, table: _best(codes(params, config, boxes) @ table.T, TAKEN))

    def step(self, batch: Batch, done: float) -> tuple[jax.Array, jax.Array]:
        """One step on a batch, where a share of the training is ``done``; its loss, and the share of tokens read."""
        self._steps += 1
        rate = self.rate * min(self._steps / WARM_UP, 1) * max(0.5 + 0.5 * np.cos(np.pi * min(done, 1)), DECAY)
        self.params, self._state, self.average, *measured = self._step(
            self.params,
            self._state,
            self.average,
            (batch.boxes, batch.targets, batch.candidates, batch.offsets),
            np.float32(rate),
            np.float32(max(1 / self._steps, 0.005)),
        )
        return measured[0], measured[1]

    def accuracy(self, pictures: np.ndarray, tokens: np.ndarray) -> float:
        """The share of pictures of which the token, a place in the spelling, is read: among all that can be drawn."""
        best = self._taken(self.average, spelled(self.average, *self._rows), pictures)
        return float(np.mean(best[:, 0] == tokens))

    def rank(self, pictures: np.ndarray) -> np.ndarray:
        """The `TAKEN` tokens that each picture is most easily taken for, by the codes of tokens of some steps ago."""
        if self._steps >= self._ranked + RANKED:
            self._ranked = self._steps
            self._table = spelled(self.params, *self._rows)
        return self._taken(self.params, self._table, pictures)

    def _taken(self, params: Params, table: jax.Array, pictures: np.ndarray) -> np.ndarray:
        padded = np.pad(pictures, ((0, -len(pictures) % 256), (0, 0)))
        best = [np.asarray(self._best(params, part, table)) for part in np.split(padded, len(padded) // 256)]
        return np.concatenate(best)[: len(pictures)]

    def kept(self) -> Params:
        """What is stored: the average, with the scale in the letters' vectors."""
        average = dict(self.average)
        scale = average.pop("scale")
        return {name: leaf * scale if name in ("front", "back", "apart") else leaf for name, leaf in average.items()}

    def _updated(
        self, params: Params, state: Any, average: Params, batch: Any, rate: jax.Array, share: jax.Array
    ) -> tuple[Any, ...]:
        (loss, right), gradient = jax.value_and_grad(self._loss, has_aux=True)(params, *batch)
        updates, state = self._optimiser.update(gradient, state)
        params = jax.tree.map(lambda leaf, update: leaf - rate * (update + DECAY * leaf), params, updates)
        average = jax.tree.map(lambda mean, leaf: mean + (leaf - mean) * share, average, params)
        return params, state, average, loss, right

    def _loss(
        self,
        params: Params,
        boxes: Float[Array, "n P"],
        targets: Int[Array, " n"],
        candidates: Int[Array, " N"],
        offsets: Float[Array, " N"],
    ) -> tuple[jax.Array, jax.Array]:
        table = spelled(params, *(rows[candidates] for rows in self._rows))
        scores = params["scale"] * codes(params, self.config, boxes) @ table.T + offsets[None]
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()
        return loss, (scores.argmax(-1) == targets).mean()


def _best(scores: Float[Array, "n V"], count: int) -> Int[Array, "n k"]:
    """The best token of each of the ``count`` best groups, the best one first: sorting all takes far longer."""
    groups = max(scores.shape[1] // GROUP, count)
    padded = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % groups)), constant_values=-jnp.inf)
    grouped = padded.reshape(len(scores), groups, -1)
    chosen = jax.lax.top_k(grouped.max(axis=-1), count)[1]
    within = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).argmax(axis=-1)
    return jnp.minimum(chosen * grouped.shape[-1] + within, scores.shape[1] - 1)


def train(
    drawn: dict[int, Piece],
    counts: dict[int, int],
    config: TowerConfig,
    *,
    steps: int = STEPS,
    minutes: float = 0.0,
    size: int = 256,
    candidates: int = 3072,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] = print,
    keep: Callable[[Params], None] = lambda params: None,
) -> Params:
    """Train a tower.

    Args:
        drawn: the tokens that can be drawn.
        counts: how often they are in some text.
        config: sizes of the tower.
        steps: of the optimiser; with ``minutes``, at most.
        minutes: after which the training is over, whatever the number of steps; 0 for no such limit.
        size: pictures of a batch, and tokens of a page.
        candidates: tokens among which those of a batch are to be recognised.
        seed: of parameters and batches.
        log: called ten times and more with what was measured.
        keep: called as often with what would be stored.
    """
    words = Words(drawn, counts, seed)
    learner = Learner(config, words.spelling, seed=seed)
    measured = Words(drawn, counts, seed + 1)
    sets = {"seen faces": measured.pictures(measured.tokens(1024))}
    sets["other faces"] = measured.pictures(measured.tokens(1024), HELD_OUT)
    start = time.time()
    recent: list[tuple[jax.Array, jax.Array]] = []
    for number in range(1, steps + 1):
        passed = (time.time() - start) / 60
        done = max(number / steps, passed / minutes if minutes else 0)
        recent.append(learner.step(words.batch(size, candidates, learner.rank), done))
        if number % max(min(steps // 10, 250), 1) == 0 or done >= 1:
            loss, right = np.mean(np.asarray(recent), axis=0)
            read = {name: round(learner.accuracy(*each), 4) for name, each in sets.items()}
            record = {"step": number, "loss": round(float(loss), 4), "read": round(float(right), 4), **read}
            log({**record, "minutes": round((time.time() - start) / 60, 1)})
            keep(learner.kept())
            recent = []
        if done >= 1:
            break
    return learner.kept()


def corpus() -> str:
    """Text whose tokens are drawn more often: Python's own help topics."""
    from pydoc_data.topics import topics

    return " " + " ".join(" ".join(topics[name] for name in sorted(topics)).split())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the tower of kamera-smol-vl from scratch.")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS / "kamera-smol-vl", help="where the weights go")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long, the rate run down until then")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = CHECKPOINTS / "kamera-smol-vl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocessor_config.json", "chat_template.jinja"):
        if arguments.output != source:
            shutil.copyfile(source / name, arguments.output / name)
    mapping = read_json(source / "config.json")
    with hub_folder(packaged(mapping["language_model"])) as folder:
        tokenizer = load_tokenizer(folder)
        vocabulary = read_json(folder / "config.json")["vocab_size"]
    config = TowerConfig(vocab_size=vocabulary, **tower_config(Fields("config.json", mapping), 0))
    counts = Counter(tokenizer.backend_tokenizer.encode(corpus(), add_special_tokens=False).ids)
    history: list[dict[str, Any]] = []

    def log(record: dict[str, Any]) -> None:
        history.append(record)
        print(json.dumps(record), flush=True)

    write = partial(save_params, arguments.output, table=trained_table(), dtype=jnp.float16)
    train(
        pieces(tokenizer),
        counts,
        config,
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        log=log,
        keep=write,
    )
    (arguments.output / "training.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
