"""Running a backbone: one compiled forward for every use, and the preamble's KV, computed once per model."""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp

from kamera_jax.backbone import Backbone, Output
from kamera_jax.chunk import Chunk, chunk_key
from kamera_jax.kv import Segment, WindowState
from kamera_jax.types import Params

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


def chunk_of(
    vlm: Backbone, segment: Segment, output: Output, preamble: str | None, antecedents: tuple[str, ...] = ()
) -> Chunk:
    """What a forward of ``segment`` gives, as a chunk."""
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
        spec=vlm.spec,
    )


def preamble_chunk(vlm: Backbone) -> Chunk:
    """The model's preamble with its KV; computed once per model."""
    if vlm not in _PREAMBLES:
        segment = vlm.preamble
        _PREAMBLES[vlm] = chunk_of(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)
    return _PREAMBLES[vlm]
