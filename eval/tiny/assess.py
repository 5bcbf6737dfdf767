"""What the embedded model can do, by hops, by where the fact stands, and by whether its antecedents are in view."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.tiny.backbones import BACKBONES, TinyBackbone
from eval.tiny.batches import Words, pack, slots_for
from eval.tiny.episodes import Recipe, sample_episode
from eval.tiny.language import loss_and_hits
from eval.tiny.tower import Tower
from eval.tiny.vocabulary import VOCABULARY
from models import load
from models.vlm import VisionLanguageModel

HELD_OUT_SEED = 30_000_000
"""Far from every seed of training, and from the demo's."""


def assess(vlm: VisionLanguageModel, backbone: TinyBackbone, *, episodes: int = 32) -> list[dict[str, Any]]:
    """Accuracy under full prefill on held-out episodes of 2 to 6 chunks.

    Args:
        vlm: the embedded model.
        backbone: which one it is.
        episodes: how many of every number of chunks.

    Returns:
        One row for every hops, ``fact`` on a page or in a passage, and antecedents in view or evicted.
    """
    words = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
    table = Tower(backbone).table(vlm.params["vision"])
    recipe = Recipe(invert=0.0)
    answer = jax.jit(lambda batch: loss_and_hits(vlm.params["text"], table, vlm.config.text, batch)[1])
    hits: dict[tuple[int, str, str], list[bool]] = {}
    for count in range(recipe.chunks[0], recipe.chunks[1] + 1):
        rng = np.random.default_rng((HELD_OUT_SEED, count))
        sampled = [sample_episode(rng, recipe, count) for _ in range(episodes)]
        slots = slots_for(recipe, words, count, backbone)
        batch = pack(sampled, words, rng, backbone=backbone, phrases=recipe.phrases, max_gap=0, slots=slots)
        right = np.asarray(answer(jax.tree.map(jnp.asarray, batch)))
        for row, episode in zip(right, sampled, strict=True):
            for hit, question in zip(row, episode.questions, strict=True):
                written = any(chunk.text and question.chain[-1] in chunk.entries for chunk in episode.chunks)
                view = "evicted" if question.hidden else "in view"
                key = (question.hops, "passage" if written else "page", view)
                hits.setdefault(key, []).append(bool(hit))
    return [
        {"hops": hops, "fact": fact, "antecedents": view, "accuracy": float(np.mean(row)), "questions": len(row)}
        for (hops, fact, view), row in sorted(hits.items())
    ]


PAGE = """# The embedded models

Real backbones at a tiny size, one for each attention family, trained from scratch on rendered pages by
`make train-tiny` (`eval/tiny/train.py` has the curriculum; `training.json` beside the weights is its record). They can
read their own pages and nothing else. The shipped weights were not all made in one run (`sitting` in the records):
`kamera-tiny-gqa` was trained in three runs, and the vision towers of the other two were trained again in a second run,
on pages of every density, as the trainer now does in its only run. Training from scratch may give slightly different
results.

One and two hops over pages are learned; three hops, and references to facts in passages of text, are not.

They are trained to resolve references while a chunk is encoded, and not at question time: this is what blind reuse
loses. A model that is trained with the antecedents in view also learns to follow references at question time, and then
blind reuse loses little.

A page has {cells} cells of 28 × 28 pixels, one token each; {informative} are informative, the rest background. Accuracy
under full prefill, {questions} questions on held-out episodes of {least} to {most} chunks (pages, repeated pages and
text passages); chance is 0.125. *Evicted*: the chunks with the antecedents are hidden from the question, so that
only what the dependent page absorbed can answer it.

{table}

`make results` writes this page.
"""


def page(models: Mapping[str, list[dict[str, Any]]]) -> str:
    """The rows of every model as a page of the documentation."""
    recipe = Recipe()
    cases = sorted({_case(row) for rows in models.values() for row in rows})
    lines = [
        f"| hops | the fact stands on | antecedents | {' | '.join(models)} | questions |",
        "|---|---|---|" + "---|" * (len(models) + 1),
    ]
    for case in cases:
        cells = [{_case(row): row for row in rows}[case] for rows in models.values()]
        accuracies = " | ".join(f"{row['accuracy']:.3f}" for row in cells)
        hops, fact, view = case
        lines.append(f"| {hops} | a {fact} | {view} | {accuracies} | {cells[0]['questions']} |")
    return PAGE.format(
        cells=recipe.rows * recipe.columns,
        informative=recipe.informative,
        questions=sum(row["questions"] for row in next(iter(models.values()))),
        least=recipe.chunks[0],
        most=recipe.chunks[1],
        table="\n".join(lines),
    )


def _case(row: dict[str, Any]) -> tuple[int, str, str]:
    return row["hops"], row["fact"], row["antecedents"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what the embedded models can do.")
    parser.add_argument("--json", type=Path, required=True, help="write the rows there")
    parser.add_argument("--page", type=Path, required=True, help="write them there as a page of the documentation")
    arguments = parser.parse_args()
    models = {backbone.name: assess(load(backbone.name), backbone) for backbone in BACKBONES.values()}
    arguments.json.write_text(json.dumps(models, indent=1) + "\n", encoding="utf-8")
    arguments.page.write_text(page(models), encoding="utf-8")


if __name__ == "__main__":
    main()
