"""What belongs together and what fits: checked before anything is written."""

from typing import Any

import jax

from kamera_jax.arguments import check_type, whole_number
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.chunk import Chunk, Patch, describe
from kamera_jax.errors import (
    BackboneError,
    CodecError,
    DonatedError,
    ModelMismatchError,
    PatchMismatchError,
    PreambleMismatchError,
    WindowFullError,
)
from kamera_jax.handle import deleted, traced
from kamera_jax.identity import EXACT, row_stages
from kamera_jax.kv import WindowState, check_length
from kamera_jax.window.window import Window


def check_room(window: Window, tokens: int | jax.Array, advance: int | float | jax.Array | None = None) -> None:
    """Raise WindowFullError unless ``tokens`` more fit, which take ``advance`` positions (by default one each).

    Where these are not known yet, see `_poisoned`.
    """
    free = window.capacity - window.next_slot
    if not traced(tokens, free) and tokens > free:
        raise WindowFullError(
            f"{tokens} tokens do not fit: the window has {max(free, 0)} of {window.capacity} slots free; slide it, "
            "or make it larger"
        )
    check_length(window.spec, window.next_position, tokens if advance is None else advance)


def check_whole(window: Window) -> None:
    """Raise unless it is a window that can be used.

    Raises:
        ArgumentError: it is no window.
        DonatedError: its buffers were given to another window.
        WindowFullError: it comes from a compiled function in which something did not fit.
    """
    if not isinstance(window, Window):
        check_type(window, Window, "window", _remedy(window))
    if deleted(window.state):
        raise DonatedError(
            "the window's buffers were given to the window that was made of it (donate=True; in place, to those that "
            "share its pools); go on with that one, or do not donate what is used again"
        )
    if not traced(window.overflowed) and window.overflowed:
        raise WindowFullError(
            f"the window of {window.capacity} slots comes from a compiled function in which something did not fit it, "
            "or the model's length; make it again from the window that went in, with more slots or fewer chunks"
        )


def _remedy(value: Any) -> str:
    """What to do where something else stands in a window's place."""
    if isinstance(value, Chunk):
        return "append(window, chunk) gives one that holds it, Window.empty(vlm, capacity) an empty one"
    if isinstance(value, list | tuple):
        return "prefill(vlm, items) makes one of items or chunks; append(window, chunk) adds a chunk to one"
    if "window" in dir(type(value)) or "window" in getattr(type(value), "__dataclass_fields__", {}):
        return f"a {type(value).__name__} has one, its .window"
    if callable(getattr(value, "forward", None)):
        return "Window.empty(vlm, capacity) makes one; where a model is taken, the order is (vlm, window, text)"
    return "Window.empty(vlm, capacity) makes one, prefill(vlm, items) one of items"


def check_model(vlm: Backbone, window: Window) -> None:
    """Raise ModelMismatchError unless the window is this model's.

    Raises:
        WindowFullError: the window comes from a compiled function in which something did not fit.
    """
    check_whole(window)
    with_defaults(vlm)
    if vlm.spec.fingerprint != window.spec.fingerprint:
        raise ModelMismatchError(
            f"the window belongs to model {window.spec.fingerprint[:12]}, this is {vlm.spec.fingerprint[:12]}; build "
            "it with this model"
        )
    check_reads_bias(vlm, window.state)


def check_encoded_by(vlm: Backbone, chunk: Chunk) -> None:
    """Raise ModelMismatchError unless this model encoded the chunk."""
    with_defaults(vlm)
    if chunk.model != vlm.spec.fingerprint:
        raise ModelMismatchError(
            f"{describe(chunk)} was encoded by model {chunk.model[:12]}, this is {vlm.spec.fingerprint[:12]}; "
            "encode it with this model"
        )


def check_reads_bias(vlm: Backbone, what: WindowState | Chunk) -> None:
    """Raise BackboneError if rows of a state or chunk stand for several tokens, and the model does not read that.

    A forward that ignores it would weigh such a row as one token.
    """
    if isinstance(what, Chunk):
        counted = what.counts is not None
    else:
        counted = any(each.bias is not None for each in (what, *what.pools))
    if counted:
        check_bias_is_read(vlm)


