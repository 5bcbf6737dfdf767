"""The reuse operator on a window's state: rotate canonical KV into place, patch it, write it, or read it where it lies.

Where windows meet the kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from kamera_jax import rope
from kamera_jax.compress.pooled import PackedPool
from kamera_jax.kv import KV, ChunkPool, Factors, WindowState
from kamera_jax.placement import Placement
from kamera_jax.rope import RopeSpec
from pallas_kernels import chunk_attention, merge_states, relocate_patch, relocate_patch_into
from pallas_kernels.dispatch import Implementation


def relocate(
    kv: KV,
    factors: Factors | None,
    positions: Float[Array, "A T"],
    length: jax.Array | int,
    spec: RopeSpec,
    implementation: Implementation | None = None,
    placement: Placement | None = None,
) -> tuple[Float[Array, "L T Fr"], Float[Array, "L T Ff"]]:
    """KV as attention reads it at absolute ``positions``, one hop from the un-rotated frame.

    Rows past ``length`` are zero. On a mesh every device does it for its own heads (``placement``).
    """
    call = partial(_relocated, spec=spec, implementation=implementation)
    if placement is not None:
        call = _on_each_device(call, placement, kv, kv.rot.shape[-1])
    moved = call(kv, factors, positions, length)
    return moved.rot, moved.free


def _relocated(
    kv: KV,
    factors: Factors | None,
    positions: jax.Array,
    length: jax.Array | int,
    spec: RopeSpec,
    implementation: Implementation | None,
) -> KV:
    call = partial(relocate_patch, length=length, implementation=implementation)
    rot, free = call(**_call(kv, factors, positions, spec))
    still = [layer for layer in spec.unrotated if layer < rot.shape[0]]
    if not still:
        return KV(rot, free)
    # Layers without RoPE once more, by tables that turn nothing.
    here = np.asarray(still)
    kv, factors = jax.tree.map(lambda leaf: leaf[here], (kv, factors))
    kept, _ = call(**_call(kv, factors, positions, spec, still[0]))
    return KV(rot.at[here].set(kept), free)


def _on_each_device(call: Callable[..., KV], placement: Placement, like: KV, rot_dim: int) -> Callable[..., KV]:
    """The same function of arrays that lie on a mesh, each device with its own heads, and no communication.

    Args:
        call: takes KV, then factors, and then anything else.
        placement: where they lie.
        like: KV that lies as the result.
        rot_dim: Fr, of all devices together.
    """

    def here(kv: KV, factors: Factors | None, *others: Any) -> KV:
        return call(kv, _own(factors, placement, rot_dim), *others)

    def run(*arguments: Any) -> KV:
        return placement.on_each_device(here, arguments, placement.specs(arguments), placement.specs(like))

    return run


def _own(factors: Factors | None, placement: Placement, rot_dim: int) -> Factors | None:
    """What patches a device's own features."""
    return None if factors is None else replace(factors, v=placement.own_columns(factors.v, rot_dim))


def _call(
    kv: KV, factors: Factors | None, positions: jax.Array, spec: RopeSpec, layer: int | None = None
) -> dict[str, Any]:
    cos, sin = rope.tables(spec, positions, layer)
    patch = {} if factors is None else _floats(factors, kv.rot.dtype)
    rotation = {"cos": cos, "sin": sin, "rotary_dim": spec.rotary_dim, "layout": spec.layout}
    return {"rot": kv.rot, "free": kv.free, **rotation, **patch}


def _floats(factors: Factors, dtype: Any) -> dict[str, jax.Array]:
    u, v = (factors.u, factors.v) if factors.scale is None else factors.floats(dtype)
    return {"u": u, "v": v, "ranks": factors.ranks}


def write(
    state: WindowState,
    slot: jax.Array | int,
    kv: KV,
    factors: Factors | None,
    positions: Float[Array, "A T"],
    length: jax.Array | int,
    spec: RopeSpec,
    implementation: Implementation | None = None,
    placement: Placement | None = None,
    counts: Float[Array, " T"] | None = None,
) -> WindowState:
    """The state with ``length`` tokens rotated, patched and written from ``slot`` on; other slots keep their values.

    The caller makes sure that ``slot + length`` fits (the padding of the bucket need not) and that the slot is a
    multiple of 16; any slot will do with ``implementation="xla"``. On a mesh every device writes its own heads. With
    ``counts``, of how many tokens each row stands for, the state that comes out has a bias.
    """
    cache = KV(state.rot, state.free)
    call = partial(_written, spec=spec, implementation=implementation)
    if placement is not None:
        call = _on_each_device(call, placement, cache, kv.rot.shape[-1])
    cache = call(kv, factors, positions, cache, slot, length)
    rows = jnp.arange(positions.shape[-1], dtype=jnp.int32)
    slots = jnp.where(rows < length, slot + rows, state.valid.shape[0])  # past the end, where nothing is written
    bias = state.bias
    if bias is None and counts is not None:
        bias = jnp.zeros(state.valid.shape, jnp.float32)
    if bias is not None:  # also where each row is of one token: another chunk's may have stood there
        bias = bias.at[slots].set(log_counts(counts, len(rows)), mode="drop")
    return replace(
        state,
        rot=cache.rot,
        free=cache.free,
        positions=state.positions.at[:, slots].set(positions, mode="drop"),
        valid=state.valid.at[slots].set(True, mode="drop"),
        bias=bias,
    )


