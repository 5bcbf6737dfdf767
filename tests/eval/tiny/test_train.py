"""The trainer end to end, at a size that takes seconds."""

import json
import math

import jax
import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny import pages
from eval.tiny.backbones import BACKBONES
from eval.tiny.batches import Words
from eval.tiny.episodes import Recipe
from eval.tiny.language import Stage, batches, cell_table
from eval.tiny.train import SMALL, train
from eval.tiny.vocabulary import VOCABULARY
from models import load

WORDS = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))


@pytest.mark.parametrize(
    ("attention", "length"),
    [
        ("gqa", 62),
        pytest.param("mla", 62, marks=pytest.mark.soak),
        pytest.param("mha", 102, marks=pytest.mark.soak),
    ],
)
def test_training_writes_a_model_that_loads(tmp_path, attention, length):
    stage = Stage(SMALL, steps=4, batch=4)
    turns = Stage(Recipe(rows=4, columns=4, informative=16, chunks=(2, 2), questions=2), steps=2, batch=2)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        train(
            tmp_path,
            BACKBONES[attention],
            curriculum=(stage,),
            conversation=(turns,),
            tower_steps=10,
            adaptation=(turns,),
        )
    history = json.loads((tmp_path / "training.json").read_text())
    assert {record["part"] for record in history} == {"curriculum", "conversation", "tower", "adaptation"}
    assert all(math.isfinite(record.get("loss", 0.0)) for record in history)
    vlm = load(tmp_path)
    chunk = kj.encode(vlm, pages.render(np.full((6, 10), pages.fact(0, 0))))
    assert chunk.length == length and np.isfinite(np.asarray(chunk.kv.free)).all()


def test_batches_do_not_depend_on_the_number_of_workers():
    stages = (Stage(SMALL, steps=2, batch=2), Stage(Recipe(chunks=(2, 3)), steps=2, batch=2, gap=8))
    one, two = ([batch for _, batch in batches(stages, WORDS, "gqa", 5, workers)] for workers in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_cell_embeddings_are_in_the_order_of_the_pages():
    rng = np.random.default_rng(0)
    words = jax.numpy.asarray(rng.normal(size=(WORDS.size, 8)), "float32")
    cells = {"background": words[:8] * 0.0, "kind": words[:2] * 0.0, "padding": words[:1]}
    table = np.asarray(cell_table(cells, WORDS, words))
    assert table.shape == (pages.N_CELLS + 1, 8)
    star, moon, red = (np.asarray(words[WORDS.ids[name]]) for name in ("star", "moon", "red"))
    assert np.array_equal(table[pages.PADDING], words[0])
    assert np.allclose(table[pages.fact(0, 0)], star + red)
    assert np.allclose(table[pages.reference(0, 1)], star + np.roll(moon, 4))
