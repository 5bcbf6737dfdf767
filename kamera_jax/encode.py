"""Running the model: encode a chunk alone, prefill chunks together, form a patch."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import patch as patches
from kamera_jax.backbone import Backbone, Output
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ModelMismatchError
from kamera_jax.forward import chunk_of, preamble_chunk, run
from kamera_jax.kv import Segment, Sketch, SketchSpec, bucket
from kamera_jax.lineage import take_jit
from kamera_jax.window import Window, aligned, append, check_chunk, check_model, materialised

ROOM = 256
"""Slots a prefilled window keeps free by default, for a question and its answer."""


def encode(vlm: Backbone, item: Any, *, preamble: Literal["pinned"] | None = "pinned") -> Chunk:
    """A chunk's canonical KV: the item run with nothing before it but the preamble.

    Args:
        vlm: the model.
        item: str is text, Path a file, PIL image or uint8[H, W, 3] an image.
        preamble: ``"pinned"`` runs it after the model's own preamble, which takes the attention-sink role; None after
            nothing at all.

    Raises:
        ValueError: the item cannot be read, is empty, or has an unsupported type.
    """
    segment = vlm.prepare(item)
    if preamble is None:
        return chunk_of(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)
    return encode_segment(vlm, segment)


def encode_segment(vlm: Backbone, segment: Segment) -> Chunk:
    """Canonical KV of a prepared item, run after the preamble alone."""
    chunk, _ = run_chunk(vlm, Window.empty(vlm, aligned(preamble_chunk(vlm).length)), segment)
    return chunk


def run_chunk(vlm: Backbone, window: Window, segment: Segment, collect: tuple[str, ...] = ()) -> tuple[Chunk, Output]:
    """A chunk with the KV that one forward on the window as it stands gives it, and all that forward returned."""
    output = run(vlm.params, segment.at(window.next_position), window.state, forward=vlm.forward, collect=collect)
    return chunk_of(vlm, segment, output, window.preamble.chunk.key, window.keys), output


def prefill(vlm: Backbone, items: Sequence[Any], *, capacity: int | None = None) -> Window:
    """A window by full prefill: every chunk sees all before it. The reference that reuse is held against.

    Args:
        vlm: the model.
        items: what `encode` takes, or chunks that still have their inputs.
        capacity: slots of the window; enough for the items and a turn by default.

    Returns:
        A window whose chunks hold conditioned KV and are marked with what they were conditioned on.

    Raises:
        ValueError: an item cannot be read. WindowFullError: ``capacity`` is too small. MissingInputsError: a chunk
            lost its inputs.
    """
    segments = []
    for item in items:
        if isinstance(item, Chunk):
            _check_model(vlm, item)
            segments.append(item.segment)
        else:
            segments.append(vlm.prepare(item))
    if capacity is None:
        capacity = _slots(vlm, [int(segment.length) for segment in segments], ROOM)
    window = Window.empty(vlm, capacity)
    for segment in segments:
        chunk, _ = run_chunk(vlm, window, segment)
        window = append(window, chunk, donate=bool(window.entries))
    return window


def form_patch(
    vlm: Backbone,
    chunk: Chunk,
    *,
    antecedents: Sequence[Chunk] | None = None,
    context: Window | None = None,
    rank: int | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    sketch: SketchSpec | None = None,
) -> Patch:
    """What ``chunk`` absorbs from the chunks before it, as a low-rank patch.

    Args:
        vlm: the model that encoded the chunk.
        chunk: canonical, with its inputs.
        antecedents: exact form: prefill preamble, antecedents and chunk together, in this order.
        context: one forward of the chunk alone, on a window as it stands; one that keeps its chunks in place is
            materialised for it.
        rank: components per layer (32 unless another choice is given).
        energy: instead, the share of every layer's squared change to keep; ranks differ per layer.
        max_bytes: instead, the largest rank that fits.
        sketch: which attention to keep a sketch of, for `kamera_jax.staleness`; its bytes come on top.

    Raises:
        ValueError: not exactly one of antecedents and context, more than one of rank, energy and max_bytes, a chunk
            that is not canonical, or a sketch of a layer that there is not.
        ModelMismatchError, PreambleMismatchError: the chunk, an antecedent or the context comes from elsewhere.
        MissingInputsError: the chunk, or an antecedent, lost its inputs.
    """
    if (antecedents is None) == (context is None):
        raise ValueError("give either antecedents= (chunks to prefill before it) or context= (a window as it stands)")
    if sum(choice is not None for choice in (rank, energy, max_bytes)) > 1:
        raise ValueError(
            f"give one of rank, energy and max_bytes; got rank={rank}, energy={energy}, max_bytes={max_bytes}"
        )
    if chunk.antecedents:
        raise ValueError(
            f"chunk {chunk.key[:12]} holds KV conditioned on {len(chunk.antecedents)} chunks; a patch is formed for "
            "a canonical one"
        )
    _check_model(vlm, chunk)
    segment = chunk.segment
    if context is not None:
        check_model(vlm, context)
    window = _prefilled(vlm, antecedents) if context is None else context
    check_chunk(window, chunk)
    window = materialised(window)  # what each chunk received cannot be told apart in place
    collect = ("attention_mass",) if sketch is None else ("attention_mass", "queries")
    conditioned, output = run_chunk(vlm, window, segment, collect)
    if energy is not None:
        factors = patches.fit_energy(conditioned.kv, chunk.kv, chunk.length, energy)
    elif max_bytes is not None:
        rank = patches.rank_for_bytes(
            max_bytes,
            layers=vlm.spec.layers,
            length=chunk.length,
            features=vlm.spec.rot_dim + vlm.spec.free_dim,
            itemsize=chunk.kv.rot.dtype.itemsize,
        )
        # Every length has a rank of its own; few shapes, so that nothing recompiles.
        factors = _limit(_fit(conditioned.kv, chunk.kv, chunk.length, bucket(rank)), rank)
    else:
        factors = _fit(conditioned.kv, chunk.kv, chunk.length, 32 if rank is None else rank)
    return Patch(
        factors=factors,
        chunk=chunk.key,
        model=chunk.model,
        antecedents=_original_keys(window, antecedents),
        mass=_mass_per_chunk(window, output.aux["attention_mass"]),
        residual=_residual(conditioned.kv, chunk.kv, factors, chunk.length),
        length=chunk.length,
        sketch=None if sketch is None else _sketch(output, chunk.length, sketch),
    )


_fit = partial(jax.jit, static_argnames="rank")(patches.fit)
_limit = jax.jit(patches.limit)
_residual = jax.jit(patches.residual)


def _sketch(output: Output, length: int, spec: SketchSpec) -> Sketch:
    return take_jit(output.aux["queries"], output.aux["attended"], length, spec=spec)


def _original_keys(window: Window, antecedents: Sequence[Chunk] | None) -> tuple[str, ...]:
    # Inside the forming window the antecedents are conditioned and keyed as such; a patch names those its caller knows.
    return window.keys if antecedents is None else tuple(chunk.key for chunk in antecedents)


def _prefilled(vlm: Backbone, antecedents: Sequence[Chunk] | None) -> Window:
    return prefill(vlm, antecedents or (), capacity=_slots(vlm, [chunk.length for chunk in antecedents or ()], 0))


def _slots(vlm: Backbone, lengths: Sequence[int], room: int) -> int:
    return bucket(aligned(preamble_chunk(vlm).length) + sum(map(aligned, lengths)) + room)


def _mass_per_chunk(window: Window, mass: jax.Array) -> jax.Array:
    """Sum f32[L, S + T] over the slots of each entry, of the preamble, and of the chunk itself: f32[L, n + 2]."""
    slots = window.capacity
    owner = np.full(mass.shape[1], len(window.entries) + 1)
    owner[:slots] = len(window.entries)
    for i, entry in enumerate(window.entries):
        owner[entry.slot : entry.slot + entry.chunk.length] = i
    return mass @ jax.nn.one_hot(owner, len(window.entries) + 2, dtype=jnp.float32)


def _check_model(vlm: Backbone, chunk: Chunk) -> None:
    if chunk.model != vlm.spec.fingerprint:
        raise ModelMismatchError(
            f"chunk {chunk.key[:12]} was encoded by model {chunk.model[:12]}, this is {vlm.spec.fingerprint[:12]}; "
            "encode it with this model"
        )
