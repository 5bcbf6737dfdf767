"""Attention by the kernels that JAX keeps: which of them serves a call, and a call by one of them.

A kernel attends to one part of the keys at a time and gives the log-sum-exp of its scores, by which the parts are
merged. On TPUs that is JAX's splash attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from models.blocks.softmax import MASKED, AttentionOutput, Keys, by_blocks
from pallas_kernels import merge_states
from pallas_kernels.dispatch import Implementation, serve
from pallas_kernels.flash_attention.limits import splash_refusal

NO_GPU_KERNEL = (
    "cuDNN's attention in jax.nn rounds the log-sum-exp, by which parts are merged, to the dtype of its output: XLA "
    "serves GPUs"
)


@no_type_check  # pytrees are rebuilt with whatever a transformation puts in the leaves
@register_dataclass
@dataclass(frozen=True)
class Call:
    """A call of `models.blocks.softmax.attention` without weights, as every implementation takes it.

    Attributes:
        q: rotated queries [T, N, D].
        parts: keys, values and who sees them.
        causal: of each part, whether query t sees its first t + 1 keys at most; else ``before`` says what each sees.
        scale: factor on the scores.
    """

    q: jax.Array
    parts: tuple[Keys, ...]
    causal: tuple[bool, ...] = field(metadata={"static": True})
    scale: float = field(metadata={"static": True})


def served(
    q: jax.Array,
    parts: Sequence[Keys],
    weights: jax.Array | None,
    scale: float,
    implementation: Implementation | None = None,
) -> AttentionOutput:
    """`models.blocks.softmax.attention` by a kernel where one serves the call, else by blocks.

    Raises:
        ValueError: the named implementation cannot serve the call.
    """
    causal = tuple(is_causal(part, len(q)) for part in parts)
    refused = refusals(q, parts, causal, weights)
    if weights is not None and implementation in (None, "xla"):
        return by_blocks(q, _counted(parts), weights, scale)
    without = tuple(
        part._replace(before=None if known else part.before, owners=None)
        for part, known in zip(parts, causal, strict=True)
    )
    call = Call(q, _counted(without), causal, float(scale))
    out, lse = serve("attention", implementation, refused, _attending, call)
    return AttentionOutput(out, lse, None)


def is_causal(part: Keys, tokens: int) -> bool:
    """Whether it is known of a part that query t sees its first t + 1 keys at most."""
    before = part.before
    return isinstance(before, np.ndarray) and np.array_equal(before, np.arange(1, tokens + 1))


def refusals(
    q: jax.Array, parts: Sequence[Keys], causal: Sequence[bool], weights: jax.Array | None = None
) -> dict[Implementation, str | None]:
    """Why each implementation cannot serve a call, or None where it can."""
    unserved = _unserved(q, parts, causal, weights)
    return {"pallas_tpu": unserved or _by_width(q, parts), "mosaic_gpu": unserved or NO_GPU_KERNEL, "xla": None}


def _by_width(q: jax.Array, parts: Sequence[Keys]) -> str | None:
    dtypes = [q.dtype, *(x.dtype for part in parts for x in (part.k, part.v))]
    return splash_refusal(parts[0].k.shape[-1], parts[0].v.shape[-1], dtypes)


def _unserved(q: jax.Array, parts: Sequence[Keys], causal: Sequence[bool], weights: jax.Array | None) -> str | None:
    """Why no kept kernel serves a call, whatever its widths and dtypes."""
    if weights is not None:
        return "kept kernels do not say how much attention each key receives"
    if any(part.before is not None and not known for part, known in zip(parts, causal, strict=True)):
        return "kept kernels serve queries that all see the same keys, or causality; not a count for each query"
    if any(part.bias is not None for part in parts):
        return "kept kernels add nothing to a key's scores, unless to those of each query and key"
    if any(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves((q, *parts)) if isinstance(x, jax.Array)):
        return "kept kernels are not cut by jax.shard_map, which checks what varies over a mesh"
    return None


def _counted(parts: Sequence[Keys]) -> tuple[Keys, ...]:
    """Parts whose counts are arrays of JAX."""
    return tuple(
        part if part.before is None else part._replace(before=jnp.asarray(part.before, jnp.int32)) for part in parts
    )


def _attending(name: Implementation) -> Callable[[Call], tuple[jax.Array, jax.Array]]:
    # Imported when it may be chosen: Pallas takes a second to load.
    if name == "pallas_tpu":
        from pallas_kernels.flash_attention.splash import splash_attention

        return _part_by_part(splash_attention)
    return _reference


def _reference(call: Call) -> tuple[jax.Array, jax.Array]:
    counts = jnp.arange(1, len(call.q) + 1, dtype=jnp.int32)
    parts = tuple(
        part._replace(before=counts) if known else part for part, known in zip(call.parts, call.causal, strict=True)
    )
    out, lse, _ = by_blocks(call.q, parts, None, call.scale)
    return out, lse


def _part_by_part(kernel: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A call by a kernel that attends to one part."""

    def attend(call: Call, **options: Any) -> tuple[jax.Array, jax.Array]:
        each = [
            kernel(call.q, part.k, part.v, part.seen, causal=known, scale=call.scale, **options)
            for part, known in zip(call.parts, call.causal, strict=True)
        ]
        out, lse = merge_states(*zip(*each, strict=True)) if len(each) > 1 else each[0]
        return out.reshape(len(call.q), -1), jnp.maximum(lse, MASKED)

    return attend
