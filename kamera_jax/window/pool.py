"""Pools: where the chunks of an in-place window lie. Moving a chunk changes two small tables; its KV stays.

A pool grows when the window itself needs more places than it has. Until then what was written longest ago, and is in
the window no more, makes room; when it comes back it is written again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Entry
from kamera_jax.compress.pooled import PackedPool
from kamera_jax.handle import copied, traced
from kamera_jax.identity import UNNAMED, Identity
from kamera_jax.kv import KV, ChunkPool, Factors, KVSpec, bucket, bucket_of_slots
from kamera_jax.patch.size import default_width
from kamera_jax.placement import Placement, constrained
from kamera_jax.transfer import expect, to_device
from kamera_jax.window.reuse import log_counts
from kamera_jax.window.slots import no_factors

FIRST_PLACES = 4
"""Places of a new pool, at least. It doubles, so that there are few shapes."""

MOST_PLACES = 16
"""Places of a new pool at most; as many as hold the window's capacity, if these are fewer."""

LEAST_TOKENS = 64
"""Rows of a place at least: pools of few kinds are few programs. Shorter chunks leave the rest of theirs unread."""

FIRST_ROWS = (64, 128)
"""Rows of the places that a session's window has from the beginning, where they take little memory."""

RESERVED_BYTES = 2**26
"""Bytes of a pool at most that is made as large as its window may need it, before it does: 64 MiB."""

SLOT_ALIGNMENT = 16
"""Chunks start at multiples of this many slots, so that kernels write whole tiles."""


@dataclass(frozen=True)
class PoolIndex:
    """What is known to lie in a `ChunkPool`.

    Attributes:
        tokens: T, the rows of a place; see `pool_tokens`.
        places: of each chunk with its patch that has keys, written longest ago first: what it is, and where it lies.
    """

    tokens: int
    places: tuple[tuple[Identity, int], ...] = ()


class Pools(NamedTuple):
    """Pools, and the index of each, by ascending bucket: the same buckets are one compiled program.

    Windows that come out of a transformation have no index; their entries know where they lie.
    """

    pools: tuple[ChunkPool, ...]
    indices: tuple[PoolIndex, ...]


def pool_tokens(rows: int) -> int:
    """The rows of the places that chunks of so many rows come to: 64, 128, and then two sizes for each doubling."""
    return LEAST_TOKENS if rows <= LEAST_TOKENS else bucket_of_slots(rows)


def allocate(
    old: Pools,
    entries: Sequence[Entry],
    spec: KVSpec,
    *,
    capacity: int = 0,
    donate: bool = False,
    placement: Placement | None = None,
    form: PackedPool | None = None,
) -> tuple[Pools, tuple[Entry, ...]]:
    """Pools that hold a window's entries and are read at their lengths and bases; only what is new is written.

    Args:
        old: what to start from.
        entries: of the window; those with a place lie there already.
        spec: what the KV means.
        capacity: slots of the window.
        donate: take the buffers of an old pool that is written to; what shares them must not be used again.
        placement: where the pools lie on a mesh.
        form: how chunks are packed; None keeps them as they are.

    Returns:
        The pools, and the entries with their places.
    """
    indices = {index.tokens: index for index in old.indices}
    pools = {pool.rot.shape[2]: pool for pool in old.pools}
    numbers: dict[int, list[int]] = {tokens: [] for tokens in pools}
    for number, entry in enumerate(entries):
        numbers.setdefault(pool_tokens(entry.chunk.kv.rot.shape[1]), []).append(number)
    # One patch, and every pool has arrays for patches: each pool by itself would be a program more.
    patched = any(entry.patch is not None for entry in entries) or any(pool.u is not None for pool in old.pools)
    placed = list(entries)
    grown = Pools((), ())
    for tokens in sorted(numbers):
        index = indices.get(tokens, PoolIndex(tokens))
        own = [entries[number] for number in numbers[tokens]]
        rank = _default_width(spec, tokens) if patched else 0
        least = Least(places=_first_places(capacity, tokens), rank=rank, placement=placement, form=form)
        pool, index, own = _allocated(pools.get(tokens), index, own, spec, least, donate)
        grown = Pools((*grown.pools, pool), (*grown.indices, index))
        for number, entry in zip(numbers[tokens], own, strict=True):
            placed[number] = entry
    tables = to_device([(pool.lengths, pool.bases) for pool in grown.pools])
    pools = [replace(pool, lengths=ours[0], bases=ours[1]) for pool, ours in zip(grown.pools, tables, strict=True)]
    return grown._replace(pools=tuple(pools)), tuple(placed)


