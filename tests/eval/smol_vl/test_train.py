import jax
import numpy as np

from eval.smol_vl.train import train
from eval.smol_vl.words import EVEN, Words
from models.media.typeset import Face, Piece, drawn
from models.ports.smol_vl.boxes import WIDTH
from models.ports.smol_vl.tower import TowerConfig

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
