"""Antecedents in several orders: what a patch that serves all of them is fitted to."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from kamera_jax.kv import KV

T = TypeVar("T")


def orders_of(items: Sequence[T]) -> list[tuple[T, ...]]:
    """The order given, its rotations, and the reverse of each: all orders of up to three items."""
    rotations = [(*items[i:], *items[:i]) for i in range(len(items))] or [()]
    return rotations if len(items) < 3 else [*rotations, *(order[::-1] for order in rotations)]


def mean_of(kvs: Sequence[KV]) -> KV:
    """The mean of a chunk's KV behind others, in the KV's dtype."""

    def mean(*rows: jax.Array) -> jax.Array:
        return jnp.mean(jnp.stack(rows).astype(jnp.float32), axis=0).astype(rows[0].dtype)

    return kvs[0] if len(kvs) == 1 else jax.tree.map(mean, *kvs)
