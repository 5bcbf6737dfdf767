"""Running the model: encode a chunk alone, prefill chunks together, form a patch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import patch as patches
from kamera_jax.backbone import Backbone, Output
from kamera_jax.chunk import Chunk, Patch, chunk_key
from kamera_jax.errors import ModelMismatchError
from kamera_jax.kv import Segment, WindowState, bucket
from kamera_jax.types import Params
from kamera_jax.window import Window, aligned, append

ROOM = 256
"""Slots a prefilled window keeps free by default, for a question and its answer."""

_PREAMBLES: WeakKeyDictionary[Backbone, Chunk] = WeakKeyDictionary()


@partial(jax.jit, static_argnames=("forward", "collect"))
def run(
    params: Params,
    segment: Segment,
    state: WindowState | None,
    logits_at: jax.Array | None = None,
    *,
    forward: Callable[..., Output],
    collect: tuple[str, ...] = (),
) -> Output:
    """A backbone's forward, compiled once per shape; see `Backbone.forward`."""
    return forward(params, segment, state, logits_at=logits_at, collect=collect)


def _chunk(
    vlm: Backbone, segment: Segment, output: Output, preamble: str | None, antecedents: tuple[str, ...] = ()
) -> Chunk:
    return Chunk(
        kv=output.kv,
        positions=jnp.asarray(segment.positions),
        length=int(segment.length),
        advance=float(segment.advance),
        key=chunk_key(segment.content, vlm.spec, preamble, antecedents),
        model=vlm.spec.fingerprint,
        preamble=preamble,
        antecedents=antecedents,
        inputs=segment.inputs,
    )


def preamble_chunk(vlm: Backbone) -> Chunk:
    """The model's preamble with its KV; computed once per model."""
    if vlm not in _PREAMBLES:
        segment = vlm.preamble
        _PREAMBLES[vlm] = _chunk(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)
    return _PREAMBLES[vlm]


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
    return _encode_segment(vlm, vlm.prepare(item), preamble)


def _encode_segment(vlm: Backbone, segment: Segment, preamble: Literal["pinned"] | None) -> Chunk:
    if preamble is None:
        return _chunk(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)
    head = preamble_chunk(vlm)
    window = Window.empty(vlm, aligned(head.length))
    output = run(vlm.params, segment.at(window.next_position), window.state, forward=vlm.forward)
    return _chunk(vlm, segment, output, head.key)


def _conditioned(
    vlm: Backbone, window: Window, segment: Segment, collect: tuple[str, ...] = ()
) -> tuple[Chunk, Output]:
    output = run(vlm.params, segment.at(window.next_position), window.state, forward=vlm.forward, collect=collect)
    return _chunk(vlm, segment, output, window.preamble.chunk.key, window.keys), output


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
        chunk, _ = _conditioned(vlm, window, segment)
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
) -> Patch:
    """What ``chunk`` absorbs from the chunks before it, as a low-rank patch.

    Args:
        vlm: the model that encoded the chunk.
        chunk: canonical, with its inputs.
        antecedents: exact form: prefill preamble, antecedents and chunk together, in this order.
        context: one forward of the chunk alone, on a window as it stands.
        rank: components per layer (32 unless another choice is given).
        energy: instead, the share of every layer's squared change to keep; ranks differ per layer.
        max_bytes: instead, the largest rank that fits.

    Raises:
        ValueError: not exactly one of antecedents and context, more than one of rank, energy and max_bytes, or a chunk
            that is not canonical. ModelMismatchError, MissingInputsError: see there.
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
    window = _prefilled(vlm, antecedents) if context is None else context
    segment = chunk.segment
    conditioned, output = _conditioned(vlm, window, segment, ("attention_mass",))
    if energy is not None:
        factors = patches.fit_energy(conditioned.kv, chunk.kv, chunk.length, energy)
    else:
        if max_bytes is not None:
            width = chunk.kv.rot.shape[-1] + chunk.kv.free.shape[-1]
            rank = patches.rank_for_bytes(
                max_bytes,
                layers=vlm.spec.layers,
                length=chunk.length,
                features=width,
                itemsize=chunk.kv.rot.dtype.itemsize,
            )
        factors = _fit(conditioned.kv, chunk.kv, chunk.length, 32 if rank is None else rank)
    return Patch(
        factors=factors,
        chunk=chunk.key,
        model=chunk.model,
        antecedents=_original_keys(window, antecedents),
        mass=_mass_per_chunk(window, output.aux["attention_mass"]),
        residual=_residual(conditioned.kv, chunk.kv, factors, chunk.length),
        length=chunk.length,
    )


_fit = partial(jax.jit, static_argnames="rank")(patches.fit)
_residual = jax.jit(patches.residual)


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
