"""What a patch was formed on, and what its chunk would read in another context: no forward, attention in a few layers.

A patch is a function of what the chunk's tokens read while it was formed. So the patch keeps a sketch: the queries of a
few tokens in some layers, and what attention gave them. The same queries over the present context, whose keys and
values the window has, show what they would be given now, be a chunk deleted, inserted, edited or moved. How far the two
are apart is the patch's staleness; `kamera_jax.calibration` turns it into nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kamera_jax import patch as patches
from kamera_jax import rope
from kamera_jax.chunk import Chunk, Match, Patch, describe
from kamera_jax.errors import MissingSketchError
from kamera_jax.kv import KV, Factors, KVSpec, Sketch, SketchSpec
from kamera_jax.reuse import write_jit
from kamera_jax.window import Window, check_chunk, check_pair, check_place


@dataclass(frozen=True)
class Staleness:
    """How a present context differs, for one chunk, from what its patch was formed on.

    Attributes:
        change: how far the attention output of the token it changed most for has moved, against the root mean square
            of the outputs the sketch keeps of its layer, times the layer's weight; 0 is unchanged. Without a unit.
        match: how the chunks before it compare with the antecedents.
        deleted, inserted: keys of antecedents that are gone, of chunks that were not there.
        mass_then: attention the sketch's first layer gave to each antecedent while the patch was formed, by key.
        mass_now: attention that the sketch's tokens give there to each chunk before it, by key.
    """

    change: float
    match: Match
    deleted: tuple[str, ...]
    inserted: tuple[str, ...]
    mass_then: dict[str, float]
    mass_now: dict[str, float]

    @property
    def reason(self) -> str:
        """What has changed, in words; keys by their first 12 letters."""
        moved = ["its antecedents stand in another order"] if self.match is Match.PERMUTED else []
        deleted = [f"antecedent {key[:12]} is gone ({self.mass_then[key]:.0%} of attention)" for key in self.deleted]
        inserted = [f"chunk {key[:12]} is new ({self.mass_now[key]:.0%} of attention)" for key in self.inserted]
        return "; ".join([*deleted, *inserted, *moved]) or "its antecedents are those it was formed on"


def staleness(window: Window, chunk: Chunk, patch: Patch, at: int | None = None) -> Staleness:
    """How much a patch's chunk would read otherwise in the present context than when the patch was formed.

    Costs the attention of the sketch's tokens in its layers: no forward, nothing is prefilled. It cannot see a
    change that reaches the chunk only through what its neighbours' own KV should have become and has not, nor one that
    other layers or tokens than the sketch's would read.

    Args:
        window: the context as it stands.
        chunk: what is to be put there.
        patch: its patch, formed with a sketch.
        at: the place it comes to, or stands at; the window's end by default.

    Raises:
        MissingSketchError: the patch keeps no sketch.
        ModelMismatchError, PreambleMismatchError, PatchMismatchError: they do not belong together.
        ValueError: ``at`` is no place in the window.
    """
    check_chunk(window, chunk)
    check_pair(chunk, patch)
    at = check_place(window, at)
    if patch.sketch is None:
        raise MissingSketchError(
            f"the patch of {describe(chunk)} keeps no sketch, so what it would read now cannot be compared; form "
            "it with form_patch(…, sketch=…), as the model's calibration has it"
        )
    before = window.entries[:at]
    last = before[-1] if before else window.preamble
    rot, free, seen = layers_before(window, at, patch.sketch.spec.layers)
    outputs, mass = reread_jit(
        patch.sketch,
        chunk.kv,
        patch.factors,
        chunk.positions,
        rot,
        free,
        seen,
        jnp.float32(last.base + last.chunk.advance),
        spec=window.spec,
    )
    received = np.asarray(mass)
    mass_now: dict[str, float] = {}
    for entry in before:
        share = float(received[entry.slot : entry.slot + entry.chunk.length].sum())
        mass_now[entry.chunk.key] = mass_now.get(entry.chunk.key, 0.0) + share
    mass_then: dict[str, float] = {}
    for key, share in zip(patch.antecedents, np.asarray(patch.mass[patch.sketch.spec.layers[0]]), strict=False):
        mass_then[key] = mass_then.get(key, 0.0) + float(share)
    return Staleness(
        change=float(change_jit(patch.sketch.outputs, outputs, spec=patch.sketch.spec)),
        match=patch.match(window.keys[:at]),
        deleted=tuple(key for key in mass_then if key not in mass_now),
        inserted=tuple(key for key in mass_now if key not in mass_then),
        mass_then=mass_then,
        mass_now=mass_now,
    )


def layers_before(
    window: Window, at: int, layers: Sequence[int]
) -> tuple[Float[Array, "l S Fr"], Float[Array, "l S Ff"], Bool[Array, " S"]]:
    """Layers of what the chunk at place ``at`` sees: rotated keys, values, and which slots hold them."""
    before, here = window.entries[:at], np.asarray(layers)
    last = before[-1] if before else window.preamble
    state = window.state
    if window.mode == "materialise":
        seen = state.valid & (jnp.arange(window.capacity) < last.slot + last.chunk.length)
        return state.rot[here], state.free[here], seen
    state = window.spec.empty_state(window.capacity)
    state = replace(state, rot=state.rot[here], free=state.free[here])
    for entry in (window.preamble, *before):
        kv, factors = jax.tree.map(
            lambda leaf: leaf[here], (entry.chunk.kv, None if entry.patch is None else entry.patch.factors)
        )
        positions = entry.chunk.positions + jnp.float32(entry.base)
        state = write_jit(state, entry.slot, kv, factors, positions, entry.chunk.length, spec=window.spec.rope)
    return state.rot, state.free, state.valid


def take(
    queries: Float[Array, "L T N D"],
    attended: Float[Array, "L T N Dv"],
    length: Int[Array, ""] | int,
    *,
    spec: SketchSpec,
) -> Sketch:
    """A sketch of what a forward collected: in every layer the tokens whose queries are furthest apart.

    Each next token is the one whose query is furthest from all that are kept, so that no query is far from a kept one.

    Args:
        queries, attended: as `kamera_jax.backbone.Output` has them.
        length: valid tokens; of a chunk with fewer than ``spec.tokens`` some are kept more than once.
        spec: what to keep.

    Raises:
        ValueError: there is no such layer.
    """
    if max(spec.layers) >= queries.shape[0]:
        raise ValueError(f"{spec} names a layer past the model's {queries.shape[0]}")
    here = np.asarray(spec.layers)
    asked, given = queries[here], attended[here]
    kept = jax.vmap(lambda rows: _apart(rows.reshape(rows.shape[0], -1), length, spec.tokens))(asked)
    asked, given = (jax.vmap(lambda rows, which: rows[which])(x, kept) for x in (asked, given))
    return Sketch(asked.astype(attended.dtype), given, kept, spec)


def _apart(rows: Float[Array, "T F"], length: Int[Array, ""] | int, count: int) -> Int[Array, " K"]:
    """The first is the furthest from zero, each next one the furthest from all before."""
    rows = rows.astype(jnp.float32)

    def apart(row: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(rows - row[None]), axis=-1)

    def furthest(distance: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.where(jnp.arange(len(rows)) < length, distance, -1.0)).astype(jnp.int32)

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

    Returns:
        Attention outputs, f32, and the share of attention each slot received in the first of the layers, averaged over
        tokens and heads.
    """
    here = np.asarray(sketch.spec.layers)
    own = patches.apply(*jax.tree.map(lambda leaf: leaf[here], (kv, factors)))
    positions = positions + base
    read = jax.vmap(partial(_read, positions=positions, seen=seen, spec=spec))
    outputs, weights = read(sketch.queries, sketch.tokens, own.rot, own.free, rot, free)
    return outputs, weights[0]


