"""What the Hopper kernel of relocate_patch is given: its tiles, what is fixed when it is compiled, and its operands."""

import dataclasses
from typing import Any

import jax

ROWS = 64
"""Tokens of a tile: the rows of one warpgroup matrix multiply."""
RANKS = (16, 32, 64)
"""Depths the multiply is compiled for; ranks between are padded."""
MULTIPROCESSORS = 132
SHARED_MEMORY = 227 * 1024
"""Bytes for a thread block; as the number of multiprocessors, of an H100 or H200."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is cut.

    Attributes:
        columns: of `free` in one step, at most.
        pairs: of a head in one step, at most.
        groups: of layers; a thread block takes one.
        stages: of the pipeline that loads.
    """

    columns: int
    pairs: int
    groups: int
    stages: int


def choose_tiles(layers: int, tokens: int, rank: int) -> Tiles:
    """Two blocks on a multiprocessor, as many stages as they leave room for, and three waves of blocks.

    A block holds about 240 registers a thread, so no more than two fit. Reasoned from sizes; not measured.
    """
    columns = 128
    tile = 2 * ROWS * columns
    stages = min(4, max(2, (SHARED_MEMORY // 2 - tile) // (tile + 2 * rank * (ROWS + columns))))
    divisors = [groups for groups in range(1, layers + 1) if layers % groups == 0]
    groups = next((groups for groups in divisors if groups * tokens // ROWS >= 3 * 2 * MULTIPROCESSORS), layers)
    return Tiles(columns, columns // 2, groups, stages)


@dataclasses.dataclass(frozen=True)
class Call:
    """What is fixed when the kernel is compiled.

    Attributes:
        head_dim: columns of a head of ``rot``, in bf16.
        pairs: pairs of a head that the kernel rotates.
        packed: pairs are neighbours, and ``rot`` comes as u32: one pair in each.
        into: write into caches and leave their rows past ``length``; else write new arrays, zero past ``length``.
        page: rows of a cache page; None when the cache is contiguous, or there is none.
        tiles: how the work is cut.
    """

    head_dim: int
    pairs: int
    packed: bool
    into: bool
    page: int | None
    tiles: Tiles

    @property
    def units(self) -> int:
        """Columns of a head of ``rot`` as the kernel gets it."""
        return self.head_dim // 2 if self.packed else self.head_dim

    @property
    def rest(self) -> int:
        """Columns of a head that are not in pairs."""
        return self.head_dim - 2 * self.pairs

    @property
    def head_patch(self) -> int:
        """Columns of a head in ``v`` as the kernel gets it: first members, second members, rest; each padded."""
        return 2 * pad_columns(self.pairs) + pad_columns(self.rest)


def pad_columns(width: int) -> int:
    """The columns that ``width`` of them take in ``v``: the multiply wants multiples of 16."""
    return -(-width // 16) * 16


@dataclasses.dataclass(frozen=True)
class Operands:
    """What the kernel is launched on.

    Attributes:
        rot: [L, T, Fr] bf16, or [L, T, Fr / 2] u32 when packed; T is a multiple of ROWS.
        free: [L, T, Ff] bf16.
        cos, sin: full-width tables f32[T, D], or [T, D / 2] when packed: the cosine of every pair, and the sine that
            its second member adds.
        patch: u [L, m, T] and v [L, m, heads * `Call.head_patch` + Ff] in bf16, zero past the ranks; m in `RANKS`.
            None without a patch.
        place: i32: the length, and then the slot or the page table.
        caches: refs of [L, S, …] like rot and free (pages joined), or None.
    """

    rot: jax.Array
    free: jax.Array
    cos: jax.Array
    sin: jax.Array
    patch: tuple[jax.Array, jax.Array] | None
    place: jax.Array
    caches: tuple[Any, Any] | None
