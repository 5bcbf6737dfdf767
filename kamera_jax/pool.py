"""Pools: where the chunks of an in-place window lie. Moving a chunk changes two small tables; its KV stays.

A pool grows when the window itself needs more places than it has. Until then what was written longest ago, and is in
the window no more, makes room; when it comes back it is written again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Entry
from kamera_jax.kv import KV, ChunkPool, Factors, KVSpec, bucket

FIRST_PLACES = 4
"""Places of a new pool. It doubles, so that there are few shapes."""


@dataclass(frozen=True)
class Held:
    """What a place holds, known by the very arrays that were written there.

    A key would not do: a kept turn's does not say which patches its window had. The references are weak: the pool has
    a copy of its own, and keeps no other alive.

    Attributes:
        kv: the chunk's.
        positions: the chunk's.
        factors: the patch's, or None.
        place: index into the pool.
    """

    kv: ref
    positions: ref
    factors: ref | None
    place: int

    @staticmethod
    def of(entry: Entry, place: int) -> "Held":
        """The entry's chunk with its patch, at a place."""
        factors = None if entry.patch is None else ref(entry.patch.factors)
        return Held(ref(entry.chunk.kv), ref(entry.chunk.positions), factors, place)

    def holds(self, entry: Entry) -> bool:
        """Whether this is the entry's chunk with the entry's patch."""
        chunk, patch = entry.chunk, entry.patch
        if self.factors is None or patch is None:
            same = self.factors is None and patch is None
        else:
            same = self.factors() is patch.factors
        return same and self.kv() is chunk.kv and self.positions() is chunk.positions

    @property
    def lost(self) -> bool:
        """Whether nobody can ask for it again."""
        return any(each is not None and each() is None for each in (self.kv, self.positions, self.factors))


@dataclass(frozen=True)
class Shelf:
    """The host's side of a `ChunkPool`.

    Attributes:
        tokens: T, the bucket.
        held: what its places hold, written longest ago first.
    """

    tokens: int
    held: tuple[Held, ...] = ()


Stock = tuple[tuple[ChunkPool, ...], tuple[Shelf, ...]]
"""Pools, and the shelf of each, by ascending bucket: the same buckets are one compiled program."""


def stock(old: Stock, entries: Sequence[Entry], spec: KVSpec, *, donate: bool = False) -> Stock:
    """Pools that hold a window's entries and are read at their lengths and bases; only what is new is written.

    Args:
        old: what to start from.
        entries: of the window.
        spec: what the KV means.
        donate: take the buffers of an old pool that is written to; what shares them must not be used again.
    """
    known = {shelf.tokens: (pool, shelf) for pool, shelf in zip(*old, strict=True)}
    by_bucket: dict[int, list[Entry]] = {tokens: [] for tokens in known}
    for entry in entries:
        by_bucket.setdefault(entry.chunk.kv.rot.shape[1], []).append(entry)
    pairs = [_stocked(known.get(tokens), tokens, by_bucket[tokens], spec, donate) for tokens in sorted(by_bucket)]
    return tuple(pool for pool, _ in pairs), tuple(shelf for _, shelf in pairs)


def _stocked(
    known: tuple[ChunkPool, Shelf] | None, tokens: int, entries: Sequence[Entry], spec: KVSpec, donate: bool
) -> tuple[ChunkPool, Shelf]:
    arrays, held = (_arrays(known[0]), list(known[1].held)) if known else ({}, [])
    places: list[int] = []
    for entry in entries:  # a chunk may stand twice, and then lies twice
        places.append(next((each.place for each in held if each.holds(entry) and each.place not in places), -1))
    if -1 in places:
        grown = _with_room(arrays, tokens, entries, spec)
        donate, arrays = donate or grown is not arrays, grown
        room = _room(len(arrays["positions"]), held, places)
        for i, entry in enumerate(entries):
            if places[i] < 0:
                places[i] = next(room)
                factors = None if entry.patch is None else entry.patch.factors
                put = _put_donated if donate else _put
                arrays, donate = put(arrays, places[i], entry.chunk.kv, entry.chunk.positions, factors), True
                held = [*(each for each in held if each.place != places[i]), Held.of(entry, places[i])]
    count = len(arrays["positions"])
    lengths, bases = np.zeros(count, np.int32), np.zeros(count, np.float32)
    lengths[places] = [entry.chunk.length for entry in entries]
    bases[places] = [entry.base for entry in entries]
    pool = ChunkPool(**arrays, lengths=jnp.asarray(lengths), bases=jnp.asarray(bases))
    return pool, Shelf(tokens, tuple(held))


