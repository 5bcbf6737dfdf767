"""What a few tokens of a chunk read where its patch was formed, and what the same queries read elsewhere."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kamera_jax import rope
from kamera_jax.kv import KV, Factors, KVSpec, Sketch, SketchSpec, WindowState
from kamera_jax.patch.fitting import apply
from kamera_jax.transfer import position_of


def take(
    queries: Float[Array, "L T N D"],
    kv: KV,
    factors: Factors,
    positions: Float[Array, "A T"],
    length: Int[Array, ""] | int,
    rot: Float[Array, "L S Fr"],
    free: Float[Array, "L S Ff"],
    seen: Bool[Array, " S"],
    base: Float[Array, ""],
    *,
    which: SketchSpec,
    spec: KVSpec,
    bias: Float[Array, " S"] | None = None,
    counts: Float[Array, " T"] | None = None,
) -> Sketch:
    """A sketch of a chunk: in every layer the tokens whose queries are furthest apart, and what these read; vmap-safe.

    Each next token is the one whose query is furthest from all that are kept, so that no query is far from a kept one.
    What they read is what `reread` gives on the context that the patch was formed on, with the chunk as its patch makes
    it: there nothing has changed, whatever the patch leaves out.

    Args:
        queries: of the forward that the patch was formed of, as `kamera_jax.backbone.Output` has them.
        kv: the chunk's, canonical.
        factors: its patch.
        positions: its local positions.
        length: valid tokens; of a chunk with fewer than ``which.tokens`` some are kept more than once.
        rot, free: all layers of the context that it was formed on, keys rotated.
        seen: slots that hold a token.
        base: the position the chunk comes to there.
        which: what to keep.
        spec: what the KV is.
        bias, counts: see `reread`.

    Raises:
        ValueError: there is no such layer.
    """
    if max(which.layers) >= queries.shape[0]:
        raise ValueError(f"{which} names a layer past the model's {queries.shape[0]}")
    here = np.asarray(which.layers)
    asked = queries[here]
    kept = jax.vmap(lambda rows: _apart(rows.reshape(rows.shape[0], -1), length, which.tokens))(asked)
    asked = jax.vmap(lambda rows, tokens: rows[tokens])(asked, kept).astype(kv.rot.dtype)
    nothing = jnp.zeros((*asked.shape[:3], 0), kv.rot.dtype)
    sketch = Sketch(asked, nothing, kept, which)
    there = (rot[here], free[here], seen, base)
    outputs, _ = reread(sketch, kv, factors, positions, *there, spec=spec, bias=bias, counts=counts)
    return replace(sketch, outputs=outputs.astype(kv.rot.dtype))


@partial(jax.jit, static_argnames=("which", "spec"))
def take_jit(
    queries: jax.Array,
    kv: KV,
    factors: Factors,
    positions: jax.Array,
    state: WindowState,
    numbers: jax.Array,
    counts: jax.Array | None = None,
    *,
    which: SketchSpec,
    spec: KVSpec,
) -> Sketch:
    """`take` on a window's state, with the numbers that form the patch: a base, then the length."""
    at = position_of(numbers)
    context = (state.rot, state.free, state.valid)
    weighed = {"bias": state.bias, "counts": counts}
    return take(queries, kv, factors, positions, numbers[1], *context, at, which=which, spec=spec, **weighed)


