"""Rows of KV that take in those of tokens that are not kept (LOOK-M, arXiv 2406.18139, section 3.3), in arrays.

Every token that is not kept goes, in each layer and KV head, to the kept row whose un-rotated key is nearest by cosine,
with its key and its value; the row keeps its place. With n such tokens x_i at a row x_j:

- ``average``: x_j ← (x_j + Σ x_i) / (1 + n)
- ``pivot``: x_j ← (x_j + Σ (x_i + x_j) / 2) / (1 + n)
- ``weighted``: x_j ← (x_j + Σ cos_ij x_i) / (1 + n), of tokens alone whose cosine, in the mean over heads, is at least
  the mean over all tokens; its weights sum to less than 1, so that it shrinks rows, as the authors' does
- ``values``: pivot, of values alone
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kamera_jax.kv import KV

MERGES = ("average", "pivot", "weighted", "values")
"""Ways of merging."""


def _by_head(rows: jax.Array, heads: int) -> jax.Array:
    """Rows [T, F] as heads [H, T, D], f32."""
    return rows.astype(jnp.float32).reshape(rows.shape[0], heads, -1).swapaxes(0, 1)


def nearest(
    keys: Float[Array, "H T D"], rows: Int[Array, " K"], length: jax.Array | int
) -> tuple[Int[Array, "H T"], Float[Array, "H T"]]:
    """The kept row that every token is nearest to, and the cosine; K and 0 of tokens that are kept, and of padding.

    Args:
        keys: un-rotated, of all tokens.
        rows: which token each kept row is of, -1 for padding.
        length: valid tokens.
    """
    unit = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    kept = unit[:, jnp.maximum(rows, 0)]
    cosine = jnp.einsum("htd,hkd->htk", unit, kept, precision="highest")
    cosine = jnp.where((rows >= 0)[None, None, :], cosine, -jnp.inf)
    tokens = jnp.arange(keys.shape[1], dtype=jnp.int32)
    gone = (tokens < length) & ~(tokens[:, None] == rows[None, :]).any(1)
    into = jnp.where(gone[None, :], cosine.argmax(-1).astype(jnp.int32), rows.shape[0])
    return into, jnp.where(gone[None, :], cosine.max(-1), 0.0)


def _taken_in(
    values: Float[Array, "H T D"], rows: jax.Array, into: jax.Array, weight: jax.Array, how: str
) -> Float[Array, "H K D"]:
    """Kept rows of values with what goes into them."""
    size = rows.shape[0]

    def sums(values: jax.Array, into: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, into, size + 1)[:size]

    added = jax.vmap(sums)(values * weight[..., None], into)
    count = jax.vmap(sums)(jnp.ones(into.shape, jnp.float32), into)[..., None]
    own = values[:, jnp.maximum(rows, 0)]
    if how == "pivot":
        return (own * (1 + count / 2) + added / 2) / (1 + count)
    return (own + added) / (1 + count)


@partial(jax.jit, static_argnames=("heads", "how"))
def merged(
    kv: Any, rows: Int[Array, " K"] | Int[np.ndarray, " K"], length: jax.Array | int, *, heads: int, how: str
) -> Any:
    """KV of all tokens to that of kept rows, which take in the others; f32 in between, and zero in padding.

    The latents of an MLA are key and value at once: they are compared with what of its keys is rotated behind them, and
    merged with the values.

    Args:
        kv: un-rotated KV [L, T, ·].
        rows: which token each kept row is of, ascending, -1 for padding behind them.
        length: valid tokens.
        heads: G; 1 for an MLA.
        how: one of `MERGES`; see the module.
    """
    rows = jnp.asarray(rows, jnp.int32)
    latent = heads == 1 and kv.rot.shape[-1] != kv.free.shape[-1]
    padding = (rows < 0)[None, :, None]

    def of_layer(layer: KV) -> KV:
        rot = _by_head(layer.rot, heads)
        free = _by_head(layer.free, heads)
        keys = jnp.concatenate([free, rot], axis=-1) if latent else rot
        into, cosine = nearest(keys, rows, length)
        weight = jnp.ones_like(cosine)
        if how == "weighted":
            gone = into[0] < rows.shape[0]
            over_heads = cosine.mean(0)
            number = jnp.maximum(gone.sum(), 1).astype(jnp.float32)
            close = gone & (over_heads >= jnp.where(gone, over_heads, 0.0).sum() / number - 1e-6)
            into = jnp.where(close[None, :], into, rows.shape[0])
            weight = cosine
        own = "pivot" if how == "values" else how
        parts = {"free": _taken_in(free, rows, into, weight, own)}
        parts["rot"] = rot[:, jnp.maximum(rows, 0)] if how == "values" else _taken_in(rot, rows, into, weight, own)
        flat = {name: jnp.where(padding, 0.0, part).swapaxes(0, 1) for name, part in parts.items()}
        given = {name: part.reshape(part.shape[0], -1) for name, part in flat.items()}
        return KV(given["rot"].astype(kv.rot.dtype), given["free"].astype(kv.free.dtype))

    return jax.lax.map(of_layer, kv)
