"""What the Hopper kernel of chunk_attention is given: what is fixed when it is compiled, and its operands."""

import dataclasses
import math

import jax

from pallas_kernels.relocate_patch.gpu_call import RANKS, ROWS, SHARED_MEMORY

__all__ = ["RANKS", "ROWS", "Operands", "Shape", "stages"]

PIECE = 32
"""Most columns of a head's half that are rotated at once: what fits in a thread's registers beside the sums."""
PART = 64
"""Most columns of values that are multiplied at once, likewise."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is fixed when the kernel is compiled.

    Attributes:
        queries: of a KV head, in multiples of 8.
        head_dim: D.
        value: Dv.
        rank: components of the patch, in `RANKS`; 0 for none.
        scale: factor on the scores.
        rope_scale: factor on cos and sin.
        stages: of the pipeline that loads.
    """

    queries: int
    head_dim: int
    value: int
    rank: int
    scale: float
    rope_scale: float
    stages: int

    @property
    def piece(self) -> int:
        """Columns of a piece of a head; it has as many pieces of first as of second members of pairs."""
        return math.gcd(PIECE, self.head_dim // 2)

    @property
    def pieces(self) -> int:
        """Of a head."""
        return self.head_dim // self.piece

    @property
    def part(self) -> int:
        """Columns of a head's values that are summed at once."""
        return math.gcd(PART, self.value)

    @property
    def parts(self) -> int:
        """Of a head's values."""
        return self.value // self.part

    @property
    def aligned(self) -> int:
        """Columns that swizzles of both sides of the products with values and patches span: they divide the depth."""
        return math.gcd(self.rank, self.piece, self.part)


def stages(head_dim: int, value: int, rank: int) -> int:
    """As many stages as shared memory has room for, at most four, for one block on a multiprocessor.

    Reasoned from sizes; not measured.
    """
    stage = 2 * ROWS * (head_dim + value + rank)
    fixed = 2 * 2 * ROWS * head_dim + 2 * ROWS * ROWS + 2 * rank * (head_dim + value) + 4096
    return min(4, (SHARED_MEMORY - fixed) // stage)


@dataclasses.dataclass(frozen=True)
class Operands:
    """What the kernel is launched on.

    Attributes:
        q: bf16[G, ROWS, D]: a KV head's queries, zero past the last.
        rot: bf16[≥ C, T, G*D]; T is a multiple of ROWS.
        free: bf16[≥ C, T, G*Dv].
        positions: absolute, of the C chunks' tokens, f32[C, A, T].
        frequencies: radians per position of every pair, f32[A, D/2], zero on the axes that do not drive it.
        place: i32[1 + C]: where the C chunks begin, and the valid tokens of each.
        patch: of the C chunks, u [C, m, T] and v [C, m, G*D + G*Dv] in bf16, zero past ranks and lengths; m in
            `RANKS`. None without a patch.
    """

    q: jax.Array
    rot: jax.Array
    free: jax.Array
    positions: jax.Array
    frequencies: jax.Array
    place: jax.Array
    patch: tuple[jax.Array, jax.Array] | None