def reserved(
    old: Pools,
    tokens: Iterable[int],
    spec: KVSpec,
    *,
    capacity: int,
    placement: Placement | None = None,
    form: PackedPool | None = None,
) -> Pools:
    """Pools with places of so many rows too, as many as chunks of such rows can stand in the window at once.

    What attends to the window then keeps its shapes, whatever comes. Not where that takes much memory: such a pool
    begins small, and grows.

    Args:
        old: what to start from.
        tokens: rows of places; see `pool_tokens`.
        spec: what the KV means.
        capacity: slots of the window.
        placement: where the pools lie on a mesh.
        form: how chunks are packed; None keeps them as they are.
    """
    pools = {pool.rot.shape[2]: (pool, index) for pool, index in zip(*old, strict=True)}
    for rows in set(tokens) - set(pools):
        smaller = next((less for less in range(rows - 1, 0, -1) if pool_tokens(less) < rows), 0)
        most = max(1, capacity // (smaller + SLOT_ALIGNMENT))
        places = 1 << (most - 1).bit_length()
        least = Least(places=places, rank=_default_width(spec, rows), placement=placement, form=form)
        width = spec.rot_dim + spec.free_dim
        patch_bytes = spec.layers * least.rank * (rows + width) * jnp.dtype(spec.dtype).itemsize
        if least.places * (rows * spec.token_bytes + patch_bytes) > RESERVED_BYTES:
            continue
        arrays = _with_room({}, rows, (), spec, least)
        lengths, bases = to_device((np.zeros(least.places, np.int32), np.zeros(least.places, np.float32)))
        pools[rows] = _pool(arrays, lengths, bases, form), PoolIndex(rows)
    return Pools(*zip(*(pools[rows] for rows in sorted(pools)), strict=True)) if pools else old


class Least(NamedTuple):
    """Places and components that a pool has at least, where it lies on a mesh, and how its chunks are packed."""

    places: int
    rank: int
    placement: Placement | None = None
    form: PackedPool | None = None


def _default_width(spec: KVSpec, rows: int) -> int:
    """Components that a pool has arrays for at least where there are patches, so that it need not grow with each."""
    return default_width(spec.layers, rows, spec.rot_dim + spec.free_dim, jnp.dtype(spec.dtype).itemsize)


def _first_places(capacity: int, tokens: int) -> int:
    places = FIRST_PLACES
    while places < MOST_PLACES and places * tokens < capacity:
        places *= 2
    return places


def _allocated(
    pool: ChunkPool | None, index: PoolIndex, entries: Sequence[Entry], spec: KVSpec, least: Least, donate: bool
) -> tuple[ChunkPool, PoolIndex, list[Entry]]:
    """One pool, its index and its entries."""
    arrays = {} if pool is None else _arrays(pool)
    known = list(index.places)
    places: list[Any] = [entry.place for entry in entries]
    for i, entry in enumerate(entries):  # a chunk may stand twice, and then lies twice
        if places[i] is None and _named(entry):
            same = (place for identity, place in known if identity == entry.identity and place not in places)
            places[i] = next(same, None)
    if any(place is None for place in places) or (least.rank and "u" not in arrays):
        grown = _with_room(arrays, index.tokens, entries, spec, least)
        donate = donate or grown is not arrays
        arrays = grown
    new = [i for i, place in enumerate(places) if place is None]
    for i in new:
        places[i] = _free_place(len(arrays["positions"]), known, [place for place in places if place is not None])
        known = [each for each in known if not traced(places[i]) and each[1] != places[i]]
        if _named(entries[i]) and not traced(places[i]):
            known.append((entries[i].identity, places[i]))
    lengths = [entry.chunk.length for entry in entries]
    bases = [entry.base for entry in entries]
    count = len(arrays["positions"])
    tables: Any = _table(count, places, lengths, np.int32), _table(count, places, bases, np.float32)
    expect(tables)  # they go with the places
    for i in new:
        chunk = entries[i].chunk
        given = (_number(places[i]), chunk.kv, chunk.positions, _factors(entries[i], arrays), chunk.counts)
        packing = {} if least.form is None else {"length": chunk.length, "form": least.form}
        if traced(*jax.tree.leaves((arrays, given, packing.get("length")))):  # there is nothing to donate
            arrays = _write(arrays, *given, **packing)
            continue
        arrays = _put(arrays if donate else copied(arrays), *given, **packing, placement=least.placement)
        donate = True
    pool = _pool(arrays, tables[0], tables[1], least.form)
    placed = [replace(entry, place=place) for entry, place in zip(entries, places, strict=True)]
    return pool, replace(index, places=tuple(known)), placed


def _factors(entry: Entry, arrays: dict[str, jax.Array]) -> Factors | None:
    """What is written of its patch; of no component where it has none, so that it shares a program with those."""
    if entry.patch is not None:
        return entry.patch.factors
    kv = entry.chunk.kv
    return no_factors(kv) if "ranks" in arrays and not traced(kv.rot, *arrays.values()) else None


def _named(entry: Entry) -> bool:
    """Whether its identity says which bits it has."""
    chunk, _, patch = entry.identity
    return bool(chunk) and patch != UNNAMED


def _free_place(count: int, known: Sequence[tuple[Identity, int]], taken: Sequence[Any]) -> Any:
    """A place that none of ``taken`` is: one that nothing is known of, else what was written longest ago."""
    if traced(*taken):
        used = jnp.zeros(count, bool).at[jnp.stack([jnp.asarray(place, jnp.int32) for place in taken])].set(True)
        return jnp.argmin(used).astype(jnp.int32)
    order = [*(set(range(count)) - {place for _, place in known}), *(place for _, place in known)]
    return next(place for place in order if place not in taken)


def _number(place: Any) -> Any:
    return place if traced(place) else to_device(np.int32(place))


def _table(count: int, places: Sequence[Any], values: Sequence[Any], dtype: Any) -> np.ndarray | jax.Array:
    """Each value at its place, zero at the others."""
    if not traced(*places, *values):
        table = np.zeros(count, dtype)
        table[np.asarray(places, int)] = values
        return table
    table = jnp.zeros(count, dtype)
    for place, value in zip(places, values, strict=True):
        table = table.at[place].set(jnp.asarray(value, dtype))
    return table


def _arrays(pool: ChunkPool) -> dict[str, jax.Array]:
    """What is written when a chunk comes in."""
    biased = {} if pool.bias is None else {"bias": pool.bias}
    return {**pool.layers, "positions": pool.positions, **biased}


def _pool(arrays: dict[str, jax.Array], lengths: Any, bases: Any, form: PackedPool | None) -> ChunkPool:
    """The pool of what `_arrays` gives, and of a window's own tables."""
    own = {field.name for field in fields(ChunkPool)}
    packed = {name: array for name, array in arrays.items() if name not in own}
    plain = {name: array for name, array in arrays.items() if name in own}
    unpack = None if form is None else form.unpack
    return ChunkPool(**plain, lengths=lengths, bases=bases, packed=packed or None, unpack=unpack)


def _with_room(
    arrays: dict[str, jax.Array], tokens: int, entries: Sequence[Entry], spec: KVSpec, least: Least
) -> dict[str, jax.Array]:
    """The same arrays, or larger ones: places for all entries, components for all their patches."""
    places = len(arrays["positions"]) if arrays else least.places
    while places < len(entries):
        places *= 2
    factors = [entry.patch.factors for entry in entries if entry.patch is not None]
    rank = max((bucket(each.u.shape[1]) for each in factors), default=0)
    rank = max(rank, least.rank)
    dtypes = [jnp.dtype(spec.dtype) if each.scale is not None else each.u.dtype for each in factors]
    if least.rank:
        dtypes.append(jnp.dtype(spec.dtype))
    if "u" in arrays:
        rank = max(rank, arrays["u"].shape[2])
        dtypes.append(arrays["u"].dtype)
    lead = (spec.layers, places)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "rot": ((*lead, tokens, spec.rot_dim), spec.dtype),
        "free": ((*lead, tokens, spec.free_dim), spec.dtype),
    }
    if least.form is not None:
        packed = least.form.arrays(spec.layers, tokens, spec.dtype)
        shapes = {name: ((*lead, *each.shape[1:]), each.dtype.name) for name, each in packed.items()}
    shapes["positions"] = ((places, spec.rope.axes, tokens), "float32")
    if rank:
        dtype = max(dtypes, key=lambda dtype: dtype.itemsize).name
        shapes["u"] = ((*lead, rank, tokens), dtype)
        shapes["v"] = ((*lead, rank, spec.rot_dim + spec.free_dim), dtype)
        shapes["ranks"] = (lead, "int32")
    if "bias" in arrays or any(entry.chunk.counts is not None for entry in entries):
        shapes["bias"] = ((places, tokens), "float32")
    if shapes == {name: (array.shape, array.dtype.name) for name, array in arrays.items()}:
        return arrays
    return _grown(arrays, shapes=tuple(shapes.items()), placement=least.placement)