def _room(places: int, held: Sequence[Held], taken: Sequence[int]) -> Iterator[int]:
    """Places to write to that are not taken: never used, then lost, then written longest ago."""
    used = {each.place for each in held}
    old = sorted((each for each in held if each.place not in taken), key=lambda each: not each.lost)
    return iter([*(place for place in range(places) if place not in used), *(each.place for each in old)])


def _arrays(pool: ChunkPool) -> dict[str, jax.Array]:
    """What is written when a chunk comes in."""
    return {**pool.layers, "positions": pool.positions}


def _with_room(
    arrays: dict[str, jax.Array], tokens: int, entries: Sequence[Entry], spec: KVSpec
) -> dict[str, jax.Array]:
    """The same arrays, or larger ones: places for all entries, components for all their patches."""
    places = len(arrays["positions"]) if arrays else FIRST_PLACES
    while places < len(entries):
        places *= 2
    factors = [entry.patch.factors for entry in entries if entry.patch is not None]
    rank = max((bucket(each.u.shape[1]) for each in factors), default=0)
    dtypes = [jnp.dtype(spec.dtype) if each.scale is not None else each.u.dtype for each in factors]
    if "u" in arrays:
        rank = max(rank, arrays["u"].shape[2])
        dtypes.append(arrays["u"].dtype)
    lead = (spec.layers, places)
    shapes = {
        "rot": ((*lead, tokens, spec.rot_dim), spec.dtype),
        "free": ((*lead, tokens, spec.free_dim), spec.dtype),
        "positions": ((places, spec.rope.axes, tokens), "float32"),
    }
    if rank:
        dtype = max(dtypes, key=lambda dtype: dtype.itemsize).name
        shapes["u"] = ((*lead, rank, tokens), dtype)
        shapes["v"] = ((*lead, rank, spec.rot_dim + spec.free_dim), dtype)
        shapes["ranks"] = (lead, "int32")
    if shapes == {name: (array.shape, array.dtype.name) for name, array in arrays.items()}:
        return arrays
    return _grown(arrays, shapes=tuple(shapes.items()))


@partial(jax.jit, static_argnames="shapes")
def _grown(arrays: dict[str, jax.Array], *, shapes: Any) -> dict[str, jax.Array]:
    """The arrays in the corner of larger ones."""
    grown = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in shapes}
    for name, array in arrays.items():
        corner = tuple(slice(0, extent) for extent in array.shape)
        grown[name] = grown[name].at[corner].set(array.astype(grown[name].dtype))
    return grown


def _write(
    arrays: dict[str, jax.Array], place: jax.Array | int, kv: KV, positions: jax.Array, factors: Factors | None
) -> dict[str, jax.Array]:
    """The arrays with a chunk and its patch at ``place``. What an older patch left past the ranks is never read."""
    written = {
        "rot": arrays["rot"].at[:, place].set(kv.rot),
        "free": arrays["free"].at[:, place].set(kv.free),
        "positions": arrays["positions"].at[place].set(positions),
    }
    if factors is not None:
        rank, dtype = factors.u.shape[1], arrays["u"].dtype
        u, v = factors.floats(dtype)
        written["u"] = arrays["u"].at[:, place, :rank].set(u)
        written["v"] = arrays["v"].at[:, place, :rank].set(v)
        written["ranks"] = arrays["ranks"].at[:, place].set(factors.ranks)
    elif "ranks" in arrays:
        written["ranks"] = arrays["ranks"].at[:, place].set(0)
    return arrays | written


_put = jax.jit(_write)
_put_donated = jax.jit(_write, donate_argnames="arrays")