def check_bias_is_read(vlm: Backbone) -> None:
    """Raise BackboneError unless the model's forward reads how many tokens a row stands for."""
    if not with_defaults(vlm).reads_bias:
        raise BackboneError(
            f"{type(vlm).__name__} does not say reads_bias = True, so its forward may not add state.bias to the "
            "scores, and rows of a chunk that stand for several tokens would count as one each; add it there, and say "
            "so (see kamera_jax.backbone.BackboneBase), or use chunks that keep all their rows"
        )


def check_chunk(window: Window, chunk: Chunk) -> None:
    """Raise unless the chunk's model and preamble are the window's."""
    check_type(window, Window, "window", "Window.empty(vlm, capacity) makes one")
    check_type(chunk, Chunk, "chunk", "encode(vlm, item) makes one of text or an image")
    if deleted(chunk.kv):
        raise DonatedError(f"{describe(chunk)} was donated, and its KV is gone; donate a copy of it, chunk.copied()")
    if chunk.model != window.spec.fingerprint:
        differ = () if chunk.spec is None else chunk.spec.differences(window.spec)
        raise ModelMismatchError(
            f"{describe(chunk)} was encoded by model {chunk.model[:12]}, the window belongs to "
            f"{window.spec.fingerprint[:12]}"
            + (f", which differ in {', '.join(differ)}" if differ else "")
            + "; encode it with this window's model"
        )
    if window.storage != EXACT and not f"+{chunk.codec}".endswith(f"+{window.storage}"):
        raise CodecError(
            f"{describe(chunk)} has codec {chunk.codec!r}, and the window keeps its chunks in {window.storage!r}; give "
            f"it compress(vlm, chunk, {window.storage!r}).restore(), for which patches are then formed"
        )
    pinned = window.preamble.chunk.key
    if chunk.preamble is not None and pinned and chunk.preamble != pinned:
        raise PreambleMismatchError(
            f"{describe(chunk)} was encoded after preamble {chunk.preamble[:12]}, the window holds "
            f"{pinned[:12]}; encode it with this window's preamble, or with preamble=None"
        )


def check_pair(chunk: Chunk, patch: Patch) -> None:
    """Raise unless the patch is the chunk's; where a transformation dropped the one's or the other's key, it may be."""
    check_type(patch, Patch, "patch", "form_patch(vlm, chunk, antecedents=[...]) makes one")
    if patch.model != chunk.model:
        raise ModelMismatchError(
            f"the patch was formed by model {patch.model[:12]}, the chunk by {chunk.model[:12]}; form it anew"
        )
    rows = patch.factors.u.shape[-1]
    width = patch.factors.v.shape[-1]
    if (rows, width) != (chunk.kv.rot.shape[-2], chunk.kv.rot.shape[-1] + chunk.kv.free.shape[-1]):
        raise PatchMismatchError(
            f"the patch is of a chunk of {rows} rows and {width} features, {describe(chunk)} has "
            f"{chunk.kv.rot.shape[-2]} and {chunk.kv.rot.shape[-1] + chunk.kv.free.shape[-1]}; form one for this chunk"
        )
    if patch.chunk and chunk.key and patch.chunk != chunk.key:
        raise PatchMismatchError(
            f"the patch belongs to chunk {patch.chunk[:12]}, not to {chunk.key[:12]}; form one for this chunk"
        )
    if not is_of_rows(patch, chunk):
        raise PatchMismatchError(
            f"the patch was fitted to rows of codec {patch.codec!r}, and {describe(chunk)} has codec {chunk.codec!r}: "
            "they stand for other tokens; form one for this chunk"
        )


def is_of_rows(patch: Patch, chunk: Chunk) -> bool:
    """Whether a patch of a chunk was fitted to the rows that this copy of it has: kept, shared and merged alike."""
    return row_stages(patch.codec) == row_stages(chunk.codec)


def check_place(window: Window, at: int | None) -> int:
    """The place ``at`` stands for, None for the window's end; raise ValueError if there is none."""
    if at is None:
        return len(window.entries)
    at = whole_number(at, "at")
    if not 0 <= at <= len(window.entries):
        raise ValueError(f"at must be in 0..{len(window.entries)}; got {at}")
    return at
