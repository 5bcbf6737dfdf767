"""The tower: from the picture of a token to its embedding in the frozen language model.

Columns of pixels become strokes, strokes shapes, shapes a code of the whole token. Every token of the vocabulary has a
code too, the sum of one vector for each of its letters at its place from the front and at its place from the back, so
that tokens never trained on have one. What is read is the language model's own embedding, averaged over the tokens
whose codes fit best.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from kamera_jax.kv import bucket
from models.blocks.layers import dense
from models.blocks.params import ParamInfo, Params, linear
from models.blocks.vit import SquarePlan
from models.media.typeset import LETTERS, LINE, LONGEST, Piece
from models.ports.smol_vl.boxes import WIDTH

BEST = 16
"""Tokens that an embedding is averaged over."""


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the tower.

    Attributes:
        vocab_size: tokens of the language model.
        window, stride: columns that a stroke is made of, and from one stroke to the next.
        strokes: width of a stroke.
        run, step: strokes that a shape is made of, and from one shape to the next.
        shapes: width of a shape.
        whole: width of the layer that sees the whole token.
        code: width of a code.
        patch_size: rows of a line.
    """

    vocab_size: int
    window: int = 12
    stride: int = 4
    strokes: int = 256
    run: int = 5
    step: int = 2
    shapes: int = 256
    whole: int = 512
    code: int = 256
    patch_size: int = LINE

    @property
    def n_strokes(self) -> int:
        """Strokes of a picture."""
        return (WIDTH - self.window) // self.stride + 1

    @property
    def n_shapes(self) -> int:
        """Shapes of a picture."""
        return (self.n_strokes - self.run) // self.step + 1


def trained_declaration(config: TowerConfig) -> Params:
    """Every parameter that is trained, and stored."""
    letters = len(LETTERS) * LONGEST
    return {
        "strokes": linear(LINE * config.window, config.strokes, bias=True),
        "shapes": linear(config.run * config.strokes, config.shapes, bias=True),
        "whole": linear(config.n_shapes * config.shapes, config.whole, bias=True),
        "code": linear(config.whole, config.code, bias=True),
        "front": ParamInfo((letters, config.code)),
        "back": ParamInfo((letters, config.code)),
        "apart": ParamInfo((1, config.code)),
    }


def tower_declaration(config: TowerConfig) -> Params:
    """Every parameter that runs: what is trained, with the codes of all tokens in place of those of letters.

    ``tokens`` is what a code is multiplied by, and what is added: nothing to tokens that can be drawn, and so much less
    than nothing to others that they are never read.
    """
    trained = trained_declaration(config)
    layers = {name: trained[name] for name in ("strokes", "shapes", "whole", "code")}
    return {**layers, "tokens": linear(config.code, config.vocab_size, bias=True)}


def plan(rows: int, tokens: int, config: TowerConfig) -> SquarePlan:
    """The layout of so many tokens' pictures, in one row."""
    return SquarePlan(np.asarray(tokens, np.int32), rows=bucket(tokens))


def embed(
    params: Params, config: TowerConfig, boxes: Float[Array | np.ndarray, "P C"], plan: SquarePlan
) -> Float[Array, "P E"]:
    """The embeddings of tokens' pictures: those of the `BEST` tokens by their codes, weighted by how well they fit.

    Args:
        params: as declared by `tower_declaration`, and the language model's ``embeddings``.
        config: the tower's configuration (static).
        boxes: pictures; rows past ``plan.tokens`` are padding.
        plan: their layout.

    Returns:
        One embedding for each picture, zero in rows past ``plan.tokens``.
    """
    table = params["embeddings"]
    shares, best = read(params, config, jnp.asarray(boxes))
    rows = jnp.einsum("pk,pke->pe", shares, table[best].astype(jnp.float32))
    return jnp.where(jnp.arange(len(rows))[:, None] < plan.tokens, rows, 0).astype(table.dtype)


def read(
    params: Params, config: TowerConfig, boxes: Float[Array, "P C"]
) -> tuple[Float[Array, "P K"], Int[Array, "P K"]]:
    """The `BEST` tokens of each picture, and how likely each of these is, in f32."""
    scores, best = jax.lax.top_k(dense(params["tokens"], codes(params, config, boxes)), BEST)
    return jax.nn.softmax(scores, axis=-1), best


def codes(params: Params, config: TowerConfig, boxes: Float[Array, "n P"]) -> Float[Array, "n C"]:
    """The codes of tokens' pictures."""
    pixels = boxes.reshape(-1, LINE, WIDTH)
    starts = range(0, config.n_strokes * config.stride, config.stride)
    windows = jnp.stack([pixels[:, :, start : start + config.window] for start in starts], axis=1)
    strokes = jax.nn.gelu(dense(params["strokes"], windows.reshape(len(boxes), config.n_strokes, -1)))
    last = (config.n_shapes - 1) * config.step + 1
    runs = jnp.concatenate([strokes[:, i : i + last : config.step] for i in range(config.run)], axis=-1)
    shapes = jax.nn.gelu(dense(params["shapes"], runs))
    whole = jax.nn.gelu(dense(params["whole"], shapes.reshape(len(boxes), -1)))
    code = dense(params["code"], whole).astype(jnp.float32)
    return code * jax.lax.rsqrt(jnp.mean(jnp.square(code), axis=-1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Spelling:
    """How tokens are spelled.

    Attributes:
        ids: tokens that can be read, in order.
        front, back: rows of ``params["front"]`` and ``["back"]`` for each of their letters; one past the last for none.
        apart: whether each begins with a space.
    """

    ids: Int32[np.ndarray, " V"]
    front: Int32[np.ndarray, "V N"]
    back: Int32[np.ndarray, "V N"]
    apart: np.ndarray

    @classmethod
    def of(cls, pieces: Mapping[int, Piece]) -> "Spelling":
        """The spelling of tokens by their ids."""
        place = {letter: number for number, letter in enumerate(LETTERS)}
        ids = np.asarray(sorted(pieces), np.int32)
        front = np.full((len(ids), LONGEST), len(LETTERS) * LONGEST, np.int32)
        back = front.copy()
        for row, number in enumerate(ids.tolist()):
            text = pieces[number].text
            for i, letter in enumerate(text):
                front[row, i] = place[letter] * LONGEST + i
                back[row, i] = place[letter] * LONGEST + len(text) - 1 - i
        return cls(ids, front, back, np.asarray([pieces[number].apart for number in ids.tolist()], np.float32))


def spelled(
    params: Params, front: Int[Array, "V N"], back: Int[Array, "V N"], apart: Float[Array, " V"]
) -> Float[Array, "V C"]:
    """The codes of tokens, from their letters."""

    def summed(table: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.pad(table, ((0, 1), (0, 0)))[rows].sum(axis=1)

    return summed(params["front"], front) + summed(params["back"], back) + apart[:, None] * params["apart"]
