"""Train the tower of kamera-smol-vl from scratch: `make train-smol-vl`.

First the tower learns which of all drawable tokens a picture shows, from its code among the codes of others, of which
each batch has a few thousand: those spelled alike, those that the pictures are most easily taken for, and some drawn at
random. Then it reads pages of running text to the frozen language model; see `eval.smol_vl.through`.
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

from eval.smol_vl.learner import Learner, random_params
from eval.smol_vl.through import Lines, ThroughModel, tune
from eval.smol_vl.words import HELD_OUT, Words
from models.blocks.params import Params
from models.hub.fields import Fields, read_json
from models.hub.gguf.convert import hub_folder
from models.hub.gguf.packaged import packaged
from models.hub.tokenizers import load_tokenizer
from models.hub.weights import load_params, save_params
from models.media.typeset import Piece
from models.ports.smol_vl.config import tower_config
from models.ports.smol_vl.folder import pieces
from models.ports.smol_vl.tower import Spelling, TowerConfig, trained_declaration
from models.ports.smol_vl.weights import trained_table
from models.registry import CHECKPOINTS, load

STEPS = 4500
"""Half an hour of one core. The embedded tower had 1,500 steps, a third of these."""

THROUGH = 100
"""Steps through the language model: another ten minutes."""

PAGE = 96
"""Tokens of a page in these."""


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
    learner = Learner(config, words.spelling, random_params(config, seed))
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
    parser.add_argument("--through", type=int, default=THROUGH, help="steps through the language model behind these")
    parser.add_argument("--go-on", action="store_true", help="take the weights in --output, for --through alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = CHECKPOINTS / "kamera-smol-vl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocessor_config.json", "chat_template.jinja"):
        if arguments.output != source:
            shutil.copyfile(source / name, arguments.output / name)
    mapping = read_json(source / "config.json")
    vlm = load(mapping["language_model"], dtype="float32")
    with hub_folder(packaged(mapping["language_model"])) as folder:
        tokenizer = load_tokenizer(folder)
    config = TowerConfig(vocab_size=vlm.config.text.vocab_size, **tower_config(Fields("config.json", mapping), 0))
    ids = tokenizer.backend_tokenizer.encode(corpus(), add_special_tokens=False).ids
    drawn = pieces(tokenizer)
    history_file = arguments.output / "training.json"
    history: list[dict[str, Any]] = json.loads(history_file.read_text("utf-8")) if arguments.go_on else []

    def log(record: dict[str, Any]) -> None:
        history.append(record)
        print(json.dumps(record), flush=True)

    write = partial(save_params, arguments.output, table=trained_table(), dtype=jnp.float16)
    if arguments.go_on:
        params = load_params(arguments.output, trained_declaration(config), trained_table(), np.dtype(np.float32))
    else:
        limits = {"steps": arguments.steps, "minutes": arguments.minutes, "seed": arguments.seed}
        params = train(drawn, Counter(ids), config, **limits, log=log, keep=write)
    if arguments.through:
        preamble = np.asarray(vlm.preamble.inputs["tokens"])[: int(vlm.preamble.length)].tolist()
        language = (vlm.config.text, vlm.params["text"])
        learner = ThroughModel(config, Spelling.of(drawn), params, language, preamble)
        tune(learner, Lines(ids, drawn, PAGE, arguments.seed), arguments.through, log, write)
    history_file.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
