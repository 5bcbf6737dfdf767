"""What one grid step of chunk_attention on TPU works on, and whether it fits VMEM."""

from dataclasses import dataclass

from jax.experimental import pallas as pl

from pallas_kernels.chunk_attention.call import Heads
from pallas_kernels.relocate_patch.chunk import PairLayout
from pallas_kernels.relocate_patch.limits import LANES, transposed

VMEM = 12 << 20
"""Bytes a step may take: Mosaic allows 16 MiB by default, and wants some for itself."""


@dataclass(frozen=True)
class Tiles:
    """What one grid step works on.

    Attributes:
        rows: queries of one KV head, over query tokens and the heads that share it.
        tokens: of a chunk.
        heads: KV heads.
        absorb: whether the patch of what does not rotate goes into the products, Σp(v + uᵀw) = Σp·v + (Σp·u)w, and
            not into each tile of it.
    """

    rows: int
    tokens: int
    heads: int
    absorb: bool


@dataclass(frozen=True)
class Plan:
    """What is static in a kernel.

    Attributes:
        heads, scale, rope_scale, layout: of the call.
        tiles: how a step is cut.
        rows: queries of one KV head, over query tokens and the heads that share it.
        chunks: C.
        tokens: T.
        rank: m; 0 without a patch.
        scaled: whether keys and values are int8, with scales.
    """

    heads: Heads
    scale: float
    rope_scale: float
    layout: PairLayout
    tiles: Tiles
    rows: int
    chunks: int
    tokens: int
    rank: int
    scaled: bool = False

    @property
    def keys_transposed(self) -> bool:
        """Whether tokens are the last axis of a block of keys."""
        return tokens_minor(self.tokens, self.heads.groups * self.heads.rotated)

    @property
    def values_transposed(self) -> bool:
        """Whether tokens are the last axis of a block of values."""
        return tokens_minor(self.tokens, self.heads.groups * self.heads.value)

    @property
    def key_width(self) -> int:
        """Features of a block of keys."""
        return self.tiles.heads * self.heads.rotated

    @property
    def value_width(self) -> int:
        """Features of a block of values."""
        return self.tiles.heads * self.heads.value

    @property
    def factors(self) -> int:
        """Blocks of a patch: u, and v in one block or, where heads are split, one of the keys and one of the values."""
        if not self.rank:
            return 0
        return 2 if self.tiles.heads == self.heads.groups else 3

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Steps over heads, rows, chunks and tokens; the batch comes first."""
        return (
            self.heads.groups // self.tiles.heads,
            pl.cdiv(self.rows, self.tiles.rows),
            self.chunks,
            pl.cdiv(self.tokens, self.tiles.tokens),
        )


def choose_tiles(heads: Heads, rows: int, tokens: int, rank: int, itemsize: int) -> Tiles:
    """Tiles for ``rows`` queries of each KV head, chunks of ``tokens`` and numbers of ``itemsize`` bytes.

    Absorbing takes ``rows * rank`` products a token, twice for a latent, which is key and value; adding takes
    ``value * rank`` and a rounding of every value. Rows share the making of a tile of keys: as many as fit, up to 1024.
    """
    absorb = rank > 0 and rows * (2 if heads.latent else 1) <= heads.value
    row_tile = _up(rows, 32 // itemsize) if rows <= 1024 else 1024
    counts = [count for count in range(min(heads.groups, 8), 0, -1) if _splits(heads, count)] or [heads.groups]
    while True:
        for limit in (512, 256, 128):
            steps = pl.cdiv(tokens, limit)
            token_tile = tokens if steps == 1 else _up(pl.cdiv(tokens, steps), LANES)
            for count in counts:
                tiles = Tiles(row_tile, token_tile, count, absorb)
                if vmem(tiles, heads, rank, itemsize) <= VMEM:
                    return tiles
        if row_tile <= LANES:
            return tiles
        row_tile = _up(row_tile // 2, LANES)


def _up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def _splits(heads: Heads, count: int) -> bool:
    """Whether a step may take ``count`` KV heads: all of them, or whole lanes, alike in keys and values."""
    whole_lanes = heads.rotated == heads.value and count * heads.rotated % LANES == 0
    return heads.groups % count == 0 and (count == heads.groups or whole_lanes)


def vmem(tiles: Tiles, heads: Heads, rank: int, itemsize: int) -> int:
    """Bytes of a step: blocks twice, since the next are fetched meanwhile, scratch, and the larger temporaries."""
    rot, free = (_up(tiles.heads * width, LANES) for width in (heads.rotated, heads.value))
    width = _up(heads.rotated + (heads.value if heads.latent else 0), LANES)
    rows = tiles.heads * tiles.rows
    tokens = _up(tiles.tokens, LANES)
    value = _up(heads.value, LANES)
    blocks = tokens * (rot + free) + rows * (width + value) + _up(rank, 32 // itemsize) * (tokens + rot + free)
    scratch = rows * (value + 2 * LANES)
    temporaries = 2 * tiles.rows * tokens + 2 * rot * tokens + (0 if tiles.absorb else value * tokens)
    return 2 * (blocks * itemsize + rows * LANES * 4) + 4 * (scratch + temporaries) + tiles.rows * tokens * itemsize


def tokens_minor(tokens: int, width: int) -> bool:
    """Whether XLA lays [C, T, width] out with the tokens innermost, so that [C, width, T] is the same memory."""
    return transposed(width) and tokens % LANES == 0
