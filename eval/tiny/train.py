"""Train the embedded model from scratch: `make train-tiny`.

The language model learns from a table of cell embeddings, at the speed of a symbolic task; the vision tower then
learns to produce the table from pixels; the language model is last adapted to what the tower really produces. Small
pages of facts and references come
first: the step from one hop to two is learned several times faster there.

Half or more of the questions of several hops are asked without the pages that hold their antecedents, so that only
what the dependant
page absorbed can answer them: the model must bind inside the chunk, not hop at question time.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.tiny import checkpoint
from eval.tiny.batches import Words
from eval.tiny.episodes import Recipe
from eval.tiny.language import Stage, cell_declaration, cell_table, train_language
from eval.tiny.tower import cell_patches, tower_table, train_tower
from eval.tiny.vocabulary import VOCABULARY, image_processor_config
from models.media import ImageConfig
from models.params import Params, init_params
from models.qwen2_5_vl.model import declaration
from models.registry import CHECKPOINTS

SMALL = Recipe(
    rows=4, columns=4, informative=16, chunks=(3, 3), hops=2, text=0.0, repeat=0.0, invert=0.0, questions=16, phrases=()
)
BARE = Recipe(chunks=(2, 4), questions=16, phrases=())
TURNS = Recipe(chunks=(2, 4))
WHOLE = Recipe(chunks=(2, 6))

CURRICULUM = (
    Stage(SMALL, steps=400, batch=128),
    Stage(BARE, steps=500, batch=64, gap=32),
    Stage(TURNS, steps=450, batch=48, gap=64),
    Stage(WHOLE, steps=500, batch=40, gap=64),
)
ADAPTATION = (Stage(WHOLE, steps=250, batch=40, gap=64),)


def train(folder: Path, *, seed: int = 0, workers: int = 1, scale: float = 1.0) -> None:
    """Train and write the checkpoint.

    Args:
        folder: where it goes.
        seed: of parameters and episodes.
        workers: processes that sample episodes.
        scale: factor on every number of steps, for a trial run.
    """
    words = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
    config = checkpoint.config()
    params: Params = init_params(declaration(config), jax.random.key(seed))
    cells = init_params(cell_declaration(config.text.hidden_size), jax.random.key(seed + 1))
    patches = cell_patches(ImageConfig.from_hf(image_processor_config()))
    history: list[dict[str, Any]] = []

    def log(part: str, record: dict[str, Any]) -> None:
        history.append({"part": part, **record})
        print(json.dumps(history[-1]), flush=True)

    def scaled(stages: tuple[Stage, ...]) -> list[Stage]:
        return [replace(stage, steps=max(1, round(stage.steps * scale))) for stage in stages]

    trained = train_language(
        {"text": params["text"], "cells": cells},
        config.text,
        scaled(CURRICULUM),
        words,
        learning_rate=3e-3,
        seed=seed,
        workers=workers,
        table=lambda params: cell_table(params["cells"], words, params["text"]["embed"]["w"]),
        log=lambda record: log("language", record),
    )
    table = cell_table(trained["cells"], words, trained["text"]["embed"]["w"])
    tower = train_tower(
        params["vision"],
        config.vision,
        patches,
        table,
        steps=max(10, round(3000 * scale)),
        batch=256,
        learning_rate=2e-3,
        seed=seed,
        log=lambda record: log("tower", record),
    )
    seen = tower_table(tower, config.vision, patches)
    log("tower", {"nearest": float(np.mean(_nearest(np.asarray(seen), np.asarray(table)) == np.arange(len(table))))})
    adapted = train_language(
        {"text": trained["text"]},
        config.text,
        scaled(ADAPTATION),
        words,
        learning_rate=5e-4,
        seed=seed + 1,
        workers=workers,
        table=lambda params: seen,
        log=lambda record: log("adaptation", record),
    )
    checkpoint.write(folder, {"text": adapted["text"], "vision": tower})
    (folder / "training.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def _nearest(seen: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The row of the table closest to each embedding."""
    return np.argmin(np.sum(table * table, axis=1)[None, :] - 2 * seen @ table.T, axis=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model from scratch.")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS / "kamera-tiny-gqa")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that sample episodes")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps, for a trial run")
    arguments = parser.parse_args()
    train(arguments.output, seed=arguments.seed, workers=arguments.workers, scale=arguments.scale)


if __name__ == "__main__":
    main()
