"""What a patch was formed on, and what its chunk would read in another context: no forward, attention in a few layers.

A patch is a function of what the chunk's tokens read while it was formed. So the patch keeps a sketch: the queries of a
few tokens in some layers, and what attention gave them. The same queries over the present context, whose keys and
values the window has, show what they would be given now, be a chunk deleted, inserted, edited or moved. How far the two
are apart is the patch's staleness; `kamera_jax.guard.calibration` turns it into nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kamera_jax.chunk import Chunk, Match, Patch, describe
from kamera_jax.errors import MissingSketchError
from kamera_jax.handle import columns_of
from kamera_jax.kv import WindowState, bucket_of_slots
from kamera_jax.patch.sketch import change_jit, reread_jit
from kamera_jax.window.checks import check_chunk, check_pair, check_place
from kamera_jax.window.reuse import write_jit
from kamera_jax.window.window import Window


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

    def __repr__(self) -> str:
        return (
            f"<Staleness change={self.change:.3g}, match={self.match.value!r}, {len(self.deleted)} deleted, "
            f"{len(self.inserted)} inserted of {len(self.mass_then)} antecedents and {len(self.mass_now)} chunks>"
        )

    @property
    def reason(self) -> str:
        """What has changed, in words; keys by their first 12 letters."""
        if not (all(self.mass_then) and all(self.mass_now)):
            return "a chunk has no key, so it is not known which of its antecedents are there"
        moved = ["its antecedents stand in another order"] if self.match is Match.PERMUTED else []
        deleted = [f"antecedent {key[:12]} is gone ({self.mass_then[key]:.0%} of attention)" for key in self.deleted]
        inserted = [f"chunk {key[:12]} is new ({self.mass_now[key]:.0%} of attention)" for key in self.inserted]
        return "; ".join([*deleted, *inserted, *moved]) or "its antecedents are those it was formed on"


def staleness(window: Window, chunk: Chunk, patch: Patch, at: int | None = None) -> Staleness:
    """How much a patch's chunk would read otherwise in the present context than when the patch was formed.

    Costs the attention of the sketch's tokens in its layers: no forward, nothing is prefilled. Where the patch is as it
    was formed (`Window.is_as_formed`) nothing is looked at: there the change is 0 by definition. It cannot see a change
    that reaches the chunk only through what its neighbours' own KV should have become and has not, nor one that other
    layers or tokens than the sketch's would read.

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
    mass_then: dict[str, float] = {}
    received = columns_of(patch, "mass")[patch.sketch.spec.layers[0]]
    for key, share in zip(patch.antecedents, received, strict=False):
        mass_then[key] = mass_then.get(key, 0.0) + float(share)
    if window.is_as_formed(chunk, patch, at):
        return Staleness(0.0, patch.match(window.keys[:at]), (), (), mass_then, dict(mass_then))
    before = window.entries[:at]
    last = before[-1] if before else window.preamble
    there = _state_before(window, at, patch.sketch.spec.layers)
    outputs, mass = reread_jit(
        patch.sketch,
        chunk.kv,
        patch.factors,
        chunk.positions,
        there.rot,
        there.free,
        there.valid,
        jnp.float32(last.base + last.chunk.advance),
        spec=window.spec,
        bias=there.bias,
        counts=chunk.counts,
    )
    received = np.asarray(mass)
    mass_now: dict[str, float] = {}
    for entry in before:
        share = float(received[entry.slot : entry.slot + entry.chunk.length].sum())
        mass_now[entry.chunk.key] = mass_now.get(entry.chunk.key, 0.0) + share
    known = all(mass_then) and all(mass_now)  # a chunk without a key may be any
    return Staleness(
        change=float(change_jit(patch.sketch.outputs, outputs, spec=patch.sketch.spec)),
        match=patch.match(window.keys[:at]),
        deleted=tuple(key for key in mass_then if key not in mass_now) if known else (),
        inserted=tuple(key for key in mass_now if key not in mass_then) if known else (),
        mass_then=mass_then,
        mass_now=mass_now,
    )


def layers_before(
    window: Window, at: int, layers: Sequence[int]
) -> tuple[Float[Array, "l S Fr"], Float[Array, "l S Ff"], Bool[Array, " S"]]:
    """Layers of what the chunk at place ``at`` sees: rotated keys, values, and which slots hold them."""
    state = _state_before(window, at, layers)
    return state.rot, state.free, state.valid


def _state_before(window: Window, at: int, layers: Sequence[int]) -> WindowState:
    """The same as a state of so many layers, with what is added to the scores of its slots."""
    before = window.entries[:at]
    here = np.asarray(layers)
    last = before[-1] if before else window.preamble
    state = window.state
    if window.mode == "materialise":
        seen = state.valid & (jnp.arange(state.valid.shape[0], dtype=jnp.int32) < last.slot + last.chunk.length)
        return replace(state, rot=state.rot[here], free=state.free[here], valid=seen, pools=())
    state = window.spec.empty_state(bucket_of_slots(window.capacity))
    state = replace(state, rot=state.rot[here], free=state.free[here])
    for entry in (window.preamble, *before):
        kv, factors = jax.tree.map(
            lambda leaf: leaf[here], (entry.chunk.kv, None if entry.patch is None else entry.patch.factors)
        )
        positions = entry.chunk.positions + jnp.float32(entry.base)
        rows = (kv, factors, positions, entry.chunk.length)
        static = {"spec": window.spec.rope, "placement": window.placement}
        state = write_jit(state, entry.slot, *rows, **static, counts=entry.chunk.counts)
    return state
