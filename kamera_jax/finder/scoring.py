"""How well a question's queries match chunks' keys: no position anywhere, since both are un-rotated."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.errors import BackboneError
from kamera_jax.forward import run
from kamera_jax.inference.generate import question_tail
from kamera_jax.kv import KVSpec
from kamera_jax.transfer import as_f32
from kamera_jax.window.window import Window, aligned

SPREAD = 1e-6
"""A head whose scores differ by no more tells no chunk from another."""


class Head(NamedTuple):
    """A query head, and where the keys lie that it reads.

    Attributes:
        layer, head: of the model.
        place: of its keys among the slices of a `kamera_jax.finder.slices.Block`.
    """

    layer: int
    head: int
    place: int


class Asked(NamedTuple):
    """A question as queries.

    Attributes:
        queries: un-rotated, times the scale of the scores [L, T, N, D] (MLA: absorbed, [L, T, N, R + Dr]).
        length: of its tokens that are no padding.
    """

    queries: Float[Array, "L T N D"]
    length: int


def asked(vlm: Backbone, question: str) -> Asked:
    """The queries of a question that stands right behind the preamble: one forward of the question alone.

    Raises:
        BackboneError: the model's forward does not collect queries.
        ValueError: the question is empty.
    """
    if "queries" not in with_defaults(vlm).collects:
        raise BackboneError(
            f"{type(vlm).__name__} does not collect queries, by which chunks are found; return aux['queries'] where "
            "they are asked for and say so in `collects`, or find by vectors: kamera_jax.EmbeddingFinder"
        )
    window = Window.empty(vlm, max(aligned(int(vlm.preamble.length)), 16))
    tail = question_tail(vlm, window, question)
    base = as_f32(window.next_position)
    output = run(vlm.params, tail, window.state, base=base, forward=vlm.forward, collect=("queries",))
    return Asked(output.aux["queries"], int(tail.length))


def key_head(spec: KVSpec, queries: jax.Array, head: int) -> int:
    """Which KV head a query head reads; 0 of an MLA, whose latents serve all."""
    return head * spec.heads // queries.shape[2]


def is_absorbed(spec: KVSpec, queries: jax.Array) -> bool:
    """Whether queries are of latents and rotated parts together, as an MLA's."""
    return queries.shape[-1] > spec.rot_dim // spec.heads


@partial(jax.jit, static_argnames="heads")
def match(
    queries: Float[Array, "L T N D"],
    length: Int[Array, ""],
    keys: Float[Array, "P s R D"],
    lengths: Int[Array, " P"],
    *,
    heads: tuple[Head, ...],
) -> Float[Array, "P H"]:
    """Of each chunk and head the largest product of a query of the question and a key of the chunk.

    Late interaction by the maximum on both sides: one token of the question finds one row of the page. Padding of the
    question and of chunks takes no part.

    Args:
        queries, length: of the question.
        keys: slices of P chunks of R rows.
        lengths: their rows that are no padding.
        heads: H, with the place of their keys among the slices.
    """
    rows = jnp.arange(keys.shape[2], dtype=jnp.int32)[None, None, :] < lengths[:, None, None]
    tokens = jnp.arange(queries.shape[1], dtype=jnp.int32)[None, :, None] < length
    scores = []
    for each in heads:
        query = queries[each.layer, :, each.head].astype(jnp.float32)
        key = keys[:, each.place].astype(jnp.float32)
        products = jnp.einsum("qd,prd->pqr", query, key, precision="highest")
        scores.append(jnp.where(rows & tokens, products, -jnp.inf).max(axis=(1, 2)))
    return jnp.stack(scores, axis=-1)


def standardised(scores: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Scores [P, ·] of each head with mean 0 and deviation 1 over the chunks: heads' scales differ, and questions'.

    Args:
        scores: of P chunks.
        among: places of the chunks that mean and deviation are of; all by default.
    """
    scores = scores.astype(np.float64)
    of = scores if among is None else scores[among]
    spread = of.std(axis=0)
    return np.where(spread > SPREAD, (scores - of.mean(axis=0)) / np.maximum(spread, SPREAD), 0.0)
