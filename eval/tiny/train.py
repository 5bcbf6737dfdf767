"""Train an embedded model from scratch: `make train-tiny ARGS="--attention gqa"`.

The language model learns from a table of cell embeddings, at the speed of a symbolic task; the vision tower then
learns to produce the table from pixels; the language model is last adapted to what the tower really produces. Small
pages of facts and references come first: the step from one hop to two is learned several times faster there.

The model must bind inside the chunk, not hop at question time. So most questions of several hops, and after the first
stage all of them, are asked without the pages that hold their antecedents: only what the dependent page absorbed can
answer. References, and glyphs named in a passage, are also asked in place what colour they are bound to, from the
earliest layer that can know.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.tiny import checkpoint
from eval.tiny.backbones import EMBEDDED, TinyBackbone
from eval.tiny.batches import Words
from eval.tiny.episodes import SEGMENTS, Recipe
from eval.tiny.language import Stage, cell_declaration, cell_table, train_language
from eval.tiny.tower import Tower, train_tower
from eval.tiny.vocabulary import VOCABULARY
from models import load
from models.blocks.params import Params, init_params
from models.registry import CHECKPOINTS

SMALL = Recipe(
    rows=4, columns=4, informative=16, chunks=(3, 3), hops=2, text=0.0, repeat=0.0, invert=0.0, questions=16, phrases=()
)
CHAINS = replace(SMALL, chunks=(3, 4), hops=3, text=0.25, repeat=0.1, invert=0.1, evict=1.0)
DEEP = replace(CHAINS, chunks=(3, 3), depth=1.0)
BARE = Recipe(chunks=(2, 4), evict=1.0, questions=16, phrases=())
TURNS = Recipe(chunks=(2, 4), evict=1.0)
WHOLE = Recipe(chunks=(2, 6), evict=1.0)

CURRICULUM = (
    Stage(SMALL, steps=300, batch=64),
    Stage(CHAINS, steps=450, batch=32),
    Stage(DEEP, steps=700, batch=32),
)
CONVERSATION = (
    Stage(BARE, steps=100, batch=16, gap=32),
    Stage(TURNS, steps=220, batch=16, gap=64),
    Stage(WHOLE, steps=110, batch=16, gap=64),
)
ADAPTATION = (Stage(TURNS, steps=80, batch=16, gap=64),)

TOWER_STEPS = 3000

VIDEO = (
    Stage(replace(SEGMENTS, chunks=(2, 4)), steps=40, batch=16, gap=64),
    Stage(SEGMENTS, steps=60, batch=16, gap=64),
)


def train(
    folder: Path,
    backbone: TinyBackbone,
    *,
    curriculum: Sequence[Stage] = CURRICULUM,
    conversation: Sequence[Stage] = CONVERSATION,
    tower_steps: int = TOWER_STEPS,
    adaptation: Sequence[Stage] = ADAPTATION,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Train and write the checkpoint.

    Args:
        folder: where it goes, with a record of the training.
        backbone: what to train.
        curriculum: stages in which the language model learns to bind, on small pages.
        conversation: stages in which it learns whole pages and whole turns.
        tower_steps: optimiser steps of the vision tower, 4 pages each.
        adaptation: stages of the language model behind the trained tower.
        seed: of parameters and episodes.
        workers: processes that sample episodes.
    """
    words = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
    config = backbone.config
    params: Params = init_params(backbone.architecture.declaration(config), jax.random.key(seed))
    cells = init_params(cell_declaration(config.text.hidden_size), jax.random.key(seed + 1))
    history: list[dict[str, Any]] = []

    def log(part: str, record: dict[str, Any]) -> None:
        history.append({"part": part, **record})
        print(json.dumps(history[-1]), flush=True)

    def words_table(params: Params) -> jax.Array:
        return cell_table(params["cells"], words, params["text"]["embed"]["w"])

    def language(
        part: str,
        start: Params,
        stages: Sequence[Stage],
        rate: float,
        offset: int,
        table: Callable[[Params], jax.Array],
    ) -> Params:
        return train_language(
            start,
            backbone,
            stages,
            words,
            learning_rate=rate,
            seed=seed + offset,
            workers=workers,
            table=table,
            log=lambda record: log(part, record),
        )

    learner = language("curriculum", {"text": params["text"], "cells": cells}, curriculum, 2.5e-3, 0, words_table)
    learner = language("conversation", learner, conversation, 1.5e-3, 1, words_table)
    table = words_table(learner)
    tower = Tower(backbone)
    vision = params["vision"]
    if "positions" in vision:  # a cell is the same wherever it stands
        vision["positions"] = jnp.zeros_like(vision["positions"])
    vision = train_tower(
        vision,
        tower,
        table,
        steps=tower_steps,
        batch=4,
        learning_rate=2e-3,
        seed=seed,
        log=lambda record: log("tower", record),
    )
    seen = tower.table(vision)
    nearest = _nearest(np.asarray(seen), np.asarray(table))
    log("tower", {"nearest": float(np.mean(nearest == np.arange(len(table))))})
    adapted = language("adaptation", {"text": learner["text"]}, adaptation, 5e-4, 2, lambda params: seen)
    checkpoint.write(folder, backbone, {"text": adapted["text"], "vision": vision})
    (folder / "training.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def train_video(folder: Path, start: Path, *, stages: Sequence[Stage] = VIDEO, seed: int = 0, workers: int = 1) -> None:
    """Train the embedded model that is shown videos: the language model of another one goes on, on segments.

    Its tower stays: a temporal patch of two equal frames is to it what a page is.

    Args:
        folder: where the checkpoint goes, with a record of the training.
        start: the embedded model of grouped-query attention.
        stages: what it learns.
        seed: of the episodes.
        workers: processes that sample episodes.
    """
    backbone = EMBEDDED["video"]
    words = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
    params = load(start).params
    seen = Tower(backbone).table(params["vision"])
    history: list[dict[str, Any]] = []

    def log(record: dict[str, Any]) -> None:
        history.append({"part": "segments", **record})
        print(json.dumps(history[-1]), flush=True)

    learner = train_language(
        {"text": jax.tree.map(jnp.copy, params["text"])},
        backbone,
        stages,
        words,
        learning_rate=1e-3,
        seed=seed + 3,
        workers=workers,
        table=lambda _: seen,
        log=log,
    )
    checkpoint.write(folder, backbone, {"text": learner["text"], "vision": params["vision"]})
    (folder / "training.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def _nearest(seen: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The row of the table closest to each embedding."""
    return np.argmin(np.sum(table * table, axis=1)[None, :] - 2 * seen @ table.T, axis=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train an embedded model from scratch.")
    parser.add_argument("--attention", choices=tuple(EMBEDDED), default="gqa")
    parser.add_argument("--output", type=Path, help="folder (default: where models.load looks for it)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that sample episodes")
    arguments = parser.parse_args()
    backbone = EMBEDDED[arguments.attention]
    if backbone.key == "video":
        train_video(
            arguments.output or CHECKPOINTS / backbone.name,
            CHECKPOINTS / EMBEDDED["gqa"].name,
            seed=arguments.seed,
            workers=arguments.workers,
        )
        return
    train(arguments.output or CHECKPOINTS / backbone.name, backbone, seed=arguments.seed, workers=arguments.workers)


if __name__ == "__main__":
    main()
