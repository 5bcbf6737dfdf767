"""How the TPU kernels of relocate_patch cut their arrays, and what that moves."""

from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.tree_util import register_dataclass

from pallas_kernels.relocate_patch.chunk import Chunk, PairLayout, Patch
from pallas_kernels.relocate_patch.limits import LANES, transposed

COMPONENTS = 8
"""The rank is padded to a multiple of this many components."""
STEP = 128
"""Components a matrix unit takes at once; a layer skips the steps past its rank."""
VMEM = 11 * 2**20
"""Bytes of blocks, both buffers; the compiler needs the rest of the 16 MiB it allows a kernel by default."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its arrays.

    Attributes:
        tokens: tokens of a block.
        groups: parts the features of a layer are cut into.
    """

    tokens: int
    groups: int


@dataclass(frozen=True)
class Plan:
    """What is static in a call.

    Attributes:
        tiles: the cut.
        tokens: tokens of the chunk with its padding, T.
        head_dim, rotary_dim, layout: of the rotation.
        period: lanes rotated at once, whole heads and whole registers.
        rot_transposed, free_transposed: whether the features lie before the tokens.
        interpret: as `pallas_call` takes it.
    """

    tiles: Tiles
    tokens: int
    head_dim: int
    rotary_dim: int
    layout: PairLayout
    period: int
    rot_transposed: bool
    free_transposed: bool
    interpret: Any = False


@no_type_check  # as `Chunk`
@register_dataclass
@dataclass(frozen=True)
class Operands:
    """A chunk as the kernels take it: every array leads with B, or with 1 where the whole batch shares it.

    Attributes:
        length: valid tokens, i32[B].
        cos, sin: tables f32[B, T, period], or [B, D, T] where rot is transposed.
        rot: [B, L, T, Fr], or [B, L, Fr, T] where the plan has it transposed.
        free: [B, L, T, Ff], or [B, L, Ff, T].
        patch: u [B, L, m, T], v [B, L, m, Fr + Ff] and ranks [B, L], m padded; or None.
    """

    length: jax.Array
    cos: jax.Array
    sin: jax.Array
    rot: jax.Array
    free: jax.Array
    patch: Patch | None

    @property
    def layers(self) -> int:
        """Layers, L."""
        return self.rot.shape[1]


def period(head_dim: int, width: int) -> int:
    """Lanes to rotate at once: the fewest whole registers that hold whole heads."""
    return next(p for p in range(LANES, width + 1, LANES) if p % head_dim == 0) if width % LANES == 0 else head_dim


def choose_tiles(
    tokens: int, rot_width: int, free_width: int, rank: int, head_dim: int, itemsize: int, multiple: int = LANES
) -> Tiles:
    """The largest blocks of up to 1024 tokens that fit: v is read again for each, and narrow copies are slow.

    Wide layers are cut into groups of heads first, and into shorter blocks after.
    """
    groups = 1
    step = max(multiple, LANES)
    cuttable = rot_width == free_width and not transposed(rot_width)
    lanes = period(head_dim, rot_width)

    def used(size: int) -> int:
        width = (rot_width + free_width) // groups
        # In and out, the tables and u in f32, each twice: one is worked on, one on its way. v is once per block.
        return size * (4 * width * itemsize + 16 * lanes + 8 * rank) + 8 * rank * width

    while cuttable and used(min(tokens, 1024)) > VMEM and rot_width % (2 * groups * lanes) == 0:
        groups *= 2
    size = 1024
    while size > step and used(min(tokens, size)) > VMEM:
        size //= 2
    return Tiles(min(tokens, size), groups)


def plan_call(chunk: Chunk, *, interpret: Any = False, tiles: Tiles | None = None, multiple: int = LANES) -> Plan:
    """What is static in a call.

    Args:
        chunk: of the call, arrays or their shapes and dtypes.
        interpret: as `pallas_call` takes it.
        tiles: instead of `choose_tiles`.
        multiple: what a block's tokens must be a multiple of: a page.
    """
    rot_width = chunk.rot.shape[-1]
    free_width = chunk.free.shape[-1]
    itemsize = max(chunk.rot.dtype.itemsize, chunk.free.dtype.itemsize)
    return Plan(
        tiles=tiles
        or choose_tiles(chunk.tokens, rot_width, free_width, chunk.rank, chunk.head_dim, itemsize, multiple),
        tokens=chunk.tokens,
        head_dim=chunk.head_dim,
        rotary_dim=chunk.rotary_dim,
        layout=chunk.layout,
        period=period(chunk.head_dim, rot_width),
        rot_transposed=transposed(rot_width),
        free_transposed=transposed(free_width),
        interpret=interpret,
    )


def laid_out(plan: Plan, chunk: Chunk) -> Operands:
    """The operands of a batch of one: features where the plan wants them, the rank padded."""
    rot = chunk.rot
    free = chunk.free
    cos = chunk.cos
    sin = chunk.sin
    if plan.rot_transposed:
        rot, cos, sin = (jnp.swapaxes(x, -1, -2) for x in (rot, cos, sin))
    elif plan.period > plan.head_dim:
        cos, sin = (jnp.tile(x, (1, plan.period // plan.head_dim)) for x in (cos, sin))
    if plan.free_transposed:
        free = jnp.swapaxes(free, -1, -2)
    patch = chunk.patch
    if patch is not None and (missing := -patch.rank % (COMPONENTS if patch.rank <= STEP else STEP)):
        u, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (patch.u, patch.v))
        patch = Patch(u, v, patch.ranks)
    length = jnp.minimum(chunk.length, chunk.tokens)
    return jax.tree.map(lambda x: x[None], Operands(length, cos, sin, rot, free, patch))


def traffic(plan: Plan, operands: Operands, batch: int = 1) -> int:
    """Bytes the blocks move between HBM and VMEM, v once for each block of tokens."""
    layers = operands.rot.shape[1]
    tokens = plan.tokens
    tables = 8 * plan.period * tokens
    per_layer = sum(2 * x.size // (x.shape[0] * layers) * x.dtype.itemsize for x in (operands.rot, operands.free))
    if operands.patch is not None:
        u = operands.patch.u
        v = operands.patch.v
        per_layer += u.shape[2] * tokens * u.dtype.itemsize
        per_layer += pl.cdiv(tokens, plan.tiles.tokens) * v.shape[2] * v.shape[3] * v.dtype.itemsize
    return batch * (tables + layers * per_layer)


def cost(plan: Plan, operands: Operands, batch: int) -> pl.CostEstimate:
    """What XLA's scheduler is to expect of a call."""
    elements = batch * sum(x.size // x.shape[0] for x in (operands.rot, operands.free))
    rank = 0 if operands.patch is None else operands.patch.u.shape[2]
    return pl.CostEstimate(
        flops=(2 * rank + 6) * elements, transcendentals=0, bytes_accessed=traffic(plan, operands, batch)
    )
