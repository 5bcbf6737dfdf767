"""The tower of kamera-smol-vl against a restatement of it, loop by loop in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from models.blocks.params import init_params
from models.media.typeset import LETTERS, LINE, LONGEST, Piece
from models.ports.smol_vl import tower
from models.ports.smol_vl.boxes import WIDTH
from models.ports.smol_vl.folder import token_codes
from models.ports.smol_vl.tower import Spelling, TowerConfig

SMALL = TowerConfig(
    vocab_size=40, window=16, stride=8, strokes=6, run=4, step=3, shapes=5, whole=7, code=8, patch_size=LINE
)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def restated(params, boxes, embeddings):
    """Embeddings of pictures, as the docstrings say them."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def layer(name, x):
        return x @ p[name]["w"] + p[name]["b"]

    rows = []
    for box in boxes.astype(np.float64):
        pixels = box.reshape(LINE, WIDTH)
        strokes = [gelu(layer("strokes", pixels[:, x : x + 16].reshape(-1))) for x in range(0, WIDTH - 16 + 1, 8)]
        shapes = [gelu(layer("shapes", np.concatenate(strokes[i : i + 4]))) for i in range(0, len(strokes) - 4 + 1, 3)]
        code = layer("code", gelu(layer("whole", np.concatenate(shapes))))
        scores = layer("tokens", code / np.sqrt(np.mean(code**2) + 1e-6))
        best = np.argsort(-scores)[: tower.BEST]
        shares = np.exp(scores[best] - scores[best].max())
        rows.append((shares / shares.sum()) @ embeddings[best])
    return np.stack(rows)


def test_the_tower_is_what_it_says():
    rng = np.random.default_rng(0)
    params = init_params(tower.tower_declaration(SMALL), jax.random.key(0))
    for name in params:
        params[name]["b"] = jnp.asarray(rng.normal(size=params[name]["b"].shape), jnp.float32)
    boxes = rng.random((5, LINE * WIDTH), np.float32)
    embeddings = rng.normal(size=(40, 12))
    plan = tower.plan(1, 5, SMALL)
    padded = np.concatenate([boxes, rng.random((plan.rows - 5, LINE * WIDTH), np.float32)])
    given = {**params, "embeddings": jnp.asarray(embeddings, jnp.float32)}
    rows = tower.embed(given, SMALL, padded, plan)
    np.testing.assert_allclose(rows[:5], restated(params, boxes, embeddings), rtol=0, atol=2e-5)
    assert plan.rows > 5
    assert not np.asarray(rows[5:]).any()


def test_the_code_of_a_token_is_the_sum_of_its_letters():
    params = init_params(tower.trained_declaration(SMALL), jax.random.key(1))
    drawn = {3: Piece("ab", True), 7: Piece("b", False), 12: Piece("abab", False)}
    spelling = Spelling.of(drawn)
    front, back = (np.asarray(params[name]).reshape(len(LETTERS), LONGEST, -1) for name in ("front", "back"))
    expected = np.zeros((40, SMALL.code), np.float32)
    for number, each in drawn.items():
        for i, letter in enumerate(each.text):
            place = LETTERS.index(letter)
            expected[number] += front[place, i] + back[place, len(each.text) - 1 - i]
        expected[number] += np.asarray(params["apart"])[0] * each.apart
    np.testing.assert_allclose(token_codes(params, SMALL, spelling), expected, atol=1e-6)
    rows = map(jnp.asarray, (spelling.front, spelling.back, spelling.apart))
    traced = tower.spelled(params, *rows)
    np.testing.assert_allclose(traced, expected[[3, 7, 12]], atol=1e-6)