def _read(
    queries: jax.Array,
    tokens: jax.Array,
    own_rot: jax.Array,
    own_free: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    *,
    positions: jax.Array,
    seen: jax.Array,
    spec: KVSpec,
) -> tuple[jax.Array, jax.Array]:
    """One layer of `reread`."""
    rotated = rope.rotate(own_rot.reshape(positions.shape[1], spec.heads, -1), positions, spec.rope)
    keys = jnp.concatenate([rot, rotated.reshape(own_rot.shape)]).astype(jnp.float32)
    values = jnp.concatenate([free, own_free]).astype(jnp.float32)
    keys, values = (x.reshape(x.shape[0], spec.heads, -1) for x in (keys, values))
    queries = queries.astype(jnp.float32)
    still, turned = jnp.split(queries, [queries.shape[-1] - spec.rope.head_dim], axis=-1)
    if still.shape[-1]:  # absorbed: the latent is key and value both
        keys = jnp.concatenate([values, keys], axis=-1)
    queries = jnp.concatenate([still, rope.rotate(turned, positions[:, tokens], spec.rope)], axis=-1)
    groups = np.arange(queries.shape[1]) * spec.heads // queries.shape[1]
    scores = jnp.einsum("knd,snd->kns", queries, keys[:, groups], precision="highest")
    context = jnp.broadcast_to(seen[None], (len(queries), len(seen)))
    own_past = jnp.arange(positions.shape[1])[None, :] <= tokens[:, None]
    mask = jnp.concatenate([context, own_past], axis=-1)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    outputs = jnp.einsum("kns,snd->knd", weights, values[:, groups], precision="highest")
    return outputs, weights[..., : len(seen)].mean((0, 1))


def changes(then: Float[Array, "l K N Dv"], now: Float[Array, "l K N Dv"]) -> Float[Array, " l"]:
    """How far attention outputs have moved in each layer; see `Staleness.change`."""
    then, now = then.astype(jnp.float32), now.astype(jnp.float32)
    moved = jnp.sqrt(jnp.sum(jnp.square(now - then), axis=(2, 3)))
    return moved.max(axis=1) / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(then), axis=(2, 3)), axis=1))


@partial(jax.jit, static_argnames="spec")
def change_jit(then: jax.Array, now: jax.Array, *, spec: SketchSpec) -> jax.Array:
    """The largest of the layers' changes, weighted."""
    return (changes(then, now) * jnp.asarray(spec.weights)).max()


reread_jit = partial(jax.jit, static_argnames="spec")(reread)
take_jit = partial(jax.jit, static_argnames="spec")(take)