def _apart(rows: Float[Array, "T F"], length: Int[Array, ""] | int, count: int) -> Int[Array, " K"]:
    """The first is the furthest from zero, each next one the furthest from all before."""
    rows = rows.astype(jnp.float32)

    def apart(row: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(rows - row[None]), axis=-1)

    def furthest(distance: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.where(jnp.arange(len(rows), dtype=jnp.int32) < length, distance, -1.0)).astype(jnp.int32)

    def keep(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, distance = state
        chosen = furthest(distance)
        return kept.at[i].set(chosen), jnp.minimum(distance, apart(rows[chosen]))

    first = furthest(apart(jnp.zeros_like(rows[0])))
    start = (jnp.zeros(count, jnp.int32).at[0].set(first), apart(rows[first]))
    return jax.lax.fori_loop(1, count, keep, start)[0]


def reread(
    sketch: Sketch,
    kv: KV,
    factors: Factors,
    positions: Float[Array, "A T"],
    rot: Float[Array, "l S Fr"],
    free: Float[Array, "l S Ff"],
    seen: Bool[Array, " S"],
    base: Float[Array, ""],
    *,
    spec: KVSpec,
    bias: Float[Array, " S"] | None = None,
    counts: Float[Array, " T"] | None = None,
) -> tuple[Float[Array, "l K N Dv"], Float[Array, " S"]]:
    """What the sketch's queries read in a context, their own chunk with its patch included; vmap-safe.

    Args:
        sketch: of the chunk.
        kv: the chunk's, canonical.
        factors: its patch.
        positions: its local positions.
        rot, free: the sketch's layers of the context, keys rotated.
        seen: slots that hold a token.
        base: the position the chunk comes to.
        spec: what the KV is.
        bias: what is added to the scores of each slot; None for 0.
        counts: how many tokens each row of the chunk stands for; None for one each.

    Returns:
        Attention outputs, f32, and the share of attention each slot received in the first of the layers, averaged over
        tokens and heads.
    """
    here = np.asarray(sketch.spec.layers)
    own = apply(*jax.tree.map(lambda leaf: leaf[here], (kv, factors)))
    positions = positions + base
    weighed = None
    if bias is not None or counts is not None:
        context = jnp.zeros(seen.shape, jnp.float32) if bias is None else bias
        own_rows = positions.shape[1]
        rows = jnp.zeros(own_rows) if counts is None else jnp.log(jnp.where(counts > 0, counts, 1.0))
        weighed = jnp.concatenate([context, rows])
    read = jax.vmap(partial(_read, positions=positions, seen=seen, bias=weighed, spec=spec))
    layers = jnp.asarray(here, jnp.int32)
    outputs, weights = read(layers, sketch.queries, sketch.tokens, own.rot, own.free, rot, free)
    return outputs, weights[0]


def _read(
    layer: jax.Array,
    queries: jax.Array,
    tokens: jax.Array,
    own_rot: jax.Array,
    own_free: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    *,
    positions: jax.Array,
    seen: jax.Array,
    bias: jax.Array | None,
    spec: KVSpec,
) -> tuple[jax.Array, jax.Array]:
    """One layer of `reread`."""
    rotated = rope.rotate(own_rot.reshape(positions.shape[1], spec.heads, -1), positions, spec.rope, layer)
    keys = jnp.concatenate([rot, rotated.reshape(own_rot.shape)]).astype(jnp.float32)
    values = jnp.concatenate([free, own_free]).astype(jnp.float32)
    keys, values = (x.reshape(x.shape[0], spec.heads, -1) for x in (keys, values))
    queries = queries.astype(jnp.float32)
    still, turned = jnp.split(queries, [queries.shape[-1] - spec.rope.head_dim], axis=-1)
    if still.shape[-1]:  # absorbed: the latent is key and value both
        keys = jnp.concatenate([values, keys], axis=-1)
    queries = jnp.concatenate([still, rope.rotate(turned, positions[:, tokens], spec.rope, layer)], axis=-1)
    groups = np.arange(queries.shape[1]) * spec.heads // queries.shape[1]
    scores = jnp.einsum("knd,snd->kns", queries, keys[:, groups], precision="highest")
    if bias is not None:
        scores = scores + bias[None, None, :]
    context = jnp.broadcast_to(seen[None], (len(queries), len(seen)))
    own_past = jnp.arange(positions.shape[1], dtype=jnp.int32)[None, :] <= tokens[:, None]
    mask = jnp.concatenate([context, own_past], axis=-1)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    outputs = jnp.einsum("kns,snd->knd", weights, values[:, groups], precision="highest")
    return outputs, weights[..., : len(seen)].mean((0, 1))


def changes(then: Float[Array, "l K N Dv"], now: Float[Array, "l K N Dv"]) -> Float[Array, " l"]:
    """How far attention outputs have moved in each layer; see `Staleness.change`."""
    now = now.astype(then.dtype).astype(jnp.float32)  # as what is kept was rounded
    then = then.astype(jnp.float32)
    moved = jnp.sqrt(jnp.sum(jnp.square(now - then), axis=(2, 3)))
    return moved.max(axis=1) / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(then), axis=(2, 3)), axis=1))


@partial(jax.jit, static_argnames="spec")
def change_jit(then: jax.Array, now: jax.Array, *, spec: SketchSpec) -> jax.Array:
    """The largest of the layers' changes, weighted."""
    return (changes(then, now) * jnp.asarray(spec.weights, jnp.float32)).max()


reread_jit = partial(jax.jit, static_argnames="spec")(reread)
