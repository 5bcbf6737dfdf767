"""Entries written to a window's slots, rotated and patched: by few programs, in few calls, after one transfer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kamera_jax.chunk import Entry
from kamera_jax.handle import copied, traced
from kamera_jax.kv import KV, Factors, KVSpec, WindowState
from kamera_jax.patch.size import default_width
from kamera_jax.placement import Placement, constrained
from kamera_jax.transfer import default_device, numbers, packed, to_device, unpacked
from kamera_jax.window.reuse import write

GROUP = 8
"""Entries that one call writes, where their chunks have the same rows."""

GROUPED_ROWS = 256
"""Rows of such chunks at most, each of which is copied first; of a longer one a call has enough to do."""

NOWHERE = 2**31 - 1
"""The slot from which on nothing is hidden."""


class Source(NamedTuple):
    """What an entry is written from."""

    kv: KV
    factors: Factors | None
    positions: jax.Array
    counts: jax.Array | None = None


def put_first(spec: KVSpec, slots: int, entry: Entry, placement: Placement | None = None) -> WindowState:
    """A state of ``slots`` slots with an entry's chunk at its slots, and nothing else."""
    source = Source(entry.chunk.kv, None, entry.chunk.positions)
    return _put_first(_packed(entry, NOWHERE), source, slots=slots, spec=spec, placement=placement)


def put(
    spec: KVSpec,
    state: WindowState,
    entries: Sequence[Entry],
    *,
    donate: bool = False,
    placement: Placement | None = None,
) -> WindowState:
    """The state with the chunks of entries, rotated and patched, at their slots; the rest from the first on is hidden.

    Args:
        spec: what the KV means.
        state: where they are written.
        entries: in the order of their slots; one at least.
        donate: take the state's buffers.
        placement: where it lies on a mesh.
    """
    static = {"spec": spec, "placement": placement}
    leaves = jax.tree.leaves((state, [_source(entry) for entry in entries]))
    if traced(*leaves, *(number for entry in entries for number in (entry.base, entry.slot, entry.chunk.length))):
        for entry in entries:  # a transformation may want the derivative, which a loop of unknown length has not
            state = _put(state, _packed(entry, entry.slot), _source(entry), **static)
        return state
    state = state if donate else copied(state)
    if state.bias is None and any(entry.chunk.counts is not None for entry in entries):
        state = replace(
            state, bias=jnp.zeros(state.valid.shape, jnp.float32)
        )  # what a loop carries keeps its structure
    groups = list(_groups(entries))
    rows = to_device([rows for rows, _ in groups])
    for (_, sources), there in zip(groups, rows, strict=True):
        if there.ndim == 1:
            state = _put_donated(state, there, sources[0], **static)
        else:
            state = _put_group(state, there, sources, **static)
    return state


def hidden(state: WindowState, end: Any, *, donate: bool = False) -> WindowState:
    """The state whose slots from one on hold nothing."""
    return _hidden(state if donate else copied(state), packed(0.0, end))


def sent(entries: Sequence[Entry]) -> list[np.ndarray]:
    """What `put` sends to the device for these entries."""
    return [rows for rows, _ in _groups(entries)] if entries else []


