"""What forms a patch of a forward, beside the forward: the fit, and whom the chunk attended to."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Chunk
from kamera_jax.forward import owners_of
from kamera_jax.kv import KV
from kamera_jax.patch.fitting import Fitted, fit_bytes, fit_width
from kamera_jax.patch.size import Size
from kamera_jax.window.window import Window

OWNERS = 32
"""So many are shared between attention at least: entries of a window, its preamble, and the chunk itself. There may be
four times as many, and so on, and that often what forms a patch is compiled anew."""


def padded_owners(window: Window) -> int:
    """Owners of attention that arrays have room for: few sizes."""
    owners = OWNERS
    while owners < len(window.entries) + 2:
        owners *= 4
    return owners


def forming_numbers(window: Window, chunk: Chunk, size: Size) -> tuple[Any, ...]:
    """All numbers that forming a patch takes, which go to the device as one array (`kamera_jax.transfer.packed`).

    The base; the chunk's length, how many components (of a layer, or in all where bytes are what is asked for) and the
    number of entries; then of each owner the first slot and, in the same
    order, the one after the last, 0 and 0 for those that are no entry: see `kamera_jax.forward.owners_of`.
    """
    missing = [0] * (padded_owners(window) - len(window.entries))
    first = [entry.slot for entry in window.entries] + missing
    last = [entry.slot + entry.chunk.length for entry in window.entries] + missing
    if size.rank is not None:
        count = max(0, min(size.rank, np.iinfo(np.int32).max))
    else:
        count = size.budget(chunk.kv, chunk.length)[0] if size.fits_bytes(chunk.length) else 0
    return window.next_position, chunk.length, count, len(window.entries), *first, *last


def _share(mass: jax.Array, numbers: jax.Array, slots: int | None) -> jax.Array:
    """Attention f32[L, n] to each entry, then the preamble, then the chunk's own tokens.

    Args:
        mass: f32[L, n], by owner, or f32[L, S + T], of each slot and token.
        numbers: see `forming_numbers`.
        slots: S; None where the mass is by owner.
    """
    if slots is None:
        return mass
    return mass @ owners_of(numbers, slots, mass.shape[1]).astype(jnp.float32)


shares = partial(jax.jit, static_argnames="slots")(_share)


@partial(jax.jit, static_argnames=("slots", "width", "int8", "by_bytes"))
def fit_and_share(
    conditioned: KV,
    canonical: KV,
    mass: jax.Array,
    numbers: jax.Array,
    *,
    slots: int | None,
    width: int,
    int8: bool,
    by_bytes: bool,
) -> tuple[Fitted, jax.Array]:
    """A patch of at most ``width`` components a layer, and whom the chunk attended to: one program for a chunk's rows.

    The number of components is of every layer, or, ``by_bytes``, of all together.
    """
    if by_bytes:
        fitted = fit_bytes(conditioned, canonical, numbers[1], numbers[2], widest=width, int8=int8)
    else:
        fitted = fit_width(conditioned, canonical, numbers[1], numbers[2], width=width, int8=int8)
    return fitted, _share(mass, numbers, slots)
