"""Running a backbone: one compiled forward for every use, and the preamble's KV, computed once per model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kamera_jax.backbone import Backbone, Output, call, with_defaults
from kamera_jax.chunk import Chunk, Entry
from kamera_jax.contract import check_kv, check_params_read
from kamera_jax.handle import traced
from kamera_jax.identity import chunk_key, content_of, lineage
from kamera_jax.kv import Segment, WindowState
from kamera_jax.placement import placed
from kamera_jax.transfer import position_of, to_device
from kamera_jax.types import Params

_PREAMBLES: WeakKeyDictionary[Backbone, tuple[list[Callable[[], Any]], Chunk]] = WeakKeyDictionary()
"""Of each model the preamble, and references to the arrays that its parameters were."""


def run(
    params: Params,
    segment: Segment,
    state: WindowState | None,
    logits_at: jax.Array | np.ndarray | None = None,
    base: jax.Array | np.float32 | None = None,
    *,
    forward: Callable[..., Output],
    collect: tuple[str, ...] = (),
    last: bool = False,
) -> Output:
    """A backbone's forward, compiled once per shape; see `Backbone.forward`.

    The segment's positions are absolute, or local ones that ``base`` is added to: a position, or numbers that begin
    with one (`kamera_jax.transfer.packed`), those of `owners_of` where ``owner_mass`` is collected. ``last`` asks for
    the logits at the segment's last token. What the host knows of these, such as the segment's length, goes to the
    device in one transfer.
    """
    segment, logits_at, base = to_device((segment, logits_at, base))
    return _run(params, segment, state, logits_at, base, forward=forward, collect=collect, last=last)


@partial(jax.jit, static_argnames=("forward", "collect", "last"))
def _run(
    params: Params,
    segment: Segment,
    state: WindowState | None,
    logits_at: jax.Array | None = None,
    base: jax.Array | None = None,
    *,
    forward: Callable[..., Output],
    collect: tuple[str, ...] = (),
    last: bool = False,
) -> Output:
    """`run` of what is on the device."""
    if "owner_mass" in collect and base is not None:
        slots = 0 if state is None else state.valid.shape[0]
        owners = owners_of(base, slots, slots + segment.positions.shape[1])
        segment = replace(segment, inputs={**segment.inputs, "owners": owners})
    if base is not None:
        segment = segment.at(position_of(base) if base.ndim else base)
    if last:
        logits_at = segment.length[None] - 1
    return call(forward, params, segment, state, logits_at=logits_at, collect=collect)


def owners_of(numbers: jax.Array, slots: int, seen: int) -> Bool[Array, "S n"]:
    """Whose each of the ``slots`` of a window, and then of the tokens behind it, is: ``seen`` in all.

    Args:
        numbers: i32[4 + 2n]: of them the fourth is how many entries the window has, and from the fifth on stand the
            first slots of the n owners, and then, in the same order, the slots after their last. Nobody's slots are the
            preamble's, who comes after the entries, and the tokens are the next owner's.
    """
    entries = numbers[3]
    first, last = jnp.split(numbers[4:], 2)
    here = jnp.arange(seen, dtype=jnp.int32)
    within = (here[:, None] >= first[None, :]) & (here[:, None] < last[None, :])
    other = jnp.where(here < slots, entries, entries + 1)
    owner = jnp.where(within.any(1), within.argmax(1).astype(jnp.int32), other)
    return owner[:, None] == jnp.arange(len(first), dtype=jnp.int32)[None, :]


_CHECKED: WeakSet[Backbone] = WeakSet()


def check_forward(vlm: Backbone) -> None:
    """Raise BackboneError unless the model is a backbone whose forward gives the KV that its spec says; looked at once.

    Nothing is run: the forward is traced over the preamble, as it will be run.
    """
    with_defaults(vlm)
    if vlm in _CHECKED or traced(*jax.tree.leaves(vlm.params)):
        return
    trace = _run.trace(vlm.params, vlm.preamble, None, forward=vlm.forward)
    check_kv(vlm, trace.out_info.kv)
    check_params_read(vlm, trace.jaxpr)
    _CHECKED.add(vlm)


def chunk_of(
    vlm: Backbone,
    segment: Segment,
    output: Output,
    preamble: str | None,
    before: Sequence[Entry] = (),
    *,
    context: str | None = None,
    turn: bool = False,
) -> Chunk:
    """What a forward of ``segment`` gives, as a chunk.

    Args:
        vlm: the model.
        segment: what was run.
        output: what that gave.
        preamble: key of the preamble it was run behind, None for none.
        before: the entries between the two.
        context: the lineage of all that, if it is not what preamble and entries say.
        turn: whether it is a question with its answer.

    Raises:
        ValueError: the segment does not say how far it advances.
    """
    if segment.advance is None:
        raise ValueError(
            "a segment that went through a JAX transformation does not say how far it advances, so it makes no chunk; "
            "pass replace(segment, advance=...)"
        )
    content = content_of(segment)
    if context is None:
        context = lineage(preamble, (entry.identity for entry in before))
    key = chunk_key(content, vlm.spec, context)
    positions = placed(jnp.asarray(segment.positions), with_defaults(vlm).placement)
    return Chunk(
        kv=output.kv,
        positions=positions,
        length=segment.length if traced(segment.length) else int(segment.length),
        advance=segment.advance if traced(segment.advance) else float(segment.advance),
        model=vlm.spec.fingerprint,
        preamble=preamble or None,
        antecedents=tuple(entry.chunk.key for entry in before),
        source=Segment(segment.inputs, positions, segment.length, segment.advance),
        turn=turn,
        spec=vlm.spec,
        key=key,
        content=content if key else "",
        lineage=context if key else "",
    )


def preamble_chunk(vlm: Backbone) -> Chunk:
    """The model's preamble with its KV; computed once per model, and again where its parameters are other arrays.

    They may lie on another device now: what is run there is to find the preamble there.
    """
    check_forward(vlm)
    params = jax.tree.leaves(vlm.params)
    if vlm in _PREAMBLES:
        known, chunk = _PREAMBLES[vlm]
        if len(known) == len(params) and all(each() is leaf for each, leaf in zip(known, params, strict=True)):
            return chunk
    segment = vlm.preamble
    # Compiled before it is called: under compile-time evaluation every constant of the forward is a program of its own.
    with jax.ensure_compile_time_eval():
        sent = to_device(segment)
    ahead = None if traced(*params) else _run.trace(vlm.params, sent, None, forward=vlm.forward).lower().compile()
    with jax.ensure_compile_time_eval():  # asked for inside a transformation, it is computed outside of it
        if ahead is None:
            output = _run(vlm.params, sent, None, forward=vlm.forward)
        else:
            output = ahead(vlm.params, sent, None)
        chunk = chunk_of(vlm, segment, output, None)
    if not traced(*jax.tree.leaves(chunk)):  # of parameters that are traced it is of no use elsewhere
        _PREAMBLES[vlm] = ([_reference(leaf) for leaf in params], chunk)
    return chunk


def _reference(leaf: Any) -> Callable[[], Any]:
    """What gives a leaf of the parameters as long as it lives: a model's old parameters are not kept alive."""
    return ref(leaf) if isinstance(leaf, jax.Array) else lambda: leaf