def _written(
    kv: KV,
    factors: Factors | None,
    positions: jax.Array,
    cache: KV,
    slot: jax.Array | int,
    length: jax.Array | int,
    spec: RopeSpec,
    implementation: Implementation | None,
) -> KV:
    """The slots of a state; see `write`."""
    layer = None
    if spec.unrotated:
        # The kernel turns all layers alike: those are turned first, each as it should, and then written as they are.
        kv = _relocated(kv, factors, positions, length, spec, implementation)
        factors = None
        layer = spec.unrotated[0]
    call = _call(kv, factors, positions, spec, layer)
    return KV(*relocate_patch_into(cache.rot, cache.free, slot, **call, length=length, implementation=implementation))


def log_counts(counts: Float[Array, " T"] | None, rows: int) -> Float[Array, " T"]:
    """What is added to the scores of rows that stand for so many tokens each; of ``None``, for one each."""
    if counts is None:
        return jnp.zeros(rows, jnp.float32)
    return jnp.log(jnp.where(counts > 0, counts, 1.0)).astype(jnp.float32)  # padding may hold anything


write_jit = jax.jit(write, static_argnames=("spec", "implementation", "placement"))
write_donated = jax.jit(write, static_argnames=("spec", "implementation", "placement"), donate_argnames="state")


def attend_in_place(
    q: Float[Array, "T N D"],
    out: Float[Array, "T N Dv"],
    lse: Float[Array, "T N"],
    pools: Sequence[ChunkPool],
    layer: jax.Array | int,
    scale: float,
    spec: RopeSpec,
    implementation: Implementation | None = None,
    placement: Placement | None = None,
) -> Float[Array, "T N Dv"]:
    """Attention over other keys, joined with attention to every chunk of the pools where it lies.

    Args:
        q: rotated queries; for MLA in the absorbed form [T, N, R + Dr], against [latent | k_pe].
        out: attention over the other keys, normalised over them.
        lse: the log-sum-exp of its scores, f32.
        pools: of the window's state.
        layer: which of the L layers.
        scale: factor on the scores.
        spec: the backbone's RoPE.
        implementation: None picks; a named backend that cannot serve the call raises.
        placement: where the pools lie on a mesh: every device then attends with its own heads.
    """
    attend = partial(_attended, scale=scale, spec=spec, implementation=implementation)
    pools = tuple(pools)
    if placement is None:
        return attend(q, out, lse, pools, layer)
    heads = PartitionSpec(None, placement.of_queries(q.shape[1]) or None)

    def here(q: jax.Array, out: jax.Array, lse: jax.Array, own: tuple[ChunkPool, ...], layer: jax.Array) -> jax.Array:
        return attend(q, out, lse, tuple(_own_part(pool, placement, spec) for pool in own), layer)

    ins = (heads, heads, heads, placement.specs(pools), PartitionSpec())
    return placement.on_each_device(here, (q, out, lse, pools, layer), ins, heads)


def _own_part(pool: ChunkPool, placement: Placement, spec: RopeSpec) -> ChunkPool:
    """A device's pool as it reads it: `v` is of all features there, and unpacking is of its own heads alone."""
    if pool.v is not None:
        pool = replace(pool, v=placement.own_columns(pool.v, placement.heads * spec.head_dim))
    if isinstance(pool.unpack, PackedPool):
        pool = replace(pool, unpack=pool.unpack.of_device(placement))
    return pool


def _attended(
    q: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    pools: Sequence[ChunkPool],
    layer: jax.Array | int,
    scale: float,
    spec: RopeSpec,
    implementation: Implementation | None,
) -> jax.Array:
    inv_freq = jnp.asarray(rope.axis_frequencies(spec))
    read = q
    if spec.unrotated:
        # Frequencies of 0 turn nothing; what is left of cos, its scale, is taken from the queries beforehand.
        turned = spec.turned(layer)
        inv_freq = jnp.where(turned, inv_freq, 0.0)
        scaled = np.zeros(q.shape[-1], bool)
        scaled[q.shape[-1] - spec.head_dim :][: spec.rotary_dim] = True
        divided = (q.astype(jnp.float32) / spec.scale).astype(q.dtype)
        read = jnp.where(jnp.asarray(scaled) & ~turned, divided, q)
    parts = [
        chunk_attention(
            read,
            pool.rot,
            pool.free,
            u=pool.u,
            v=pool.v,
            ranks=pool.ranks,
            packed=pool.packed,
            unpack=pool.unpack,
            layer=layer,
            positions=pool.positions,
            inv_freq=inv_freq,
            lengths=pool.lengths,
            bases=pool.bases,
            scale=scale,
            rope_scale=spec.scale,
            layout=spec.layout,
            bias=pool.bias,
            implementation=implementation,
        )
        for pool in pools
    ]
    outs, lses = zip((out, lse), *parts, strict=True)
    return merge_states(outs, lses)[0]
