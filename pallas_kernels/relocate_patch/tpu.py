"""relocate_patch on TPU, ``"pallas_tpu"``: one pass over the chunk, layers innermost so the tables are read once."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.limits import LANES, transposed
from pallas_kernels.relocate_patch.reference import PairLayout

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
        head_dim, rotary_dim, layout: of the rotation.
        period: lanes rotated at once, whole heads and whole registers.
        rot_transposed, free_transposed: whether the features lie before the tokens.
        interpret: as `pallas_call` takes it.
    """

    tiles: Tiles
    head_dim: int
    rotary_dim: int
    layout: PairLayout
    period: int
    rot_transposed: bool
    free_transposed: bool
    interpret: Any = False


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


def total_tokens(plan: Plan, rot: Any) -> int:
    """Tokens of the chunk, from rot as laid out."""
    return rot.shape[3 if plan.rot_transposed else 2]


def traffic(plan: Plan, rot: Any, free: Any, u: Any, v: Any, batch: int = 1) -> int:
    """Bytes the blocks move between HBM and VMEM, v once for each block of tokens."""
    layers = rot.shape[1]
    tokens = total_tokens(plan, rot)
    tables = 8 * plan.period * tokens
    per_layer = sum(2 * array.size // (array.shape[0] * layers) * array.dtype.itemsize for array in (rot, free))
    if u is not None:
        per_layer += u.shape[2] * tokens * u.dtype.itemsize
        per_layer += pl.cdiv(tokens, plan.tiles.tokens) * v.shape[2] * v.shape[3] * v.dtype.itemsize
    return batch * (tables + layers * per_layer)


def cost(plan: Plan, rot: Any, free: Any, u: Any, v: Any, batch: int) -> pl.CostEstimate:
    """What to tell XLA's scheduler."""
    elements = batch * (rot.size // rot.shape[0] + free.size // free.shape[0])
    rank = 0 if u is None else u.shape[2]
    return pl.CostEstimate(
        flops=(2 * rank + 6) * elements, transcendentals=0, bytes_accessed=traffic(plan, rot, free, u, v, batch)
    )


def swap(x: jax.Array, plan: Plan, axis: int) -> jax.Array:
    """The other member of every rotated pair along ``axis``, which holds whole heads; zero where nothing rotates."""
    shift = plan.rotary_dim // 2 if plan.layout == "half" else 1
    width = x.shape[axis]
    if 2 * shift == width:
        return pltpu.roll(x, shift, axis)
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    in_head = jax.lax.rem(place, plan.head_dim)
    first = jax.lax.rem(in_head, 2 * shift) < shift
    swapped = jnp.where(first, pltpu.roll(x, width - shift, axis), pltpu.roll(x, shift, axis))
    return swapped if plan.rotary_dim == plan.head_dim else jnp.where(in_head < plan.rotary_dim, swapped, 0.0)


def patched(x: jax.Array, u: Any, v: Any, columns: slice, rank: jax.Array, flip: bool) -> jax.Array:
    """``x + (Uᵀ V)[:, columns]`` (transposed if ``flip``) in f32; components at or past ``rank`` count as zero."""
    step = min(u.shape[0], STEP)
    exact = u.dtype == v.dtype == jnp.bfloat16  # a product of two bf16 is exact in the f32 it is summed in

    def add(index: jax.Array | int, total: jax.Array) -> jax.Array:
        rows = pl.ds(index * step, step)
        component = jax.lax.broadcasted_iota(jnp.int32, (step, 1), 0) + index * step

        def read(values: jax.Array) -> jax.Array:
            kept = jnp.where(component < rank, values.astype(jnp.float32), 0.0)
            return kept.astype(jnp.bfloat16) if exact else kept

        left = read(u[rows, :])
        right = read(v[rows, columns])
        return total + jax.lax.dot_general(
            right if flip else left,
            left if flip else right,
            (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.DEFAULT if exact else jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    if u.shape[0] == step:
        return add(0, x)
    return jax.lax.fori_loop(0, pl.cdiv(rank, step), add, x)


def tile(
    plan: Plan,
    cos: Any,
    sin: Any,
    rot: Any,
    free: Any,
    patch: tuple[Any, ...] | None,
    rank: jax.Array | None,
    put_rot: Callable[[slice, jax.Array], None],
    put_free: Callable[[slice, jax.Array], None],
) -> None:
    """Rotate and patch a block, giving f32 values a register's width (or a head's height) of features at a time."""

    def run(with_patch: bool) -> None:
        def values(block: Any, features: slice, flip: bool, part: int) -> jax.Array:
            x = block[features, :] if flip else block[:, features]
            x = x.astype(jnp.float32)
            if not with_patch or patch is None or rank is None:
                return x
            u, *v = patch
            # One v holds the columns of rot and then those of free; where blocks can be cut, each has its own.
            offset = rot.shape[0 if plan.rot_transposed else 1] if part and len(v) == 1 else 0
            columns = slice(features.start + offset, features.stop + offset)
            return patched(x, u, v[part if len(v) == 2 else 0], columns, rank, flip)

        flip = plan.rot_transposed
        width = plan.head_dim if flip else plan.period
        for start in range(0, rot.shape[0 if flip else 1], width):
            features = slice(start, start + width)
            x = values(rot, features, flip, 0)
            put_rot(features, x * cos[...] + swap(x, plan, 0 if flip else 1) * sin[...])
        flip = plan.free_transposed
        size = free.shape[0 if plan.free_transposed else 1]
        for start in range(0, size, LANES):
            features = slice(start, min(start + LANES, size))
            put_free(features, values(free, features, flip, 1))

    if patch is None or rank is None:
        return run(False)
    pl.when(rank > 0)(functools.partial(run, True))
    pl.when(rank <= 0)(functools.partial(run, False))


def masked(x: jax.Array, valid: jax.Array, flip: bool) -> jax.Array:
    """x with zeros at tokens from ``valid`` on."""
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1 if flip else 0) < valid, x, 0.0)


def _kernel(
    plan: Plan, patched_call: bool, length: Any, ranks: Any, cos: Any, sin: Any, rot: Any, free: Any, *refs: Any
):
    *patch, new_rot, new_free = refs
    batch = pl.program_id(0)
    index = pl.program_id(1)
    layer = pl.program_id(2)
    valid = length[batch] - index * plan.tiles.tokens

    def put(out: Any, flip: bool) -> Callable[[slice, jax.Array], None]:
        def store(features: slice, x: jax.Array) -> None:
            out[(features, slice(None)) if flip else (slice(None), features)] = masked(x, valid, flip).astype(out.dtype)

        return store

    @pl.when(valid > 0)
    def _():
        rank = ranks[batch * pl.num_programs(2) + layer] if patched_call else None
        tile(
            plan, cos, sin, rot, free, tuple(patch) or None, rank,
            put(new_rot, plan.rot_transposed), put(new_free, plan.free_transposed),
        )  # fmt: skip

    @pl.when(valid <= 0)
    def _():
        new_rot[...] = jnp.zeros_like(new_rot)
        new_free[...] = jnp.zeros_like(new_free)


def in_specs(plan: Plan, cos, sin, rot, free, u, v) -> tuple[list[pl.BlockSpec], list[jax.Array]]:
    """Blocks and operands on the grid (batch, tokens, layer, group), the scalars being (length, ranks, …).

    Blocks of tokens past the length, and factors of an unpatched layer, name a block that is at hand or soon needed.
    """
    tokens = plan.tiles.tokens
    groups = plan.tiles.groups

    def spec(array: jax.Array, size: tuple[int, int], place: Callable[..., Any], factor: bool = False) -> pl.BlockSpec:
        shared = array.shape[0] == 1
        layered = array.ndim == 4

        def index_map(b, i, layer, h, length, ranks, *_):
            block = jnp.minimum(i, jax.lax.div(jnp.maximum(length[b] - 1, 0), tokens))
            if factor:
                layers = array.shape[1]
                layer = jnp.where(ranks[b * layers + layer] > 0, layer, jnp.minimum(layer + 1, layers - 1))
            return (0 if shared else b, *([layer] if layered else []), *place(block, h))

        return pl.BlockSpec((pl.Squeezed(),) * (array.ndim - 2) + size, index_map)

    def rows(array: jax.Array, flip: bool) -> pl.BlockSpec:
        if flip:
            return spec(array, (array.shape[-2], tokens), lambda block, h: (0, block))
        if array.ndim == 3:
            return spec(array, (tokens, array.shape[-1]), lambda block, h: (block, 0))
        return spec(array, (tokens, array.shape[-1] // groups), lambda block, h: (block, h))

    specs = [rows(cos, plan.rot_transposed), rows(sin, plan.rot_transposed)]
    specs += [rows(rot, plan.rot_transposed), rows(free, plan.free_transposed)]
    if u is None:
        return specs, [cos, sin, rot, free]
    rank = u.shape[2]
    width = v.shape[3]
    specs.append(spec(u, (rank, tokens), lambda block, h: (0, block), factor=True))
    if rot.shape[-1] == free.shape[-1] and not (plan.rot_transposed or plan.free_transposed):
        size = (rank, width // (2 * groups))
        specs.append(spec(v, size, lambda block, h: (0, h), factor=True))
        specs.append(spec(v, size, lambda block, h: (0, h + groups), factor=True))
        return specs, [cos, sin, rot, free, u, v, v]
    specs.append(spec(v, (rank, width), lambda block, h: (0, 0), factor=True))
    return specs, [cos, sin, rot, free, u, v]


def varying(shape: tuple[int, ...], like: jax.Array, operands: list[jax.Array]) -> jax.ShapeDtypeStruct:
    """The type of an output, varying over the mesh axes (of `shard_map`) that any operand varies over."""
    axes = [jax.typeof(x).manual_axis_type for x in operands]
    union = frozenset().union(*(x.varying for x in axes))
    return jax.ShapeDtypeStruct(shape, like.dtype, manual_axis_type=axes[0].update(varying=union) if union else None)


def _relocate(plan: Plan, length, ranks, cos, sin, rot, free, u, v):
    batch = length.shape[0]
    groups = plan.tiles.groups
    tokens = plan.tiles.tokens
    specs, operands = in_specs(plan, cos, sin, rot, free, u, v)

    def out(array: jax.Array, flip: bool) -> pl.BlockSpec:
        size = (array.shape[2], tokens) if flip else (tokens, array.shape[3] // groups)
        return pl.BlockSpec(
            (pl.Squeezed(), pl.Squeezed(), *size),
            lambda b, i, layer, h, *_: (b, layer, 0, i) if flip else (b, layer, i, h),
        )

    return pl.pallas_call(
        functools.partial(_kernel, plan, u is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, pl.cdiv(total_tokens(plan, rot), tokens), rot.shape[1], groups),
            in_specs=specs,
            out_specs=[out(rot, plan.rot_transposed), out(free, plan.free_transposed)],
        ),
        out_shape=[varying((batch, *array.shape[1:]), array, [length, *operands]) for array in (rot, free)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        cost_estimate=cost(plan, rot, free, u, v, batch),
        interpret=plan.interpret,
        name="relocate_patch",
    )(length, ranks.reshape(-1), *operands)


def batched(call: Callable[..., Any], owned: tuple[int, ...] = ()) -> Callable[..., Any]:
    """A call over arrays with a leading batch, made to fold what `jax.vmap` adds into that batch.

    Pallas itself turns a batch of calls with scalars of their own into a loop. An operand whose batch is one is shared
    by all; those at the positions ``owned`` are repeated.
    """
    folded = custom_vmap(call)

    @folded.def_vmap
    def _(size, in_batched, *operands):
        pairs = [(x, bool(is_batched)) for x, is_batched in zip(operands, in_batched, strict=True)]
        inner = max(x.shape[1 if is_batched else 0] for x, is_batched in pairs if x is not None)

        def fold(place: int, x: jax.Array | None, is_batched: bool) -> jax.Array | None:
            if x is None or (not is_batched and x.shape[0] == 1 and place not in owned):
                return x
            x = x if is_batched else x[None]
            return jnp.broadcast_to(x, (size, inner, *x.shape[2:])).reshape(size * inner, *x.shape[2:])

        out = folded(*(fold(place, *pair) for place, pair in enumerate(pairs)))
        out = jax.tree.map(lambda x: x.reshape(size, inner, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return folded


SCALARS = (0, 1)
"""Positions of length and ranks among the operands: one row per batch row."""


def plan_call(rot, free, cos, u, *, rotary_dim, layout, interpret=False, tiles=None, multiple=LANES) -> Plan:
    """What is static in a call on [L, T, F] arrays."""
    rank = 0 if u is None else u.shape[1]
    width = rot.shape[-1]
    itemsize = max(rot.dtype.itemsize, free.dtype.itemsize)
    tiles = tiles or choose_tiles(rot.shape[1], width, free.shape[-1], rank, cos.shape[-1], itemsize, multiple)
    return Plan(
        tiles, cos.shape[-1], rotary_dim, layout, period(cos.shape[-1], width), transposed(width),
        transposed(free.shape[-1]), interpret,
    )  # fmt: skip


def laid_out(plan: Plan, cos, sin, rot, free, u, v, ranks, length):
    """The operands as `_relocate` takes them: a batch of one, the features where the plan wants them."""
    if plan.rot_transposed:
        rot, cos, sin = (jnp.swapaxes(x, -1, -2) for x in (rot, cos, sin))
    elif plan.period > plan.head_dim:
        cos, sin = (jnp.tile(x, (1, plan.period // plan.head_dim)) for x in (cos, sin))
    if plan.free_transposed:
        free = jnp.swapaxes(free, -1, -2)
    if u is not None:
        multiple = COMPONENTS if u.shape[1] <= STEP else STEP
        missing = -u.shape[1] % multiple
        if missing:
            u, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (u, v))
        u = u[None]
        v = v[None]
    length = jnp.minimum(length, total_tokens(plan, rot[None]))[None]
    return length, length if ranks is None else ranks[None], cos[None], sin[None], rot[None], free[None], u, v


def relocate_patch_tpu(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    length: jax.Array,
    *,
    rotary_dim: int,
    layout: PairLayout,
    interpret: Any = False,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`; every argument is already checked."""
    plan = plan_call(rot, free, cos, u, rotary_dim=rotary_dim, layout=layout, interpret=interpret, tiles=tiles)
    call = batched(functools.partial(_relocate, plan), SCALARS)
    new_rot, new_free = (x[0] for x in call(*laid_out(plan, cos, sin, rot, free, u, v, ranks, length)))
    return (
        jnp.swapaxes(new_rot, -1, -2) if plan.rot_transposed else new_rot,
        jnp.swapaxes(new_free, -1, -2) if plan.free_transposed else new_free,
    )
