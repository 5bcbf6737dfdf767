from dataclasses import replace

import jax
import numpy as np
import pytest

from eval.smol_vl.learner import random_params
from eval.smol_vl.through import Lines, ThroughModel, tune
from eval.smol_vl.train import train
from eval.smol_vl.words import EVEN, Words
from models.media.typeset import Face, Piece, drawn
from models.ports.smol_vl.boxes import WIDTH
from models.ports.smol_vl.tower import Spelling, TowerConfig
from models.registry import load

SMALL = TowerConfig(vocab_size=60, window=16, stride=8, strokes=32, run=4, step=2, shapes=32, whole=64, code=32)
PIECES = {
    number: Piece(text, apart)
    for number, (text, apart) in enumerate(
        (text, apart) for text in ("the", "The", "of", "cat", "cats", "a", ".", "ing") for apart in (True, False)
    )
}


def test_a_short_training_reads_most_of_a_few_tokens():
    records = []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        train(PIECES, {0: 5}, SMALL, steps=60, size=64, candidates=16, log=records.append)
    assert records[0]["loss"] > 2 > records[-1]["loss"]
    assert records[-1]["seen faces"] > 0.5


def test_a_training_ends_when_its_time_is_over():
    records = []
    with jax.numpy_dtype_promotion("standard"):
        train(PIECES, {}, SMALL, steps=10**6, minutes=1e-6, size=8, candidates=16, log=records.append)
    assert len(records) == 1
    assert records[0]["step"] <= 2


def test_a_batch_has_pictures_of_its_targets():
    words = Words(PIECES, {0: 100}, seed=0)
    batch = words.batch(32, 15)
    assert batch.boxes.shape[0] == len(batch.targets) == 32
    assert len(batch.candidates) == 15 == len(set(batch.candidates.tolist()))
    labels = batch.candidates[batch.targets]
    assert set(labels.tolist()) <= set(range(len(PIECES)))
    clear, tokens = words.pictures(np.asarray([0, 5, 9]), ["DejaVuSans"])
    for box, token in zip(clear.reshape(3, 24, WIDTH), tokens, strict=True):
        widths = {drawn(Face("DejaVuSans", size), words.pieces[token].text).shape[1] for size in range(11, 14)}
        assert np.flatnonzero(box[:, 8:].any(axis=0))[-1] + 1 in widths


def test_tokens_that_look_alike_are_candidates():
    words = Words(PIECES, {}, seed=0)
    alike = words._alike[0]  # " the": "the", " The"
    assert {words.pieces[i].text for i in alike.tolist()} == {"the", "The"}


def test_most_tokens_are_drawn_by_their_counts():
    tokens = Words(PIECES, {3: 10**6}, seed=0).tokens(4000)
    assert abs(np.mean(tokens == 3) - (1 - EVEN + EVEN / len(PIECES))) < 0.03


def test_what_follows_a_page_is_learnt_through_the_model():
    """From random pictures' codes, the language model frozen: its next tokens come nearer to those behind the text."""
    vlm = load("kamera-tiny-gqa")
    text = vlm.config.text
    config = replace(SMALL, vocab_size=text.vocab_size)
    lines = Lines([3, 15, 1, 3, 4, 6, 3, 12, 8, 1] * 12, PIECES, 12, seed=0)
    pictures, ids, places = lines.draw()
    assert pictures.shape == (12, 24 * WIDTH)
    assert [sorted(PIECES)[place] for place in places] == ids.tolist()
    assert PIECES[int(ids[0])].apart
    before = jax.tree.map(np.array, vlm.params["text"])
    records = []
    with jax.numpy_dtype_promotion("standard"):
        start = random_params(config, 0)
        learner = ThroughModel(config, Spelling.of(PIECES), start, (text, vlm.params["text"]), [1, 2])
        learner.rate = 1e-2
        kept = tune(learner, lines, 60, records.append, lambda params: None)
    assert records[-1]["loss"] < records[0]["loss"] / 3
    assert records[-1]["read"] > 0.6
    assert kept.keys() == start.keys()
    jax.tree.map(np.testing.assert_array_equal, before, vlm.params["text"])


def test_a_text_shorter_than_a_page_is_refused():
    with pytest.raises(ValueError, match="the text has 4 tokens that can be drawn; a page needs 12"):
        Lines([3, 15, 1, 3, 99], PIECES, 12, seed=0)