@partial(jax.jit, static_argnames=("shapes", "placement"))
def _grown(arrays: dict[str, jax.Array], *, shapes: Any, placement: Placement | None) -> dict[str, jax.Array]:
    """The arrays in the corner of larger ones."""
    grown = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in shapes}
    for name, array in arrays.items():
        corner = tuple(slice(0, extent) for extent in array.shape)
        grown[name] = grown[name].at[corner].set(array.astype(grown[name].dtype))
    return constrained(grown, placement)


def _write(
    arrays: dict[str, jax.Array],
    place: jax.Array | int,
    kv: KV,
    positions: jax.Array,
    factors: Factors | None,
    counts: jax.Array | None,
    *,
    length: jax.Array | int = 0,
    form: PackedPool | None = None,
    placement: Placement | None = None,
) -> dict[str, jax.Array]:
    """The arrays with a chunk and its patch at ``place``, and zeros past its rows and components."""
    new = {"rot": kv.rot, "free": kv.free}
    if form is not None:
        missing = arrays["positions"].shape[-1] - kv.rot.shape[1]
        whole = jax.tree.map(lambda rows: jnp.pad(rows, ((0, 0), (0, missing), (0, 0))), kv)
        new = form.pack(whole, length, placement)
    if factors is not None:
        new["u"], new["v"] = factors.floats(arrays["u"].dtype)
        new["ranks"] = factors.ranks
    elif "ranks" in arrays:
        new |= {name: jnp.zeros((len(kv.rot), *[0] * (arrays[name].ndim - 2))) for name in ("u", "v")}
        new["ranks"] = jnp.zeros(len(kv.rot), jnp.int32)
    written = {name: arrays[name].at[:, place].set(_filled(rows, arrays[name], 2)) for name, rows in new.items()}
    written["positions"] = arrays["positions"].at[place].set(_filled(positions, arrays["positions"], 1))
    if "bias" in arrays:
        bias = log_counts(counts, kv.rot.shape[1])
        written["bias"] = arrays["bias"].at[place].set(_filled(bias, arrays["bias"], 1))
    return constrained(arrays | written, placement)


def _filled(rows: jax.Array, like: jax.Array, lead: int) -> jax.Array:
    """Rows with zeros behind them on every axis, up to what a place has."""
    extents = like.shape[lead:]
    kept = rows.ndim - len(extents)
    widths = [(0, 0)] * kept + [(0, whole - own) for whole, own in zip(extents, rows.shape[kept:], strict=True)]
    return jnp.pad(rows, widths).astype(like.dtype)


_put = partial(jax.jit, static_argnames=("form", "placement"), donate_argnames="arrays")(_write)
