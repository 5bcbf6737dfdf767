"""What the embedded model can do, by hops, by where the fact stands, and by whether its antecedents are in view."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.tiny.batches import Words, pack, slots_for
from eval.tiny.episodes import Recipe, sample_episode
from eval.tiny.language import loss_and_hits
from eval.tiny.tower import cell_patches, tower_table
from eval.tiny.vocabulary import VOCABULARY, image_processor_config
from models import load
from models.media import ImageConfig
from models.qwen2_5_vl.model import Qwen25VL

HELD_OUT_SEED = 30_000_000
"""Far from every seed of training, and from the demo's."""


def assess(vlm: Qwen25VL, *, episodes: int = 32) -> list[dict[str, Any]]:
    """Accuracy under full prefill on held-out episodes of 2 to 6 chunks.

    Args:
        vlm: the embedded model.
        episodes: how many of every number of chunks.

    Returns:
        One row for every hops, ``fact`` on a page or in a passage, and antecedents in view or evicted.
    """
    words = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
    patches = cell_patches(ImageConfig.from_hf(image_processor_config()))
    table = tower_table(vlm.params["vision"], vlm.config.vision, patches)
    recipe = Recipe(invert=0.0)
    answer = jax.jit(lambda batch: loss_and_hits(vlm.params["text"], table, vlm.config.text, batch)[1])
    hits: dict[tuple[int, str, str], list[bool]] = {}
    for count in range(recipe.chunks[0], recipe.chunks[1] + 1):
        rng = np.random.default_rng((HELD_OUT_SEED, count))
        sampled = [sample_episode(rng, recipe, count) for _ in range(episodes)]
        slots = slots_for(recipe, words, count)
        batch = pack(sampled, words, rng, phrases=recipe.phrases, max_gap=0, slots=slots)
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


PAGE = """# kamera-tiny-gqa

A real Qwen2.5-VL at a tiny size, trained from scratch on rendered pages by `make train-tiny` (`eval/tiny/train.py` has
the curriculum; `training.json` beside the weights is its record). It knows its own pages and nothing else. The shipped
weights went through these stages in three sittings, with the optimiser started anew in each and, in the first two, the
learning rates of a longer plan: an unbroken run may differ a little.

It is trained to bind inside the chunk, and not to follow references at question time: that is what blind reuse loses.
One and two hops over pages are learned; three hops, and references to what only a passage says, are not.

A page has {cells} cells of 28 × 28 pixels, one token each; {informative} are informative, the rest background. Accuracy
under full prefill, {questions} questions on held-out episodes of {least} to {most} chunks (pages, repeated pages and
text passages); chance is 0.125. *Evicted*: the chunks that hold the antecedents are hidden from the question, so that
only what the dependant page absorbed can answer.

| hops | the fact stands on | antecedents | accuracy | questions |
|---|---|---|---|---|
{rows}

`make results` writes this page.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a page of the documentation."""
    recipe = Recipe()
    lines = [
        f"| {row['hops']} | a {row['fact']} | {row['antecedents']} | {row['accuracy']:.3f} | {row['questions']} |"
        for row in rows
    ]
    return PAGE.format(
        cells=recipe.rows * recipe.columns,
        informative=recipe.informative,
        questions=sum(row["questions"] for row in rows),
        least=recipe.chunks[0],
        most=recipe.chunks[1],
        rows="\n".join(lines),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what the embedded model can do.")
    parser.add_argument("--model", default="kamera-tiny-gqa")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--page", type=Path, help="write the rows there as a page of the documentation")
    arguments = parser.parse_args()
    rows = assess(load(arguments.model))
    for row in rows:
        print(f"{row['hops']} hops, fact on a {row['fact']}, antecedents {row['antecedents']}: {row['accuracy']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.page:
        arguments.page.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