def _groups(entries: Sequence[Entry]) -> Iterable[tuple[np.ndarray, tuple[Source, ...]]]:
    """Entries that are written by one call, and their numbers: [n] of one, [GROUP, n] of several."""
    alike: dict[Any, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(_kind(entry), []).append(entry)
    hide = entries[0].slot  # in the first call; later ones write what it has hidden
    for kind, members in alike.items():
        size = GROUP if kind[0] <= GROUPED_ROWS else 1
        for start in range(0, len(members), size):
            part = members[start : start + size]
            rows = [_numbers(entry, hide if place == 0 else NOWHERE) for place, entry in enumerate(part)]
            hide = NOWHERE
            sources = tuple(_patched_source(entry) for entry in part)
            if size == 1:
                yield rows[0], sources
            else:
                missing = GROUP - len(part)
                rows += [np.full_like(rows[0], -1)] * missing
                yield np.stack(rows), sources + (sources[0],) * missing


def _kind(entry: Entry) -> tuple[Any, ...]:
    """What the program that writes an entry is compiled for; its rows first."""
    leaves, structure = jax.tree.flatten(_patched_source(entry))
    return entry.chunk.positions.shape[1], structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _numbers(entry: Entry, hide: int) -> np.ndarray:
    return numbers(entry.base, entry.slot, entry.chunk.length, hide)


def _packed(entry: Entry, hide: Any) -> jax.Array:
    return packed(entry.base, entry.slot, entry.chunk.length, hide)


def _source(entry: Entry) -> Source:
    factors = None if entry.patch is None else entry.patch.factors
    return Source(entry.chunk.kv, factors, entry.chunk.positions, entry.chunk.counts)


def _patched_source(entry: Entry) -> Source:
    """The same, with a patch of no component where there is none."""
    source = _source(entry)
    return source if source.factors is not None else source._replace(factors=no_factors(source.kv))


_NO_FACTORS: dict[Any, Factors] = {}


def no_factors(kv: KV) -> Factors | None:
    """A patch of the default size that has no component in use, where the KV is: on a mesh on every device.

    None where the KV is spread over devices otherwise. An entry without a patch is written with it, and so by the
    program that writes patches.
    """
    layers, rows, width = kv.rot.shape
    width += kv.free.shape[2]
    where = kv.rot.sharding if isinstance(kv.rot, jax.Array) and kv.rot.committed else None
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec())
    if where is not None and not where.is_fully_replicated:
        return None
    key = (layers, rows, width, kv.rot.dtype.name, where, default_device())
    if (known := _NO_FACTORS.get(key)) is not None:
        return known
    rank = default_width(layers, rows, width, kv.rot.dtype.itemsize)
    zeros = [np.zeros((layers, rank, extent), np.int8) for extent in (rows, width)]
    numbers = (np.zeros(layers, np.int32), np.zeros((layers, rank), np.float32))
    factors = Factors(*jax.device_put((*zeros, *numbers), where))
    if not traced(factors.u):
        _NO_FACTORS[key] = factors
    return factors


def _put_one(
    state: WindowState | None,
    row: jax.Array,
    source: Source,
    *,
    spec: KVSpec,
    placement: Placement | None,
    slots: int = 0,
) -> WindowState:
    """See `put`; ``row`` packs the base, the slot, the length, and the slot from which on the state is hidden."""
    if state is None:
        state = spec.empty_state(slots)
    base, slot, length, hide = unpacked(row)
    count = state.valid.shape[0]
    fits = slot + length <= count  # what does not fit must not be written elsewhere; see `changes._poisoned`
    length = jnp.where(fits, length, 0)
    state = replace(state, valid=state.valid & (jnp.arange(count, dtype=jnp.int32) < jnp.where(fits, hide, count)))
    slot = jnp.where(fits, slot, 0)
    rows = (source.kv, source.factors, source.positions + base, length)
    written = write(state, slot, *rows, spec.rope, placement=placement, counts=source.counts)
    return constrained(written, placement)


_put = partial(jax.jit, static_argnames=("spec", "placement"))(_put_one)
_put_donated = partial(jax.jit, static_argnames=("spec", "placement"), donate_argnames="state")(_put_one)


@partial(jax.jit, static_argnames=("spec", "slots", "placement"))
def _put_first(row: jax.Array, source: Source, *, spec: KVSpec, slots: int, placement: Placement | None) -> WindowState:
    return _put_one(None, row, source, spec=spec, slots=slots, placement=placement)


@partial(jax.jit, static_argnames=("spec", "placement"), donate_argnames="state")
def _put_group(
    state: WindowState, rows: jax.Array, sources: tuple[Source, ...], *, spec: KVSpec, placement: Placement | None
) -> WindowState:
    """Several entries one after another; rows of a length below 0 are none."""
    count = jnp.sum(rows[:, 2] >= 0, dtype=jnp.int32)

    def one(i: jax.Array, state: WindowState) -> WindowState:
        source = jax.lax.switch(i, [partial(lambda each: each, each) for each in sources])
        return _put_one(state, rows[i], constrained(source, placement), spec=spec, placement=placement)

    return constrained(jax.lax.fori_loop(jnp.int32(0), count, one, state), placement)


@partial(jax.jit, donate_argnames="state")
def _hidden(state: WindowState, row: jax.Array) -> WindowState:
    _, end = unpacked(row)
    return replace(state, valid=state.valid & (jnp.arange(state.valid.shape[0], dtype=jnp.int32) < end))
